"""HTML pages, each of which is one file that needs no other file and no network.

A page is a Jinja2 template. Every page includes the theme, theme.css, which has a light and a dark scheme.
"""

from typing import Any

import jinja2

# Colors of curves, heads and variants, in both schemes. Further curves repeat the colors with other dashes.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56a4d0", "#b8860b", "#8b5cf6", "#808080")


def render(template: str, **values: Any) -> str:
    """Returns a page. Values are escaped, and every value that the template uses must be given.

    Args:
      template: file of the template in `experiments`, such as "study/page.html".
      **values: the variables of the template.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("experiments", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(values)

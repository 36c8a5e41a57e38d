"""Rebuilds the report of a study.

    python -m experiments.report --root=runs/positions

The command reads only the folder of the study, not the sweep file.
"""

import sys
from pathlib import Path

from absl import flags as absl_flags
from absl.flags import FlagValues

from experiments import cli
from experiments.study.report import report


def define_flags(flags: FlagValues) -> None:
    absl_flags.DEFINE_string("root", None, "Folder of the study.", flag_values=flags, required=True)


def main(flags: FlagValues) -> None:
    print(report(Path(flags.root)))


if __name__ == "__main__":
    cli.run(sys.modules[__name__])

"""The rows of the paper's Table 3, each at the paper's scale and at a small scale.

    python -m experiments.describe --config=configs/table3.py:C-N2
    python -m experiments.train --config=configs/table3.py:C-N2,number_words --workdir=runs/c-n2

Arguments: the name of a row (`base` by default), and `multi30k` or `number_words` for the small scale, which
uses a small data set and, for most rows, values scaled down from the paper's. The paper's scale is WMT 2014
through TFDS. We have not trained at that scale; the paper's Table 3 has the perplexity and BLEU of each row
on newstest2013. As in that table, no checkpoints are averaged.

At the small scale, a row is applied to one of two configs. `multi30k`: configs/multi30k.py (4 layers, d_model
128, d_ff 256, 4 heads, dropout 0.3). `number_words`: configs/number_words.py (2 layers, d_model 128, 4
heads), with d_ff set to 256 and dropout to 0.1. Except for `base`, each row's small values are chosen so that
they change both configs. At the small scale, `big` changes only the model size; unlike the paper's `big`, it
does not change the dropout rate or the number of steps.

`smoke` shrinks the config before the row is applied. So a row still changes the config, except A-h4 and C-N2,
whose small values equal the values of `smoke`.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs import base, big, multi30k, number_words


class Row(NamedTuple):
    """The changes that a row of Table 3 makes: new values by dotted config key.

    Attributes:
      perplexity: the paper's perplexity per token on newstest2013.
      bleu: the paper's BLEU on newstest2013.
      paper: the changes at the paper's scale.
      small: the changes with `multi30k`, `number_words` or `smoke`.
    """

    perplexity: float
    bleu: float
    paper: Mapping[str, Any]
    small: Mapping[str, Any]


# The paper does not say how many positions row E learns. 1,024 positions would add 1.05M parameters, but
# Table 3 lists no additional parameters for this row.
LEARNED = {"model.positions": "learned", "model.max_positions": 512}

ROWS = {
    "base": Row(4.92, 25.8, {}, small={}),
    "A-h1": Row(5.29, 24.9, {"model.num_heads": 1}, small={"model.num_heads": 1}),
    "A-h4": Row(5.00, 25.5, {"model.num_heads": 4}, small={"model.num_heads": 2}),
    "A-h16": Row(4.91, 25.8, {"model.num_heads": 16}, small={"model.num_heads": 8}),
    "A-h32": Row(5.01, 25.4, {"model.num_heads": 32}, small={"model.num_heads": 16}),
    "B-dk16": Row(5.16, 25.1, {"model.d_k": 16}, small={"model.d_k": 8}),
    "B-dk32": Row(5.01, 25.4, {"model.d_k": 32}, small={"model.d_k": 16}),
    "C-N2": Row(6.11, 23.7, {"model.num_layers": 2}, small={"model.num_layers": 1}),
    "C-N4": Row(5.19, 25.3, {"model.num_layers": 4}, small={"model.num_layers": 3}),
    "C-N8": Row(4.88, 25.5, {"model.num_layers": 8}, small={"model.num_layers": 5}),
    "C-d256": Row(5.75, 24.5, {"model.d_model": 256}, small={"model.d_model": 64}),
    "C-d1024": Row(4.66, 26.0, {"model.d_model": 1_024}, small={"model.d_model": 256}),
    "C-ff1024": Row(5.12, 25.4, {"model.d_ff": 1_024}, small={"model.d_ff": 128}),
    "C-ff4096": Row(4.75, 26.2, {"model.d_ff": 4_096}, small={"model.d_ff": 512}),
    "D-drop0": Row(5.77, 24.6, {"model.dropout_rate": 0.0}, small={"model.dropout_rate": 0.0}),
    "D-drop2": Row(4.95, 25.5, {"model.dropout_rate": 0.2}, small={"model.dropout_rate": 0.2}),
    "D-ls0": Row(4.67, 25.3, {"train.label_smoothing": 0.0}, small={"train.label_smoothing": 0.0}),
    "D-ls2": Row(5.47, 25.7, {"train.label_smoothing": 0.2}, small={"train.label_smoothing": 0.2}),
    "E-learned": Row(4.92, 25.7, LEARNED, small=LEARNED),
    "big": Row(
        4.33, 26.4, big.CHANGES, small={"model.d_model": 256, "model.d_ff": 512, "model.num_heads": 8}
    ),
}
SCALES = ("multi30k", "number_words")


def get_config(argument: str = "") -> ConfigDict:
    small = any(word in (*SCALES, "smoke") for word in argument.split(","))
    rows = {name: functools.partial(_change, row.small if small else row.paper) for name, row in ROWS.items()}
    # Applied in this order: the data, then smoke, then the row.
    variants = {"multi30k": _multi30k, "number_words": _number_words, "smoke": base.smoke, **rows}
    return base.with_arguments(base.defaults(), argument, variants, alternatives=[SCALES, rows])


def _multi30k(config: ConfigDict) -> None:
    config.update(multi30k.get_config().to_dict())
    config.decode.average_last = 1


def _number_words(config: ConfigDict) -> None:
    config.update(number_words.get_config().to_dict())
    config.model.update(d_ff=256, dropout_rate=0.1)


def _change(changes: Mapping[str, Any], config: ConfigDict) -> None:
    config.update_from_flattened_dict(changes)

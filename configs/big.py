"""The paper's big model on WMT 2014 English-German: 28.4 BLEU after 300,000 steps, 3.5 days on 8 P100.

    python -m experiments.train --config=configs/big.py --workdir=runs/big

We have not trained this model; the figures are the paper's. Table 2 reports the 28.4 BLEU for the mean of 20
checkpoints, as in `wmt14.py:big`. This config uses one checkpoint, as in the last row of Table 3: 26.4 BLEU
on newstest2013, 213M parameters.
"""

from ml_collections import ConfigDict

from configs import base

CHANGES = {  # relative to configs/base.py
    "model.d_model": 1_024,
    "model.d_ff": 4_096,
    "model.num_heads": 16,
    "model.dropout_rate": 0.3,
    "train.steps": 300_000,
}


def get_config(argument: str = "") -> ConfigDict:
    config = base.defaults()
    config.update_from_flattened_dict(CHANGES)
    return base.with_arguments(config, argument, {})

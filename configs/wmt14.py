"""The paper's training on WMT 2014 (sections 5 and 6): base has 27.3 BLEU from English to German (Table 2).

    python -m experiments.prepare --config=configs/wmt14.py
    python -m experiments.train --config=configs/wmt14.py --workdir=runs/wmt14
    python -m experiments.evaluate --workdir=runs/wmt14

Arguments: `big` for the big model (28.4 BLEU), `en-fr` for English to French (base 38.1, big 41.8 BLEU).

We have not trained these models; the figures are the paper's. The paper computes BLEU on tokenized text with
split German compounds; of our scores, only `bleu_legacy` does so. The averaged checkpoints are 1,500 steps
apart for base and 600 steps for big: 10 minutes on the paper's machine. TFDS has newstest2013 as the
validation split and newstest2014 as the test split.

Differs from the paper: for French, the vocabulary is BPE instead of WordPiece.
"""

from ml_collections import ConfigDict

from configs import base, big


def get_config(argument: str = "") -> ConfigDict:
    config = base.defaults()
    config.train.validate_every = 1_500
    config.decode.average_last = 5
    return base.with_arguments(config, argument, {"big": _big, "en-fr": _french})


def _big(config: ConfigDict) -> None:
    config.update_from_flattened_dict(big.CHANGES)
    config.train.update(validate_every=600, keep_last=20)
    config.decode.average_last = 20


def _french(config: ConfigDict) -> None:
    config.data.update(name="wmt14_translate/fr-en", target="fr", vocab_size=32_000)
    config.model.dropout_rate = 0.1  # also for big, as in the paper

"""A small model for your own parallel text, which should have at least a few thousand pairs.

    python -m experiments.train --config=configs/text.py --workdir=runs/mine \\
        --config.data.source=en --config.data.target=is --config.data.options.train=pairs.tsv

`data.options.train` is one file of tab-separated pairs, or two files: `source,target`. Each file may be
compressed (.gz). `data.options.validation` and `data.options.test` have the same forms. If `validation` or
`test` has no file, pairs of the training text are held out for that split.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(argument: str = "") -> ConfigDict:
    config = base.defaults()
    config.model.update(num_layers=3, d_model=256, d_ff=1_024, num_heads=4)
    config.data.update(name="parallel_text", vocab_size=4_000, row_length=128)
    config.data.options = {
        "held_out": 2_000,
        "min_characters": 1,
        "max_characters": 1_000,
        # The value of Moses' clean-corpus-n. It does not drop Chinese, which has a third of the characters.
        "max_ratio": 9.0,
        "deduplicate": True,
    }
    config.optimizer.warmup_steps = 1_000
    config.train.update(steps=10_000, batch_tokens=4_096, validate_every=500)
    config.decode.average_last = 5
    return base.with_arguments(config, argument, {})

"""Your own parallel text: the base model, smaller, on files you name.

    python -m experiments.train --config=configs/text.py --workdir=runs/mine \\
        --config.data.source=en --config.data.target=is \\
        --config.data.train=train.tsv --config.data.validation=valid.en,valid.is
"""

from ml_collections import ConfigDict

from configs import base


def get_config(argument: str = "") -> ConfigDict:
    config = base.defaults()
    config.model.update(num_layers=3, d_model=256, d_ff=1_024, num_heads=4)
    config.data.update(name="parallel_text", vocab_size=8_000, row_length=128)
    config.optimizer.warmup_steps = 1_000
    config.train.update(steps=10_000, batch_tokens=4_096, validate_every=500)
    config.decode.average_last = 5
    return base.with_arguments(config, argument, {})

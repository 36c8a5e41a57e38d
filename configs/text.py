"""Your own parallel text: a small model, for some thousand pairs and up, on files you name.

    python -m experiments.train --config=configs/text.py --workdir=runs/mine \\
        --config.data.source=en --config.data.target=is --config.data.train=pairs.tsv

`data.train` is one file of tab-separated pairs or two files, source,target; each may be .gz. So are
`data.validation` and `data.test`; what is not given is held out of the training text.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(argument: str = "") -> ConfigDict:
    config = base.defaults()
    config.model.update(num_layers=3, d_model=256, d_ff=1_024, num_heads=4)
    config.data.update(name="parallel_text", vocab_size=4_000, row_length=128, held_out=2_000)
    # 9 as in Moses' clean-corpus-n, loose enough for Chinese, which needs a third of the characters.
    config.data.update(min_characters=1, max_characters=1_000, max_ratio=9.0, deduplicate=True)
    config.optimizer.warmup_steps = 1_000
    config.train.update(steps=10_000, batch_tokens=4_096, validate_every=500)
    config.decode.average_last = 5
    return base.with_arguments(config, argument, {})

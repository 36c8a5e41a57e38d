"""Later defaults of tensor2tensor (`transformer_base_v3`) on WMT 2014 English-German: base with six changes.

    python -m experiments.train --config=configs/t2t.py --workdir=runs/t2t

We have not trained this model. The changes are:

- norms before the sub-layers;
- dropout also on attention weights and inside the feed-forward layer;
- position vectors that have all sines before all cosines;
- beta2 of 0.997;
- a warm-up of 8,000 steps;
- a peak learning rate of twice the value that the paper's formula gives.

The source is tensor2tensor/models/transformer.py at bafdc1b. We did not copy three other settings of that
code: 4,096 tokens per batch and device, outputs up to 100 tokens longer than the input, and the
initialization of the weights.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(argument: str = "") -> ConfigDict:
    config = base.defaults()
    config.model.update(residual="pre_norm", dropout_sites="all", positions="sinusoidal_concat")
    # learning_rate_constant 2.0 with linear_warmup, rsqrt_decay and rsqrt_hidden_size
    peak = 2 * (config.model.d_model * 8_000) ** -0.5
    config.optimizer.update(beta2=0.997, warmup_steps=8_000, learning_rate=peak)
    return base.with_arguments(config, argument, {})

"""Later defaults of tensor2tensor (`transformer_base_v3`) on WMT 2014 English-German: base with six changes.

    python -m experiments.train --config=configs/t2t.py --workdir=runs/t2t

We have not trained it. Norms before the sub-layers; dropout also of attention weights and inside the
feed-forward layer; sines and cosines in two halves; beta2 0.997; a warm-up of 8,000 steps to twice the rate
of the paper (tensor2tensor/models/transformer.py at bafdc1b). Not copied from that code: 4,096 tokens per
batch and device, outputs up to 100 tokens longer than the input, the initialization of the weights.
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

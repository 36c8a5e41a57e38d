"""tensor2tensor's later defaults (`transformer_base_v3`) on WMT 2014 English-German: base with six changes.

    python -m experiments.train --config=configs/t2t.py --workdir=runs/t2t

Not trained by us. Norms before the sub-layers, dropout of attention weights and inside the feed-forward
layer too, sines and cosines in two halves, beta2 0.997, warm-up of 8,000 steps to twice the paper's rate
(tensor2tensor/models/transformer.py at bafdc1b). Of that code and not taken over: 4,096 pieces a batch and
device, outputs up to 100 pieces longer than the input, how weights start.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(argument: str = "") -> ConfigDict:
    config = base.defaults()
    config.model.update(norm_placement="pre", dropout_sites="all", positions="sinusoidal_concat")
    # learning_rate_constant 2.0 with linear_warmup, rsqrt_decay and rsqrt_hidden_size
    peak = 2 * (config.model.d_model * 8_000) ** -0.5
    config.optimizer.update(beta2=0.997, warmup_steps=8_000, learning_rate=peak)
    return base.with_arguments(config, argument, {})

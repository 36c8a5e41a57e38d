"""Which later ideas help on every task?

Each idea was proposed for one kind of model. This study tests six ideas against one baseline on translation
and on language modeling: post-norm (section 5.4 of the paper, against Xiong et al. 2020), RMSNorm (Zhang and
Sennrich 2019), SwiGLU with as many parameters (Shazeer 2020), rotary positions (Su et al. 2021), normalized
queries and keys (Henry et al. 2020), and a deep encoder with a shallow decoder (Kasai et al. 2021).

    python -m experiments.launch --sweep=configs/sweeps/everywhere.py --root=runs/everywhere --seeds=5 \\
        --set=optimizer.warmup_steps=50 --set=translation:train.steps=400 --set=language:train.steps=400

The baseline has the same norms, activation and positions on every task. Language models have no encoder, so
the last idea does not apply to them.
"""

CONFIGS = {
    "translation": "configs/number_words.py",
    "language": "configs/gpt.py",
}
BASE = {
    "model.residual": "pre_norm",
    "model.norm": "layer_norm",
    "model.feed_forward": "relu",
    "model.positions": "sinusoidal",
}
VARIANTS = {
    "baseline": BASE,
    "post_norm": BASE | {"model.residual": "post_norm"},
    "rms_norm": BASE | {"model.norm": "rms_norm"},
    "swiglu": BASE | {"model.feed_forward": "swiglu", "model.equal_parameters": True},
    "rope": BASE | {"model.positions": "rope"},
    "qk_norm": BASE | {"model.qk_norm": True},
    "deep_encoder": BASE | {"model.encoder_layers": 3, "model.decoder_layers": 1},
}
SPLITS = {"translation": ("test",), "language": ("test",)}
METRICS = {"translation": ("exact_match", "chrf", "nll"), "language": ("bits_per_byte", "nll")}
PRIMARY = {"translation": ("nll", "test"), "language": ("bits_per_byte", "test")}

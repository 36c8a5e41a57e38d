"""Which later ideas help on every task?

Each idea was proposed for one kind of model. This study tests six ideas against one baseline on translation,
language modeling and image classification: post-norm (the paper's, section 3.1), RMSNorm (Zhang and Sennrich
2019), SwiGLU with as many parameters (Shazeer 2020), rotary positions (Su et al. 2021), normalized queries
and keys (Dehghani et al. 2023), and a deep encoder with a shallow decoder (Kasai et al. 2021).

    python -m experiments.launch --sweep=configs/sweeps/everywhere.py --root=runs/everywhere --seeds=5 \\
        --set=optimizer.warmup_steps=50 --set=translation:train.steps=400 --set=language:train.steps=400

The baseline has the same norms, activation and positions on every task. Only translation has an encoder and a
decoder, so the last idea does not apply to the other tasks.
"""

CONFIGS = {
    "translation": "configs/number_words.py",
    "language": "configs/gpt.py",
    "images": "configs/digits.py",
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
SPLITS = {"translation": ("test",), "language": ("test",), "images": ("test",)}
METRICS = {
    "translation": ("exact_match", "chrf", "nll"),
    "language": ("bits_per_byte", "nll"),
    "images": ("accuracy", "nll"),
}
PRIMARY = {"translation": ("nll", "test"), "language": ("bits_per_byte", "test"), "images": ("nll", "test")}

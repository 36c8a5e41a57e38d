"""Does pre-norm need less warm-up than post-norm?

Xiong et al. 2020 claim that a Transformer with pre-norm can be trained without warm-up, and that one with
post-norm cannot. The paper uses post-norm with 4,000 steps of warm-up (section 5.3).

    python -m experiments.launch --sweep=configs/sweeps/norm.py --root=runs/norm --seeds=5 \\
        --set=train.diagnostics=true
    python -m experiments.launch --sweep=configs/sweeps/norm.py --root=runs/norm_cosine --seeds=5 \\
        --set=train.diagnostics=true --set=optimizer.schedule=cosine

All runs have the same peak learning rate. With the paper's schedule (equation 3), a shorter warm-up also
lowers the learning rate after the warm-up. With `cosine`, the decay hardly depends on the warm-up.
`train.diagnostics` records the norm of the gradient of each layer.
"""

CONFIG = "configs/number_words.py"
GRID = {
    "model.residual": ("post_norm", "pre_norm"),
    "optimizer.warmup_steps": (300, 1, 100),
}
SPLITS = ("test",)
METRICS = ("exact_match", "chrf")

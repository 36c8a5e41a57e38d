"""Do the position schemes differ, on lengths seen in training and on longer sentences?

The paper reports "nearly identical results" for learned and sinusoidal positions (Table 3, row E). It also
says that sinusoids "may allow the model to extrapolate to sequence lengths longer than the ones encountered
during training" (section 3.5). Later schemes were proposed to extrapolate better.

    python -m experiments.launch --sweep=configs/sweeps/positions.py --root=runs/positions --seeds=5

The training lists of number_words have 1 to 4 numbers; the lists of test_long have 5 to 10 numbers. A learned
table has no trained vector beyond the longest training list. With `model.overflow` set to `clamp`, the last
trained vector is repeated there.
"""

CONFIG = "configs/number_words.py"
VARIANTS = {
    "sinusoidal": {"model.positions": "sinusoidal"},
    "sinusoidal_concat": {"model.positions": "sinusoidal_concat"},
    "learned": {"model.positions": "learned", "model.overflow": "clamp"},
    "none": {"model.positions": "none"},
    "relative": {"model.positions": "relative"},
    "t5_bias": {"model.positions": "t5_bias"},
    "alibi": {"model.positions": "alibi"},
    "rope": {"model.positions": "rope"},
}
SPLITS = ("test", "test_long")
METRICS = ("exact_match", "chrf")
PRIMARY = ("exact_match", "test_long")

"""Learned against sinusoidal positions (Table 3, row E: "nearly identical results"; section 3.5: sinusoids
"may allow the model to extrapolate to sequence lengths longer than the ones encountered during training").

    python -m experiments.launch --sweep=configs/sweeps/positions.py --root=runs/positions --seeds=3

number_words trains on lists of 1 to 4 numbers; test_long has lists of 5 to 10. A learned table has no vector
beyond the longest list trained on: `model.overflow` repeats the last vector there.
"""

CONFIG = "configs/number_words.py"
VARIANTS = {
    "sinusoidal": {"model.positions": "sinusoidal"},
    "learned": {"model.positions": "learned", "model.overflow": "clamp"},
}
SPLITS = ("test", "test_long")
METRICS = ("exact_match", "chrf")

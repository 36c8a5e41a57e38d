"""Recurrence against attention.

Bahdanau et al. 2015 (figure 2) claim that a model with a context vector of fixed size translates long
sentences badly, and that attention removes this weakness. This study tests both claims.

    python -m experiments.launch --sweep=configs/sweeps/recurrence.py --root=runs/recurrence --seeds=5

Three models of 0.98M to 1.01M parameters train on the same data with the same vocabulary. Each model uses the
learning rate (1e-3, 2e-3 or 4e-3) with the lowest validation loss after 600 steps. The training lists of
number_words have 1 to 4 numbers; the lists of test_long have 5 to 10 numbers. The results are in
docs/studies/recurrence.md.
"""

CONFIG = "configs/number_words.py"
RECURRENT = {"model.cell": "gru", "model.d_model": 160, "optimizer.learning_rate": 4e-3}
VARIANTS = {
    "transformer": {"model.kind": "transformer"},
    "fixed_context": {"model.kind": "recurrent", "model.num_layers": 2, **RECURRENT},
    "attention": {"model.kind": "recurrent_attention", "model.num_layers": 1, **RECURRENT},
}
SPLITS = ("test", "test_long")
METRICS = ("exact_match", "chrf")
PRIMARY = ("exact_match", "test_long")

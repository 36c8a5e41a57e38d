"""Recurrence against attention: does a fixed context lose long inputs, and does attention recover them
(Bahdanau et al. 2015, figure 2)?

    python -m experiments.launch --sweep=configs/sweeps/recurrence.py --root=runs/recurrence --seeds=3

Three models of 0.98 to 1.01M parameters on the same data with the same vocabulary. Each has the best of
three learning rates (1e-3, 2e-3, 4e-3) by validation loss after 600 steps; docs/studies/recurrence.md has
the results. number_words trains on lists of 1 to 4 numbers; test_long has lists of 5 to 10.
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

"""Table 3 at a small scale: the effect of each size and regularizer of the Transformer.

    python -m experiments.launch --sweep=configs/sweeps/table3.py --root=runs/table3 --seeds=3

20 rows; number_words trains on lists of 1 to 4 numbers, test_long has lists of 5 to 10. Each row changes
the fields that its namesake changes in the paper, to the small values of configs/table3.py. Beyond the
longest list trained on, learned positions repeat the last vector.
"""

from configs.table3 import ROWS

CONFIG = "configs/table3.py:number_words"
VARIANTS = {name: dict(row.small) for name, row in ROWS.items()}
VARIANTS["E-learned"]["model.overflow"] = "clamp"
SPLITS = ("test", "test_long")
METRICS = ("exact_match", "chrf", "bleu")

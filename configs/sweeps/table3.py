"""Table 3 at a small scale: which of the Transformer's sizes and regularisers does what?

    python -m experiments.launch --sweep=configs/sweeps/table3.py --root=runs/table3 --seeds=3

20 rows; number_words trains on lists of 1 to 4 numbers, and test_long asks for 5 to 10. Each row changes
what its namesake of the paper changes, by the small values of configs/table3.py; and learned positions go on
with the last one past the longest list trained on.
"""

from configs.table3 import ROWS

CONFIG = "configs/table3.py:number_words"
VARIANTS = {name: dict(row.small) for name, row in ROWS.items()}
VARIANTS["E-learned"]["model.overflow"] = "clamp"
SPLITS = ("test", "test_long")
METRICS = ("exact_match", "chrf", "bleu")

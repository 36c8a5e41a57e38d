"""The paper's Table 3 at a small scale: the effect of each size and regularizer of the Transformer.

    python -m experiments.launch --sweep=configs/sweeps/table3.py --root=runs/table3 --seeds=5

The study has 20 variants, which are the rows of the table. A variant changes the same fields as the row in
the paper, to the values that configs/table3.py has for the small scale. The training lists of number_words
have 1 to 4 numbers; the lists of test_long have 5 to 10 numbers. Beyond the longest training list, learned
positions repeat the last trained vector.
"""

from configs.table3 import ROWS

CONFIG = "configs/table3.py:number_words"
VARIANTS = {name: dict(row.small) for name, row in ROWS.items()}
VARIANTS["E-learned"]["model.overflow"] = "clamp"
SPLITS = ("test", "test_long")
METRICS = ("exact_match", "chrf", "bleu")
PUBLISHED = {
    name: {"paper: perplexity": row.perplexity, "paper: bleu": row.bleu} for name, row in ROWS.items()
}
PRIMARY = ("chrf", "test")

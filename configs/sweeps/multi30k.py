"""Do runs of one recipe on Multi30k agree, and do they reach the published score?

Wu et al. 2021 report 41.02 tokenized BLEU on test_2016_flickr for a Transformer of this size.

    python -m experiments.launch --sweep=configs/sweeps/multi30k.py:cpu --root=runs/multi30k_cpu --seeds=5
    python -m experiments.launch --sweep=configs/sweeps/multi30k.py --root=runs/multi30k --seeds=3

The first command trains the recipe for two CPU cores, and the second trains the full recipe.
"""

CONFIG = "configs/multi30k.py"
VARIANTS = {"recipe": {}}
SPLITS = ("test",)
METRICS = ("bleu_tok", "bleu", "chrf", "nll")

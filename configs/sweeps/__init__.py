"""Studies: each file defines CONFIG, VARIANTS (the first is the baseline), SPLITS and METRICS.

A study file is named on the command line: `--sweep=configs/sweeps/positions.py`.
"""

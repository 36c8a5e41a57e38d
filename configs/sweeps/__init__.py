"""Studies. Each file defines CONFIG, VARIANTS (the first variant is the baseline), SPLITS and METRICS.

Name a sweep file on the command line: `--sweep=configs/sweeps/positions.py`.
"""

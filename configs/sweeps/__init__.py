"""Studies. Each file defines CONFIG, VARIANTS or GRID, SPLITS and METRICS; docs/commands.md has the list.

Name a sweep file on the command line: `--sweep=configs/sweeps/positions.py`.
"""

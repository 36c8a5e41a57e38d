"""Experiment configs: each file states a claim and defines `get_config`; `sweeps/` holds studies.

A config file is named on the command line: `--config=configs/multi30k.py:cpu`.
"""

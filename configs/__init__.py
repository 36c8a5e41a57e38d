"""Experiment configs. The docstring of each file states a claim, and `get_config` returns the config.

Name a config file on the command line: `--config=configs/multi30k.py:cpu`. The folder `sweeps/` holds
studies.
"""

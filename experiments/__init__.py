"""How to run: one entry point a verb. `python -m experiments.<verb> --help` explains each."""

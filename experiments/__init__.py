"""Commands: flags, files, processes and printing around the `transformer` library.

Each command is a module that is run from the root of the checkout, as in `python -m experiments.train`.
It defines `define_flags(flags)` and `main(flags)`; `cli.call` runs it in the current process.
"""

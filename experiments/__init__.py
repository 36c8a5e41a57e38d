"""Commands: flags, files, processes and printing around the `transformer` library.

Each command is a module that is run from the root of the checkout, as in `python -m experiments.train`.
It defines `define_flags(flags)` and `main(flags)`; `cli.call` runs it in the current process.
"""

import importlib.util
import os
import signal
import sys

# A supervisor may close the standard streams. Each gets the lowest free descriptor, so that no file takes it.
for number, name in enumerate(("stdin", "stdout", "stderr")):
    if getattr(sys, name) is None:
        setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "w" if number else "r"))

if importlib.util.find_spec("absl") is None:
    print(
        "error: this Python lacks the packages of the project; run make env, then "
        'export PATH="$PWD/.venv/bin:$PATH"',
        file=sys.stderr,
    )
    sys.exit(2)

if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until `cli.run`, Ctrl-C ends a command without a traceback: loading packages takes seconds. argv[0] is
    # "-m" only while `python -m experiments.COMMAND` imports this package; other imports change nothing.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

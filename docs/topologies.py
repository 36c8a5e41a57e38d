"""Fills the table of configs and TPU slices in docs/accelerators.md.

    python docs/topologies.py

Each entry compiles one training step and one search, which takes some minutes. It needs the extra `tpu`.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parent / "accelerators.md"
MARKERS = "<!-- topologies -->\n", "<!-- end of topologies -->\n"
HEADER = """| config | slice | data x fsdp x tensor | memory needed, of available | exchange per update |
|---|---|---|---:|---|
"""
BFLOAT16 = "--config.model.dtype=bfloat16"
# Config, changes and slice of each row.
ENTRIES = [
    ("configs/base.py", [], "v5e:1x1"),
    ("configs/base.py", [], "v5e:2x2"),
    ("configs/base.py", ["--config.train.fsdp=4"], "v5e:2x2"),
    ("configs/base.py", [], "v6e:2x2"),
    ("configs/big.py", [], "v5e:2x2"),
]


def row(config: str, changes: list[str], topology: str) -> str:
    """Returns the row of a config and a slice."""
    command = ["experiments.describe", f"--config={config}", f"--topology={topology}", "--json", BFLOAT16]
    output = subprocess.run(
        [sys.executable, "-m", *command, *changes], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    entry = json.loads(output)["topology"]
    training, mesh = entry["training"], entry["mesh"]
    needed = training["needed_bytes"]
    amount = "more" if needed is None else f"{needed / 2**30:.2f}"
    if not training["fits"]:
        amount += " (does not fit)"
    exchanges = [
        f"{kind} {exchange['bytes'] / 2**20:,.0f} MiB ({', '.join(exchange['dtypes'])})"
        for kind, exchange in training.get("collectives", {}).items()
    ]
    return (
        f"| `{config}` | `{topology}` | {' x '.join(map(str, mesh.values()))} "
        f"| {amount} of {entry['available_bytes'] / 2**30:.2f} GiB | {'; '.join(exchanges) or 'none'} |\n"
    )


def main() -> None:
    """Compiles the entries, prints each row as it is there, and writes the table."""
    if MARKERS[0] not in PAGE.read_text():
        sys.exit(f"{PAGE} has no line {MARKERS[0].strip()}; restore it")
    rows = []
    for entry in ENTRIES:
        rows.append(row(*entry))
        print(rows[-1], end="", flush=True)
    start, end = MARKERS
    table = f"{start}{HEADER}{''.join(rows)}{end}"
    page = re.sub(f"{start}.*{end}", lambda _: table, PAGE.read_text(), flags=re.DOTALL)
    PAGE.write_text(page)


if __name__ == "__main__":
    main()

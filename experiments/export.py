"""Writes a trained model in the format of another toolkit, and compares the two.

    python -m experiments.export --workdir=runs/m30k --format=ctranslate2 --out=exports/m30k
    python -m experiments.export --workdir=runs/m30k --format=marian --out=exports/m30k-marian

`ctranslate2` is the format of CTranslate2; `marian` is the MarianMTModel of Hugging Face's transformers. A
model that a format cannot hold is refused. Both need: pip install -e '.[peers]'.
"""

import sys
from pathlib import Path

from absl import flags as absl_flags
from absl.flags import FlagValues

from experiments import cli
from experiments.formats import FORMATS, export, largest_difference
from experiments.run_folder import Run
from transformer.config import UserError, choose


def define_flags(flags: FlagValues) -> None:
    cli.define_workdir(flags)
    absl_flags.DEFINE_string(
        "format", None, f"One of: {', '.join(FORMATS)}.", flag_values=flags, required=True
    )
    absl_flags.DEFINE_string("out", None, "Folder to write; new or empty.", flag_values=flags, required=True)


def main(flags: FlagValues) -> None:
    form = choose(FORMATS, flags.format, "--format")
    form.require(f"--format={flags.format}")
    run = Run(flags.workdir)
    form.check(run.config.model)
    out = Path(flags.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out} exists already; name another folder")
    trained = run.load()
    export(trained, form, out)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    difference = largest_difference(trained, form, out)
    print(f"log-probabilities of random sentences differ by {difference:.1e} nats per token")
    if (dtype := trained.config.model.dtype) != "float32":
        print(f"compared in float32, in which the toolkit computes; the run computes in {dtype}")
    print(f"differences: {form.note}\n{form.usage.format(folder=out)}")


if __name__ == "__main__":
    cli.run(sys.modules[__name__])

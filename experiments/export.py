"""Writes a trained model in the format of another toolkit, and compares the exported model with ours.

    python -m experiments.export --workdir=runs/m30k --format=ctranslate2 --out=exports/m30k
    python -m experiments.export --workdir=runs/m30k --format=marian --out=exports/m30k-marian

`ctranslate2` is the format of CTranslate2; `marian` is the MarianMTModel of Hugging Face's transformers. The
command refuses a model that the format does not support. Both formats need pip install -e '.[peers]'.
"""

import sys
from pathlib import Path

from absl import flags as absl_flags
from absl.flags import FlagValues

from experiments import cli
from experiments.formats import FORMATS, export, largest_difference
from experiments.process import set_up_jax
from experiments.run_folder import Run
from experiments.trained_model import load_trained
from transformer.config import UserError, choose


def define_flags(flags: FlagValues) -> None:
    cli.define_workdir(flags)
    absl_flags.DEFINE_string(
        "format", None, f"Format to write; one of: {', '.join(FORMATS)}.", flag_values=flags, required=True
    )
    absl_flags.DEFINE_string(
        "out", None, "Folder to write; must be new or empty.", flag_values=flags, required=True
    )


def main(flags: FlagValues) -> None:
    set_up_jax()
    form = choose(FORMATS, flags.format, "--format")
    form.require(f"--format={flags.format}")
    run = Run(flags.workdir)
    form.check(run.config.model)
    out = Path(flags.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out} exists and is not an empty folder; name another folder")
    trained = load_trained(run, task="translation")
    export(trained, form, out)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    difference = largest_difference(trained, form, out)
    print(f"log-probabilities of random sentences differ by at most {difference:.1e} nats per token")
    if (dtype := trained.config.model.dtype) != "float32":
        print(f"both models were compared in float32, although the run computes in {dtype}")
    print(f"remaining differences: {form.note}\n{form.usage.format(folder=out)}")


if __name__ == "__main__":
    cli.run(sys.modules[__name__])

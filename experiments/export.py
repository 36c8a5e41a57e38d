"""Writes a trained model in the format of another toolkit, and asks that toolkit what it makes of it.

    python -m experiments.export --workdir=runs/m30k --format=ctranslate2 --out=exports/m30k
    python -m experiments.export --workdir=runs/m30k --format=marian --out=exports/m30k-marian

`ctranslate2` is what CTranslate2 translates with; `marian` is the MarianMTModel of Hugging Face's
transformers. A model that a format cannot hold is refused. They need: pip install -e '.[peers]'.
"""

from pathlib import Path

from absl import flags

from experiments import entry
from experiments.exporting import FORMATS
from experiments.exporting.compare import difference
from experiments.exporting.format import export
from experiments.runs import Run
from transformer.config import UserError, choose

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder.", required=True)
FORMAT = flags.DEFINE_string("format", None, f"One of: {', '.join(FORMATS)}.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder to write; it must not hold anything yet.", required=True)


def main() -> None:
    form = choose(FORMATS, FORMAT.value, "--format")
    form.require(f"--format={FORMAT.value}")
    run = Run(WORKDIR.value)
    form.check(run.config.model)
    out = Path(OUT.value)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out} is there already; name another folder")
    trained = run.load()
    export(trained, form, out)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    print(
        f"log-probabilities of random sentences differ by {difference(trained, form, out):.1e} nats a piece"
    )
    if trained.config.model.dtype != "float32":
        print(f"compared in float32, in which it computes; the run computes in {trained.config.model.dtype}")
    print(f"what differs: {form.note}\n{form.usage.format(folder=out)}")


if __name__ == "__main__":
    entry.run(main)

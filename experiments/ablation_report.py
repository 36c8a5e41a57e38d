"""The report of `evaluate --ablate=all`: the effect of removing each part of a model."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from experiments.model_plots import ablation_map
from experiments.plots import png
from experiments.progress import console, counting
from experiments.score_files import ScoreFiles
from experiments.trained_model import Trained
from transformer.decoding.scorer import Scorer
from transformer.evaluation.ablation import Effect, effects, parts
from transformer.files import atomic_write
from transformer.json_files import write_sealed
from transformer.tasks.translation import SentencePairs


def report_ablation(files: ScoreFiles, test_set: SentencePairs, trained: Trained) -> list[Path]:
    """Removes each part of a model in turn, prints the effects on a test set, and returns the new files."""
    with counting(len(parts(trained.model.config)), f"{test_set.name}: removing", "parts") as progress:
        measured, num_tokens = measure_effects(trained, test_set.sources, test_set.references, progress)
    _print_effects(measured, f"{test_set.name}: loss added by removing a part, in nats per token")
    values = {
        "identity": dict(trained.identity),
        "content": test_set.digest,
        "checkpoints": trained.steps,
        "sentences": len(test_set.sources),
        "tokens": num_tokens,
        "effects": [effect._asdict() for effect in measured],
    }
    path = files.path(".json")
    path.parent.mkdir(exist_ok=True)
    write_sealed(path, values)
    figure_path = path.with_suffix(".png")
    title = f"{files.run.folder.name}, {test_set.name}: effect of removing one part"
    cells = effect_cells(measured, parts(trained.model.config))
    atomic_write(figure_path, png(ablation_map(cells, title)))
    return [path, figure_path]


def measure_effects(
    trained: Trained,
    sources: Sequence[str],
    references: Sequence[str],
    progress: Callable[[int], None] = lambda num_done: None,
) -> tuple[list[Effect], int]:
    """Removes each part of a model in turn. Returns the effects, and the number of reference tokens."""
    num_tokens = np.array([len(tokens) for tokens in trained.tokenizer.encode_arrays(references)])

    def nats(model, params):
        scorer = Scorer(model, params, trained.tokenizer, trained.config.decode)
        log_probs = scorer.log_probs(sources, references)
        return -np.array([sentence.sum(dtype=np.float64) for sentence in log_probs])

    return effects(trained.model, trained.params, nats, num_tokens, progress), int(num_tokens.sum())


def _print_effects(measured: Sequence[Effect], title: str) -> None:
    table = Table("removed part", "added loss", "95% interval", title=title, title_justify="left")
    for effect in measured:
        table.add_row(effect.part, f"{effect.difference:+.4f}", f"{effect.low:+.4f} to {effect.high:+.4f}")
    console().print(table)
    print("intervals are over the sentences of this test set, and say nothing about other seeds")


def effect_cells(measured: Sequence[Effect], order: Sequence[str]) -> dict[str, dict[str, float]]:
    """Returns the effects as cells[sub-layer][head], in the given order; "all" is the whole sub-layer."""
    differences = {effect.part: effect.difference for effect in measured}
    cells: dict[str, dict[str, float]] = {}
    for part in order:
        sublayer, _, head = part.partition(".head.")
        cells.setdefault(sublayer, {})[head or "all"] = differences[part]
    return cells

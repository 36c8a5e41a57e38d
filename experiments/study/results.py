"""Study folders: stores the plan of a study in study.json, and reads the scores of the runs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.run_folder import Run
from experiments.study.sweep import PlannedRun, Sweep
from transformer.config import UserError, difference, to_dict
from transformer.data.builders import present_name
from transformer.files import path_component, read_sealed, refuse_links, seal, write_sealed

STUDY_FILE = "study.json"
MIN_SENTENCES = 10  # ranges of source lengths with fewer sentences are not reported


@dataclasses.dataclass(frozen=True)
class Study:
    """The scores of a study.

    Attributes:
      sweep: the plan of the study.
      scores: scores[variant][seed][split] is the content of eval/<split>.json, if that file exists.
      diverged: the seeds of each variant whose training diverged.
    """

    sweep: Sweep
    scores: dict[str, dict[int, dict[str, dict[str, Any]]]]
    diverged: dict[str, list[int]]

    def values(self, variant: str, split: str, metric: str) -> list[float]:
        """Returns the scores of a metric, one per seed. Seeds without a score are left out."""
        runs = self.scores[variant]
        return [runs[seed][split][metric] for seed in sorted(runs) if metric in runs[seed].get(split, {})]

    def by_length(self, variant: str, split: str, metric: str) -> dict[int, list[float]]:
        """Returns one score per seed for each range of source lengths. The key is the upper end in tokens.

        Ranges with fewer than `MIN_SENTENCES` sentences are left out.
        """
        scores: dict[int, list[float]] = {}
        for _, splits in sorted(self.scores[variant].items()):
            for bucket in splits[split]["by_length"] if split in splits else []:
                if bucket["sentences"] >= MIN_SENTENCES and metric in bucket:
                    scores.setdefault(bucket["most"], []).append(bucket[metric])
        return dict(sorted(scores.items()))


def is_complete(run: Run, planned: PlannedRun, splits: Sequence[str], metrics: Sequence[str]) -> bool:
    """Returns whether a run is finished, and has scores for all metrics on all splits.

    Scores count only if they are undamaged, and were made by the last checkpoint of this run, from the
    planned config and the present content of the data. A finished run needs no checkpoints here.
    """
    try:
        result, evaluations = run.result, read_evaluations(run, splits)
    except UserError:
        return False
    return (
        result.get("status") == "done"
        and result["identity"]["config"] == planned.config_hash
        and result["identity"]["data"] == (present_name(planned.config.data) or result["identity"]["data"])
        and len(evaluations) == len(splits)
        and all(
            scores["checkpoints"][-1] == result["step"] and scores.keys() >= set(metrics)
            for scores in evaluations.values()
        )
    )


def has_diverged(run: Run, planned: PlannedRun) -> bool:
    """Returns whether the training of a run diverged with the planned config, and would diverge again."""
    try:
        return run.result.get("reason") == "diverged" and run.config_hash == planned.config_hash
    except UserError:
        return False


def read_evaluations(run: Run, splits: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns the scores of a run on those splits that have been evaluated, by split.

    Raises:
      UserError: a file is damaged, or does not belong to the run.
    """
    paths = {split: run.folder / "eval" / f"{path_component(split, 'a split')}.json" for split in splits}
    evaluations = {split: read_sealed(path) for split, path in paths.items() if path.exists()}
    if evaluations:
        identity = run.result.get("identity")
        for split, scores in evaluations.items():
            if scores["identity"] != identity or scores["identity"]["config"] != run.config_hash:
                raise UserError(
                    f"{paths[split]} is not an evaluation of this run; delete it and launch the study again"
                )
    return evaluations


def check_root(root: Path, sweep: Sweep, runs: Sequence[PlannedRun]) -> None:
    """Checks that a study can use a folder: the folder is new or holds the same study.

    Raises:
      UserError: the folder holds a run, another study, or this study with other settings.
    """
    advice = "; name another --root"
    refuse_links(root)
    if (root / "config.json").exists():
        raise UserError(f"{root} is a run, not a study{advice}")
    if not (root / STUDY_FILE).exists():
        return
    stored = read_sealed(root / STUDY_FILE)
    if stored["name"] != sweep.name:
        raise UserError(f"{root} holds the study {stored['name']!r}, not {sweep.name!r}{advice}")
    stored_ids = {run_id.rpartition("-")[0]: run_id for run_id in stored["runs"]}
    for run in runs:
        stored_id = stored_ids.get(run.id.rpartition("-")[0], run.id)
        if stored_id != run.id:
            message = f"{root} holds this study with other settings"
            if (root / stored_id / "config.json").exists():
                message += f": {difference(Run(root / stored_id).config, run.config)}"
            raise UserError(message + advice)


def write_study(root: Path, sweep: Sweep, runs: Sequence[PlannedRun]) -> None:
    """Writes study.json, in which `read_study` finds the run folders. Earlier runs and variants are kept."""
    values = dataclasses.asdict(sweep)
    run_ids = [run.id for run in runs]
    if (root / STUDY_FILE).exists():
        stored = read_sealed(root / STUDY_FILE)
        values["variants"] = {**stored["variants"], **values["variants"]}
        run_ids = list(dict.fromkeys([*stored["runs"], *run_ids]))
    write_sealed(root / STUDY_FILE, {**values, "runs": run_ids})


def read_study(root: Path) -> Study:
    """Reads a study from its folder.

    Raises:
      UserError: the folder is not a study.
    """
    refuse_links(root)
    if (root / "config.json").is_file():
        raise UserError(f"{root} is a run, not a study; name the study's folder, or use experiments.evaluate")
    if not (root / STUDY_FILE).is_file():
        raise UserError(
            f"{root} is not a study: study.json is missing; "
            f"start a study with python -m experiments.launch --sweep=FILE --root={root}"
        )
    stored = read_sealed(root / STUDY_FILE)
    sweep = Sweep(**{field.name: stored[field.name] for field in dataclasses.fields(Sweep)})
    scores: dict[str, dict[int, dict[str, dict]]] = {variant: {} for variant in sweep.variants}
    diverged: dict[str, list[int]] = {variant: [] for variant in sweep.variants}
    contents: dict[str, tuple[str, str]] = {}
    for run_id in stored["runs"]:
        variant, _, name = run_id.partition("/")
        run = Run(root / path_component(variant, "a variant") / path_component(name, "a run of the study"))
        if evaluations := read_evaluations(run, sweep.splits):
            _check_content(contents, run, run_id)
            scores[variant][int(name.partition("-")[0])] = evaluations
        if run.result.get("reason") == "diverged":
            diverged[variant].append(int(name.partition("-")[0]))
    return Study(sweep, scores, diverged)


def _check_content(contents: dict[str, tuple[str, str]], run: Run, run_id: str) -> None:
    """Checks that runs with the same data settings were trained on the same texts.

    Args:
      contents: for the settings of earlier runs, the content and the first run; the run is added.
      run: the run.
      run_id: the id of the run, for the message.

    Raises:
      UserError: the run was trained on other texts.
    """
    settings, content = seal(to_dict(run.config)["data"]), run.result["identity"]["content"]
    first_content, first_id = contents.setdefault(settings, (content, run_id))
    if content != first_content:
        raise UserError(
            f"{run_id} and {first_id} were trained on different texts; restore the text of one of them, "
            "delete the other run, and launch the study again"
        )

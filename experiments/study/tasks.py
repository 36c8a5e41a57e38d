"""Studies of several tasks.

The sweep file names a config for each task. Each task is a study in a folder of its own, and study.json of
the root folder lists the tasks and the variants that do not apply to them. All tests are one family.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.config_changes import read_changes
from experiments.study.results import Study, read_study
from experiments.study.statistics import compare_tasks
from experiments.study.study_file import STUDY_FILE, check_folder, check_is_study
from experiments.study.sweep import Changes, PlannedRun, Sweep, refusals
from transformer.config import UserError, choose
from transformer.files import path_component
from transformer.json_files import read_sealed, write_sealed

# refusals[task][variant] is the reason why a variant does not apply.
Refusals = Mapping[str, Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class TaskStudies:
    """The scores of a study of several tasks.

    Attributes:
      name: the name of the study.
      question: the question of the study.
      variants: the names of all variants.
      studies: the study of each task. The p-values are adjusted for the tests of all tasks.
    """

    name: str
    question: str
    variants: list[str]
    studies: dict[str, Study]


def name_of(sweeps: Mapping[str, Sweep]) -> str:
    """Returns the name of a study from its sweeps by task."""
    return next(iter(sweeps.values())).name.partition("/")[0]


def read_task_changes(texts: Sequence[str], tasks: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Reads the values of --set for each task: KEY=VALUE is for all tasks, TASK:KEY=VALUE for one task.

    Raises:
      UserError: there is no such task; see also `read_changes`.
    """
    by_task: dict[str, list[str]] = {task: [] for task in tasks}
    for text in texts:
        task, colon, _ = text.partition("=")[0].partition(":")
        if colon and "" not in by_task:
            choose(by_task, task, f"the task in --set={text}").append(text.removeprefix(f"{task}:"))
        else:
            for changes in by_task.values():
                changes.append(text)
    return {task: read_changes(changes, "set") for task, changes in by_task.items()}


@contextlib.contextmanager
def naming(task: str) -> Iterator[None]:
    """Adds the name of a task, unless it is empty, to the message of a `UserError`."""
    try:
        yield
    except UserError as error:
        if not task:
            raise
        raise UserError(f"task {task}: {error}") from error


def applicable(
    sweeps: Mapping[str, Sweep], changes: Mapping[str, Changes]
) -> tuple[dict[str, Sweep], dict[str, dict[str, str]]]:
    """Returns the study of each task with the variants that apply to it, and the reasons for the others.

    A variant does not apply to a task if the config of the task refuses it, does not read a field that it
    changes, or is the same as with another variant. The study of a single config is not changed.

    Raises:
      UserError: a variant applies to no task, or the baseline does not apply to a task.
    """
    if "" in sweeps:
        return dict(sweeps), {}
    refused: dict[str, dict[str, str]] = {}
    for task, sweep in sweeps.items():
        with naming(task):
            refused[task] = refusals(sweep, changes[task])
    for variant in next(iter(sweeps.values())).variants:
        reasons = {task: refused[task][variant] for task in sweeps if variant in refused[task]}
        if len(reasons) == len(sweeps):
            listed = "; ".join(f"{task}: {reason}" for task, reason in reasons.items())
            if len({*reasons.values()}) == 1:
                listed = next(iter(reasons.values()))
            raise UserError(f"variant {variant} applies to no task, so change it or leave it out: {listed}")
    kept = {
        task: dataclasses.replace(
            sweep,
            variants={name: fields for name, fields in sweep.variants.items() if name not in refused[task]},
        )
        for task, sweep in sweeps.items()
    }
    return kept, refused


def check_tasks_differ(runs: Sequence[PlannedRun]) -> None:
    """Checks that no two tasks have the same runs, as tasks with the same config have.

    Raises:
      UserError: two tasks have the same variants with the same configs.
    """
    by_task: dict[str, set[tuple[str, str]]] = {}
    for run in runs:
        by_task.setdefault(run.task, set()).add((run.variant, run.config_hash))
    tasks: dict[frozenset[tuple[str, str]], str] = {}
    for task, configs in by_task.items():
        first = tasks.setdefault(frozenset(configs), task)
        if first != task:
            raise UserError(
                f"tasks {first} and {task} have the same config; leave out one of them, "
                f"or change one, as with --set={task}:FIELD=VALUE"
            )


def refusal_lines(refused: Refusals) -> list[str]:
    """Returns a line for each variant that does not apply to a task."""
    return [
        f"{variant} does not apply to {task}: {reason}"
        for task, reasons in refused.items()
        for variant, reason in reasons.items()
    ]


def check_tasks_root(root: Path, name: str) -> None:
    """Checks that a study of several tasks can use a folder.

    Raises:
      UserError: the folder contains something else.
    """
    check_folder(root)
    if not (root / STUDY_FILE).exists():
        return
    stored = _read(root)
    if stored is None:
        raise UserError(f"{root} contains a study of a single config; name another --root")
    if stored["name"] != name:
        raise UserError(f"{root} contains the study {stored['name']!r}, not {name!r}; name another --root")


def write_tasks(root: Path, sweeps: Mapping[str, Sweep], refused: Refusals) -> None:
    """Writes study.json of a root folder. Earlier tasks and variants stay in it.

    Args:
      root: the root folder.
      sweeps: the study of each task, with the variants that apply to it.
      refused: the reasons of the other variants.
    """
    stored = (_read(root) if (root / STUDY_FILE).exists() else None) or {"variants": [], "tasks": {}}
    tasks = dict(stored["tasks"])
    current: dict[str, None] = {}
    for task, sweep in sweeps.items():
        current |= dict.fromkeys([*sweep.variants, *refused[task]])
        earlier = {name: reason for name, reason in tasks.get(task, {}).items() if name not in sweep.variants}
        tasks[task] = earlier | refused[task]
    values = {
        "name": name_of(sweeps),
        "question": next(iter(sweeps.values())).question,
        "variants": list(dict.fromkeys([*stored["variants"], *current])),
        "tasks": tasks,
    }
    write_sealed(root / STUDY_FILE, values)


def _read(root: Path) -> dict[str, Any] | None:
    """Returns the content of study.json in a root folder; None if the study has a single config.

    Raises:
      UserError: the file is damaged or has an invalid name.
    """
    path = root / STUDY_FILE
    if "tasks" not in read_sealed(path):
        return None
    types = {"name": str, "question": str, "variants": list[str], "tasks": dict[str, dict[str, str]]}
    stored = read_sealed(path, types)
    for task, reasons in stored["tasks"].items():
        path_component(task, f"the name of a task in {path}")
        for variant in reasons:
            choose(dict.fromkeys(stored["variants"]), variant, f"a variant of {task} in {path}")
    for variant in stored["variants"]:
        path_component(variant, f"the name of a variant in {path}")
    if not stored["tasks"]:
        raise UserError(f"{path} names no tasks; launch the study again")
    return stored


def task_folders(root: Path) -> dict[str, Path]:
    """Returns the folder of the study of each task. If the study has a single config, the name is empty.

    Raises:
      UserError: the folder is not a study, or study.json of the study or of a task is damaged or missing.
    """
    check_is_study(root)
    stored = _read(root)
    if stored is None:
        return {"": root}
    for task in stored["tasks"]:
        if not (path := root / task / STUDY_FILE).is_file():
            raise UserError(
                f"{path} is missing; restore it, or launch the study again: "
                f"python -m experiments.launch --sweep=FILE --root={root}"
            )
    return {task: root / task for task in stored["tasks"]}


def parent_study(root: Path) -> Path | None:
    """Returns the root folder of the study of which a folder is a task; None if it is not a task."""
    parent = root.resolve().parent
    if not (parent / STUDY_FILE).is_file():
        return None
    stored = _read(parent)
    return parent if stored is not None and root.resolve().name in stored["tasks"] else None


def read_tasks(root: Path) -> TaskStudies:
    """Reads a study of several tasks from its folder.

    Raises:
      UserError: the folder is not such a study, or its files are damaged or do not belong together.
    """
    folders = task_folders(root)
    stored = _read(root)
    if stored is None:
        raise UserError(f"{root} is a study of a single config, not of several tasks")
    studies = {task: read_study(folder) for task, folder in folders.items()}
    family = compare_tasks(
        {
            task: (scores, study.sweep.baseline)
            for task, study in studies.items()
            if (scores := study.compared_scores())
        }
    )
    return TaskStudies(
        stored["name"],
        stored["question"],
        stored["variants"],
        {
            task: dataclasses.replace(study, refused=stored["tasks"][task], family=family.get(task, {}))
            for task, study in studies.items()
        },
    )

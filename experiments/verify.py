"""Checks the files of a run or of a study, and reports damage and contradictions.

    python -m experiments.verify --workdir=runs/demo
    python -m experiments.verify --root=runs/positions

The command reads the config, the result, all checkpoints, the vocabulary, the metric log, the evaluations and
the prepared data, and changes nothing. It prints a line for each problem. If there is a problem, the exit
status is 2.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import flags as absl_flags
from absl.flags import FlagValues

from experiments import cli
from experiments.process import USAGE
from experiments.progress import counting
from experiments.run_folder import Run
from experiments.score_files import SCORE_TYPES, TEXT_FILES, ScoreFiles
from experiments.study.results import read_study
from experiments.study.study_file import run_folders
from experiments.study.tasks import task_folders
from transformer.config import UserError
from transformer.json_files import check_types, read_sealed
from transformer.tasks import open_task, task_type
from transformer.training.checkpoints import Checkpoints
from transformer.training.metric_log import read_metrics


def define_flags(flags: FlagValues) -> None:
    cli.define_workdir(flags, required=False)
    absl_flags.DEFINE_string("root", None, "Folder of a study.", flag_values=flags)


def main(flags: FlagValues) -> int:
    if (flags.workdir is None) == (flags.root is None):
        problem = "missing" if flags.root is None else "given"
        raise UserError(f"--workdir and --root are both {problem}; give one of them")
    if flags.workdir is not None:
        folders = [Path(flags.workdir)]
        _ = Run(folders[0]).config  # refuses a folder that is not a run
    else:
        studies = task_folders(Path(flags.root)).values()
        folders = [folder for study in studies for folder in run_folders(study)]
    problems = []
    with counting(len(folders), "verifying", "runs") as progress:
        for number, folder in enumerate(folders, start=1):
            verification = Verification(folder)
            lines = verification.problems or [f"no problems; {', '.join(verification.checked)}"]
            print("\n".join(f"{folder}: {line}" for line in lines))
            problems += verification.problems
            progress(number)
    if flags.root is not None and not problems:
        for study in studies:
            read_study(study)  # checks that the runs belong together
    return USAGE if problems else 0


class Verification:
    """The result of checking a run.

    Attributes:
      problems: one message per problem.
      checked: one phrase per kind of file, such as "checkpoints: 2".
    """

    def __init__(self, folder: Path):
        """Checks the run in a folder."""
        self.problems: list[str] = []
        self.checked: list[str] = []
        self._run = run = self._try(lambda: Run(folder))
        if run is None or self._try(lambda: run.config) is None:
            return
        result = self._try(lambda: run.result)
        identity = self._verify_checkpoints(result or {})
        self._try(lambda: read_metrics(run.folder))
        if identity is not None:
            self._verify_data(identity)
        self._verify_evaluations()

    def _try(self, read: Callable[[], Any]) -> Any:
        """Returns the result of `read`. If `read` raises an error, adds a problem and returns None."""
        try:
            return read()
        except UserError as error:
            self.problems.append(str(error))
            return None

    def _verify_checkpoints(self, result: dict[str, Any]) -> dict[str, str] | None:
        """Checks all checkpoints. Returns the identity of the newest undamaged one; None if there is none."""
        folder = self._run.folder / "checkpoints"
        if not folder.exists():
            self.checked.append("checkpoints: none")
            return None
        with contextlib.closing(Checkpoints(folder)) as checkpoints:
            steps = checkpoints.steps
            verified = [self._try(lambda step=step: checkpoints.verify(step)) for step in steps]
        if result.get("status") == "done" and result["step"] not in steps:
            self.problems.append(f"checkpoint {result['step']}, the last of the training, is missing")
        whole = [metadata for metadata in verified if metadata is not None]
        for metadata in whole:
            if metadata["identity"] != whole[-1]["identity"]:
                self.problems.append(f"checkpoint {metadata['step']} is from another run")
            elif metadata["identity"]["config"] != self._run.config_hash:
                self.problems.append(
                    f"config.json is not the config that checkpoint {metadata['step']} was trained with"
                )
        self.checked.append(f"checkpoints: {len(steps)}")
        return whole[-1]["identity"] if whole else None

    def _verify_data(self, identity: dict[str, str]) -> None:
        config = self._run.config
        if not task_type(config).is_prepared(config, identity):
            self.checked.append("data: not prepared on this machine")
            return
        task = self._try(lambda: open_task(config, self._run.folder, stored=identity, may_prepare=False))
        if task is not None:
            for split in task.splits:
                self._try(lambda split=split: task.check_split(split))
            self.checked.append(f"data: {identity['data']} ({', '.join(task.splits)})")

    def _verify_evaluations(self) -> None:
        files = list(self._score_files())
        for score_files in files:
            # A study may be stored without its weights and without the texts of its evaluations.
            has_texts = any(score_files.path(ending).exists() for ending in TEXT_FILES)
            self._try(score_files.read if has_texts else score_files.read_scores)
        self.checked.append(f"evaluations: {len(files)}")

    def _score_files(self) -> Iterator[ScoreFiles]:
        for path in sorted((self._run.folder / "eval").glob("*.json")):
            values = self._try(lambda path=path: read_sealed(path))
            if values is None or "test_set" not in values:  # damaged, or not an evaluation but a comparison
                continue
            scores = self._try(lambda path=path, values=values: check_types(path, values, SCORE_TYPES))
            if scores is not None:
                files = ScoreFiles(self._run, scores["test_set"], scores["changes"], scores["ablated"])
                if files.path(".json") == path:
                    yield files
                else:
                    name = files.path(".json").name
                    self.problems.append(f"{path} contains the evaluation {name}; rename the file to {name}")


if __name__ == "__main__":
    cli.run(sys.modules[__name__])

"""Run folders of a study, written without training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.run_folder import Run
from experiments.study.sweep import PlannedRun, Sweep
from transformer.json_files import write_sealed
from transformer.tasks import task_type

# A study of two variants. The path of its config is relative to the root of the project.
DEMO = Sweep(
    name="demo",
    config="configs/number_words.py",
    variants={"base": {}, "deep": {"model.num_layers": 3}},
    splits=("test", "test_long"),
    metrics=("exact_match", "bleu"),
    question="Does depth help?",
    baseline="base",
    primary=("exact_match", "test"),
    tune={},
    equal=None,
)
# A sweep file of two variants.
RATES = """
CONFIG = "configs/number_words.py:smoke"
VARIANTS = {"slow": {"optimizer.learning_rate": 1e-3}, "fast": {"optimizer.learning_rate": 1e-2}}
SPLITS = ("test",)
METRICS = ("exact_match", "chrf")
"""


def write_run(
    root: Path,
    planned: PlannedRun,
    scores: Mapping[str, Mapping[str, Any]],
    status: str = "done",
    result: Mapping[str, Any] | None = None,
    **identity: str,
) -> Run:
    """Writes the files of a run of 20 steps that was evaluated on the splits in `scores`.

    Args:
      root: the folder of the study.
      planned: the run.
      scores: the scores by split.
      status: the status in result.json.
      result: further entries of result.json.
      **identity: entries that replace those of the planned run's identity.
    """
    run = Run(root / planned.id)
    run.begin(planned.config)
    made_from = {
        "config": planned.config_hash,
        "data": task_type(planned.config).present_data(planned.config),
        "content": "texts",
        "vocabulary": "tokens",
    } | identity
    figures = {"step": 20, "seconds": 60.0, "validation": {}, "params_sha256": "0" * 64}
    run.write_result(**{"status": status, "identity": made_from} | figures | (result or {}))
    for split, values in scores.items():
        path = run.folder / "eval" / f"{split}.json"
        path.parent.mkdir(exist_ok=True)
        evaluation = {
            "identity": made_from,
            "test_set": split,
            "changes": {},
            "ablated": "",
            "checkpoints": [10, 20],
            "params_sha256": "0" * 64,
            "content": "test set",
            "files": {},
            "signatures": {},
            "by_length": [],
            "sentences": 1,
        }
        write_sealed(path, evaluation | values)
    return run

"""Scores a trained model on splits of the run's data set.

    python -m experiments.evaluate --workdir=runs/m30k --split=test
    python -m experiments.evaluate --workdir=runs/m30k --split=test --compare=runs/other
    python -m experiments.evaluate --workdir=runs/m30k --set=decode.beam_size=1 --compare=runs/m30k

The command writes three files into the run folder: eval/<split>.json has the scores, eval/<split>.hyp.txt the
translations and eval/<split>.ref.txt the references. sacreBLEU's command line can read the two text files.
With --set, the changes are part of the file names: eval/<split>,decode.beam_size=1.json.

With --compare, the command also writes eval/<split>.compare-<other run>.json, which has the difference of
each score between the two runs, with p-values. Evaluate the other run first, because --compare only reads
files. To compare with an evaluation that used --set, add the changes:
--compare=runs/other,decode.beam_size=1.
"""

import re
import sys
from typing import Any

from absl import flags as absl_flags
from absl.flags import FlagValues
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.config_files import read_changes
from experiments.progress import counting
from experiments.run_folder import Run, Trained, converted
from experiments.score_files import SCOPE, Evaluation, ScoreFiles
from transformer.config import UserError
from transformer.evaluation.metrics import METRICS
from transformer.evaluation.significance import Comparison
from transformer.tasks import open_task
from transformer.tasks.translation import LINE_ENDS, Translation, check_lengths


def define_flags(flags: FlagValues) -> None:
    cli.define_workdir(flags)
    cli.define_changes(flags)
    absl_flags.DEFINE_list("split", "test", "Splits to score, separated by commas.", flag_values=flags)
    absl_flags.DEFINE_string(
        "compare",
        None,
        "Run folder to compare with; evaluate that run first. RUN,KEY=VALUE names an evaluation of the run "
        "with --set=KEY=VALUE.",
        flag_values=flags,
    )


def main(flags: FlagValues) -> None:
    cli.use_compilation_cache()
    if not flags.split:
        raise UserError("--split is empty; give at least one split, such as test")
    run = Run(flags.workdir)
    changes = converted(run.config, read_changes(flags.set, "set"))
    trained = run.load(changes)
    task = open_task(trained.config, run.folder)
    for split in flags.split:  # checks all splits before scoring the first one
        check_lengths(trained.model, split, task.corpus.split(split).max_lengths)
    files = [ScoreFiles(run, split, changes) for split in flags.split]
    written = [str(split_files.path(".json, .hyp.txt, .ref.txt")) for split_files in files]
    compared = [_compared(split_files, flags.compare, task) for split_files in files] if flags.compare else []

    evaluations = [_evaluate(split_files, trained, task) for split_files in files]
    print(f"{run.folder}: {_checkpoints_text(trained)}{files[0].suffix.replace(',', ', ')}")
    _print_scores(dict(zip(flags.split, (evaluation.scores for evaluation in evaluations), strict=True)))
    for split_files, evaluation, (compared_files, compared_evaluation) in zip(
        files, evaluations, compared, strict=False
    ):
        sources, _ = task.corpus.texts(split_files.split)
        comparisons = split_files.compare(evaluation, compared_files, compared_evaluation, sources)
        _print_comparisons(
            f"{split_files.split}: {split_files.name} against {compared_files.name}", comparisons
        )
        written.append(str(split_files.comparison_path(compared_files)))
    print("\n".join(written))


def _compared(files: ScoreFiles, compare: str, task: Translation) -> tuple[ScoreFiles, Evaluation]:
    """Returns the evaluation that `--compare` names.

    Raises:
      UserError: there is no such evaluation, or it cannot be compared with this one.
    """
    folder, *texts = re.split(r",(?=(?:decode|model)\.)", compare)
    run = Run(folder)
    compared_files = ScoreFiles(run, files.split, converted(run.config, read_changes(texts, "compare")))
    files.comparison_path(compared_files)  # raises an error if the file name is not allowed
    _, references = task.corpus.texts(files.split)
    references = [reference.translate(LINE_ENDS) for reference in references]  # as for scoring
    return compared_files, compared_files.read_comparable(references)


def _evaluate(files: ScoreFiles, trained: Trained, task: Translation) -> Evaluation:
    """Translates and scores a split, and writes the files of the evaluation."""
    split = files.split
    with counting(task.corpus.size(split), split) as progress:
        evaluated = task.evaluate(trained.model, trained.params, split, progress)
    outputs = evaluated.outputs
    print(f"{split}: {len(outputs.sources)} sentences in {evaluated.seconds:.1f} s, compilation included")
    if evaluated.num_in_parts:
        limit = trained.config.decode.max_source_length
        limit = min(limit, trained.model.max_lengths.source or limit)
        print(f"{split}: translated in parts: {evaluated.num_in_parts} sentences of more than {limit} tokens")
    identity = {
        "changes": files.changes,
        "checkpoints": trained.steps,
        "params_sha256": trained.params_sha256,
    }
    evaluation = Evaluation(evaluated.scores | identity, outputs.hypotheses, outputs.references)
    files.write(evaluation)
    return evaluation


def _print_scores(scores: dict[str, dict[str, Any]]) -> None:
    console = Console()
    table = Table("", *scores)
    shown = [metric for metric in METRICS.values() if metric.shown]
    for metric in shown:
        table.add_row(metric.name, *(f"{scores[split][metric.name]:{metric.format}}" for split in scores))
    table.add_row("sentences", *(str(scores[split]["sentences"]) for split in scores))
    console.print(table)
    ranged = [metric for metric in METRICS.values() if metric.by_length]
    names = [metric.name for metric in ranged]
    lengths = Table(
        "split", "tokens", "sentences", *names, title="by number of source tokens", title_justify="left"
    )
    for split in scores:
        for bucket in scores[split]["by_length"]:
            cells = (f"{bucket[metric.name]:{metric.format}}" for metric in ranged)
            lengths.add_row(split, f"{bucket['least']} to {bucket['most']}", str(bucket["sentences"]), *cells)
    console.print(lengths)
    for metric in shown:
        if metric.signature:
            print(f"{metric.name:<8} {metric.signature}")


def _print_comparisons(title: str, comparisons: dict[str, Comparison]) -> None:
    table = Table("", "this run", "other run", "difference", "p bootstrap", "p randomization")
    for name, comparison in comparisons.items():
        form = METRICS[name].format
        scores = (f"{comparison.score:{form}}", f"{comparison.other_score:{form}}")
        p_values = (_p_value(comparison.p_bootstrap), _p_value(comparison.p_randomization))
        table.add_row(name, *scores, f"{comparison.difference:+{form}}", *p_values)
    print(title)
    Console().print(table)
    print(SCOPE)


def _p_value(p: float | None) -> str:
    if p is None:
        return "-"
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"


def _checkpoints_text(trained: Trained) -> str:
    steps, wanted = trained.steps, trained.config.decode.average_last
    if len(steps) == 1:
        text = f"checkpoint {steps[0]}"
    else:
        text = f"mean of {len(steps)} checkpoints, {steps[0]} to {steps[-1]}"
    missing = f" (decode.average_last is {wanted}, but the run has no other checkpoints)"
    return text + (missing if len(steps) < wanted else "")


if __name__ == "__main__":
    cli.run(sys.modules[__name__])

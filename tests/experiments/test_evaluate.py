"""The `evaluate` command: its files, sacreBLEU's command line, comparison of two runs, and error messages."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from experiments import score_files
from experiments.run_folder import Run
from experiments.score_files import IDENTITY, Evaluation, ScoreFiles, read_lines
from tests.support.commands import call, refuse
from transformer.config import UserError
from transformer.data.corpus import Corpus
from transformer.evaluation.ablation import parts
from transformer.evaluation.metrics import (
    METRICS,
    Outputs,
    compute_scores,
    mean_metric,
    metrics_for,
    score_text,
)
from transformer.json_files import read_sealed, write_sealed

# Options with which sacreBLEU's command line computes each group of scores.
OPTIONS = {
    ("bleu", "chrf"): ["-m", "bleu", "chrf"],
    ("bleu_lc",): ["-m", "bleu", "-lc"],
    ("bleu_intl",): ["-m", "bleu", "-tok", "intl"],
    ("bleu_lc_intl",): ["-m", "bleu", "-tok", "intl", "-lc"],
    ("bleu_tok",): ["-m", "bleu", "-tok", "none"],
}


class Evaluated(NamedTuple):
    """An evaluated run, and the output of its evaluation."""

    folder: Path
    printed: str

    @property
    def scores(self) -> dict:
        return json.loads((self.folder / "eval" / "test.json").read_text())


@pytest.fixture(scope="module")
def first(trained, tmp_path_factory) -> Evaluated:
    """A copy of the trained run, evaluated on its test split, with an extra metric that is defined below."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("runs") / "first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            METRICS, "same_length", mean_metric("same_length", same_length, format=".1f", compared=True)
        )
        return Evaluated(folder, call("evaluate", f"--workdir={folder}").stdout)


def same_length(outputs: Outputs) -> list[float]:
    """Per sentence, 1 if source and translation have the same number of list items."""
    pairs = zip(outputs.sources, outputs.hypotheses, strict=True)
    return [float(source.count(";") == hypothesis.count(";")) for source, hypothesis in pairs]


@pytest.fixture(scope="module")
def second(first) -> Path:
    """A copy of the first run in which every second translation is replaced by its reference."""
    folder = shutil.copytree(first.folder, first.folder.with_name("second"))
    files = ScoreFiles(Run(folder), "test", {})
    scores, sources, hypotheses, references = files.read()
    better = [pair[number % 2] for number, pair in enumerate(zip(hypotheses, references, strict=True))]
    files.write(Evaluation(scores, sources, better, references))
    return folder


@pytest.fixture
def broken(second, tmp_path) -> Path:
    """A copy of the second run, which a test may damage."""
    return shutil.copytree(second, tmp_path / "broken")


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "eval").iterdir()}


MADE_FROM = {
    *("identity", "content", "checkpoints", "params_sha256", "test_set", "changes", "ablated"),
    *("files", "sha256"),
}


def test_every_metric_is_written_and_every_shown_metric_is_printed(first):
    scores = first.scores
    assert set(metrics_for("de")) | {
        "same_length",
        "sentences",
        "by_length",
        "signatures",
        *MADE_FROM,
    } == set(scores)
    assert scores["sentences"] == 60 == sum(bucket["sentences"] for bucket in scores["by_length"])
    lengths = Corpus(Run(first.folder).config.data).split("test").source.lengths
    for bucket in scores["by_length"]:
        assert bucket["sentences"] == ((bucket["least"] <= lengths) & (lengths <= bucket["most"])).sum()
    for metric in metrics_for("de").values():
        if metric.shown:
            assert f" {score_text(scores[metric.name], metric.format)} " in first.printed, metric.name
        if metric.by_length:
            assert all(metric.name in bucket for bucket in scores["by_length"])
    assert f"bleu     {scores['signatures']['bleu']}\n" in first.printed
    assert "17 to 24" in first.printed


def test_a_new_metric_needs_only_an_entry_in_the_registry(first):
    """The metric reads the sources. Its score is written, and is printed in the format of the metric."""
    assert 0 < first.scores["same_length"] <= 1
    assert "same_length" in first.printed
    assert f" {first.scores['same_length']:.1f} " in first.printed


def test_all_perplexities_derive_from_the_same_log_likelihood(first):
    scores = first.scores
    references = read_lines(first.folder / "eval" / "test.ref.txt")
    words, characters = sum(len(line.split()) for line in references), sum(map(len, references))
    nats = math.log(scores["perplexity_per_character"]) * characters
    assert math.log(scores["perplexity_per_word"]) * words == pytest.approx(nats)
    assert math.log(scores["perplexity"]) == pytest.approx(scores["nll"])


def test_references_are_the_text_of_the_data(first):
    _, references = Corpus(Run(first.folder).config.data).texts("test")
    assert read_lines(first.folder / "eval" / "test.ref.txt") == references


def test_sacrebleus_command_line_computes_the_same_scores(second):
    """Uses texts on which all metrics differ, so that no score can be mistaken for that of another metric.

    sacreBLEU runs as a subprocess.
    """
    hypotheses, references = (second / "eval" / f"test.{kind}.txt" for kind in ("hyp", "ref"))
    outputs = Outputs(*map(read_lines, (references, hypotheses, references)))
    for names, options in OPTIONS.items():
        command = [sys.executable, "-m", "sacrebleu", str(references), "-i", str(hypotheses), "-w", "8"]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
        results = json.loads(done.stdout)
        for name, result in zip(names, results if len(names) > 1 else [results], strict=True):
            assert f"{result['score']:.8f}" == f"{METRICS[name].compute(outputs):.8f}", name
            assert result["signature"] == METRICS[name].signature("de")


def test_written_scores_are_those_of_the_written_texts(first):
    hypotheses, references = (
        read_lines(first.folder / "eval" / f"test.{kind}.txt") for kind in ("hyp", "ref")
    )
    outputs = Outputs(references, hypotheses, references)
    for name in ("exact_match", "bleu", "bleu_tok", "chrf", "length_ratio"):
        assert first.scores[name] == METRICS[name].compute(outputs), name


def test_a_second_evaluation_writes_the_same_files_and_a_comparison(first, second):
    """The files of the run given to --compare are not changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            METRICS, "same_length", mean_metric("same_length", same_length, format=".1f", compared=True)
        )
        stored, compared = contents(first.folder), contents(second)
        printed = call("evaluate", f"--workdir={first.folder}", f"--compare={second}").stdout
    written = contents(first.folder)
    comparison = json.loads(written.pop("test.compare-second.json"))
    assert written == stored
    assert contents(second) == compared
    assert set(comparison["metrics"]) == {
        "same_length", *(metric.name for metric in METRICS.values() if metric.compared)
    }  # fmt: skip
    exact = comparison["metrics"]["exact_match"]
    assert exact["other_score"] >= 50
    assert exact["difference"] == exact["score"] - exact["other_score"] < 0
    assert comparison["differing"] == pytest.approx(-0.6 * exact["difference"])
    assert comparison["metrics"]["bleu"]["p_bootstrap"] < 0.01
    assert "p-values are for this test set only and say nothing about other seeds" in printed
    assert f"test: {first.folder} against {second}" in printed
    assert f"{exact['difference']:+.2f}" in printed
    assert comparison["run"] == {key: first.scores.get(key) for key in IDENTITY}


def texts_of(folder) -> dict[str, list[str]]:
    """The sources and the references of the split test."""
    paths = {kind: folder / "eval" / f"test.{kind}.txt" for kind in ("src", "ref")}
    return {kind: read_lines(path) if path.exists() else [] for kind, path in paths.items()}


def refused(folder, **texts) -> str:
    """The error message for a run that cannot be compared."""
    with pytest.raises(UserError) as error:
        ScoreFiles(Run(folder), "test", {}).read_comparable(*(texts_of(folder) | texts).values())
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", ["json", "src.txt", "hyp.txt", "ref.txt"])
def test_a_missing_file_is_named_with_the_command_that_writes_it(broken, kind):
    path = broken / "eval" / f"test.{kind}"
    path.unlink()
    command = f"python -m experiments.evaluate --workdir={broken} --split=test"
    assert refused(broken) == f"{path} is missing; run {command}"


@pytest.mark.parametrize("kind", ["src", "hyp", "ref"])
@pytest.mark.parametrize("content", [b"", b"another line\n"])
def test_an_edited_file_of_an_evaluation_is_refused(broken, kind, content):
    path = broken / "eval" / f"test.{kind}.txt"
    texts = texts_of(broken)
    path.write_bytes(content)
    assert refused(broken, **texts).startswith(
        f"{path} was damaged or edited; run python -m experiments.evaluate --workdir={broken} --split=test"
    )


@pytest.mark.parametrize("kind", ["src", "ref"])
def test_a_different_test_set_is_refused(broken, kind):
    path, texts = broken / "eval" / f"test.{kind}.txt", texts_of(broken)
    lines = texts[kind]
    changed = refused(broken, **{kind: [*lines[:16], "another", *lines[17:]]})
    assert f"{path} is from another test set: line 17 is {lines[16]!r}, but 'another' in " in changed
    assert "it has 60 lines, but 'test' of this run has 59; " in refused(broken, **{kind: lines[:-1]})


def test_scores_of_an_earlier_checkpoint_are_refused_once_training_is_done(broken):
    path = broken / "eval" / "test.json"
    write_sealed(path, read_sealed(path) | {"checkpoints": [150]})
    assert refused(broken) == (
        f"{path} has the scores of checkpoint 150, but {broken} has since been trained to step 300; "
        f"run python -m experiments.evaluate --workdir={broken} --split=test"
    )


def test_a_renamed_evaluation_is_refused(broken):
    """Otherwise scores of another split, or with other changes, would be taken for scores of the test set."""
    for ending in ("json", "src.txt", "hyp.txt", "ref.txt"):
        (broken / "eval" / f"test.{ending}").rename(broken / "eval" / f"validation.{ending}")
    path = broken / "eval" / "validation.json"
    for name, changes in (("validation", {}), ("validation", {"decode.beam_size": 1})):
        files = ScoreFiles(Run(broken), name, changes)
        path.rename(files.path(".json"))
        path = files.path(".json")
        for ending in (".src.txt", ".hyp.txt", ".ref.txt"):
            files.path(ending).touch()
        with pytest.raises(UserError, match=r"\.json contains another evaluation; run python -m "):
            files.read()


def test_a_different_signature_is_refused_only_if_the_metric_is_compared(broken):
    path = broken / "eval" / "test.json"
    scores = read_sealed(path)
    del scores["signatures"]["bleu_legacy"]
    write_sealed(path, scores)
    ScoreFiles(Run(broken), "test", {}).read_comparable(*texts_of(broken).values())
    scores["signatures"]["chrf"] = scores["signatures"]["chrf"].replace("nw:0", "nw:2")
    write_sealed(path, scores)
    line = refused(broken)
    assert line.startswith(
        f"chrf of {broken} was computed with signature nrefs:1|case:mixed|eff:yes|nc:6|nw:2|"
    )
    assert line.endswith(
        f"; run python -m experiments.evaluate --workdir={broken} --split=test to compute it again"
    )


def test_only_a_line_feed_ends_a_line(tmp_path):
    (tmp_path / "lines").write_bytes("one\u2028\rtwo\x85\n\nthree\n".encode())
    assert read_lines(tmp_path / "lines") == ["one\u2028\rtwo\x85", "", "three"]


@pytest.mark.parametrize(
    ("compare", "message"),
    [
        ("{first},{second}", "{first},{second} is not a run: config.json is missing"),
        ("{second},decode.beam", "--compare=decode.beam has no value; write --compare=KEY=VALUE"),
        (
            "{second},decode.bean_size=1",
            "unknown config key decode.bean_size; did you mean decode.beam_size?",
        ),
        ("{second},model.d_model=1", "model.d_model cannot change after training; only decode.*, "),
        ("nowhere", "nowhere is not a run: config.json is missing"),
        ("{first}/config.json", "{first}/config.json is not a folder"),
    ],
)
def test_an_impossible_comparison_gives_a_one_line_error(first, second, compare, message):
    """The error comes before anything is scored."""
    names = {"first": first.folder, "second": second}
    line = refuse("evaluate", f"--workdir={first.folder}", f"--compare={compare.format(**names)}")
    assert line.startswith(message.format(**names))


def test_a_missing_file_is_refused_before_anything_is_scored(first, broken):
    (broken / "eval" / "test.hyp.txt").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr("transformer.tasks.translation.Translation.evaluate")
        line = refuse("evaluate", f"--workdir={first.folder}", f"--compare={broken}")
    assert line.startswith(f"{broken}/eval/test.hyp.txt is missing; run python -m ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split="], "--split is empty; give at least one split, such as test"),
        (
            ["--source=a", "--name=b"],
            "--target is missing; give --source, --target and --name together",
        ),
        (
            ["--source=a", "--target=a", "--name=b", "--split=test"],
            "--split and --source cannot be used together",
        ),
        (["--source=none", "--target=none", "--name=b"], "--source: none (or .gz) is not a file; "),
        (
            ["--source=a", "--target=a", "--name=test_long"],
            "--name is 'test_long'; it must not be the name of a split",
        ),
        (["--ablate=all", "--compare=x"], "--ablate=all and --compare cannot be used together"),
        (
            ["--ablate=decoder.9.self"],
            "'decoder.9.self' is not a part of this model; choose one of: ",
        ),
        (["--split=dev"], "number_words has no split 'dev'; choose "),
        (
            ["--ablate=all", "--set=decode.beam_size=2"],
            "--set changes decode.beam_size, which has no effect in this call; leave it out",
        ),
        (["--set=train.steps=3"], "train.steps cannot change after training; only decode.*, "),
        (
            ["--config.decode.seed=3"],
            "unknown flag --config.decode.seed; write --set=decode.seed=3 for this command",
        ),
    ],
)
def test_wrong_flags_give_a_one_line_error(first, arguments, message):
    assert refuse("evaluate", f"--workdir={first.folder}", *arguments).startswith(message)


def test_files_of_a_test_set_are_scored_like_a_split(first, tmp_path):
    folder = shutil.copytree(first.folder, tmp_path / "first")
    for side, texts in zip(("en", "de"), Corpus(Run(folder).config.data).texts("test"), strict=True):
        (tmp_path / side).write_text("".join(f"{line}\n" for line in texts), encoding="utf-8")
    flags = (f"--source={tmp_path}/en", f"--target={tmp_path}/de", "--name=news")
    done = call("evaluate", f"--workdir={folder}", *flags)
    files = contents(folder)
    assert files["news.hyp.txt"] == files["test.hyp.txt"]
    assert json.loads(files["news.json"])["content"] == json.loads(files["test.json"])["content"]
    scores = json.loads(files["news.json"])
    assert {name: scores[name] for name in METRICS if name in scores} == {
        name: first.scores[name] for name in METRICS if name in first.scores
    }
    assert f"{folder}/eval/news.json, .src.txt, .hyp.txt, .ref.txt" in done.stdout

    missing = refuse(
        "evaluate", f"--workdir={folder}", *flags[:2], "--name=other", f"--compare={first.folder}"
    )
    command = (
        f"python -m experiments.evaluate --workdir={first.folder} --source=FILE --target=FILE --name=other"
    )
    assert missing == f"{first.folder}/eval/other.json is missing; run {command}"

    (tmp_path / "de").write_text("eins\n" * (len(texts) - 1))
    line = refuse("evaluate", f"--workdir={folder}", *flags)
    assert line.startswith(f"{tmp_path}/de has {len(texts) - 1} lines, but {tmp_path}/en has {len(texts)}")
    for path in (tmp_path / "en", tmp_path / "de"):
        path.write_text("")
    line = refuse("evaluate", f"--workdir={folder}", *flags)
    assert line == f"{tmp_path}/en has no lines; give a file that has sentences"


@pytest.mark.slow
def test_a_part_is_removed_and_compared_with_the_whole_model(first, tmp_path):
    folder = shutil.copytree(first.folder, tmp_path / "first")
    plain = contents(folder)
    flags = ("--ablate=decoder.1.cross", f"--compare={folder}")
    done = call("evaluate", f"--workdir={folder}", *flags)
    written = contents(folder)
    assert {name: written[name] for name in plain} == plain
    name = "test,ablate=decoder.1.cross"
    scores = json.loads(written[f"{name}.json"])
    assert scores["loss"] > first.scores["loss"]
    assert f"test: {folder},ablate=decoder.1.cross against {folder}\n" in done.stdout
    part = "ablate=decoder.1.cross"
    for changes in (f"{part},decode.beam_size=2", f"decode.beam_size=2,{part}"):  # in any order
        line = refuse("evaluate", f"--workdir={folder}", f"--compare={folder},{changes}")
        assert line.startswith(f"{folder}/eval/test,{part},decode.beam_size=2.json is missing; ")
    comparison = json.loads(written[f"{name}.compare-first.json"])["metrics"]["chrf"]
    assert comparison["score"] == scores["chrf"]
    assert comparison["other_score"] == first.scores["chrf"]


def test_all_parts_are_removed_in_turn(first, tmp_path):
    folder = shutil.copytree(first.folder, tmp_path / "first")
    done = call("evaluate", f"--workdir={folder}", "--ablate=all")
    effects = read_sealed(folder / "eval/test,ablate=all.json")["effects"]
    model = Run(folder).config.model
    assert [effect["part"] for effect in effects] == sorted(
        parts(model), key={effect["part"]: -effect["difference"] for effect in effects}.get
    )
    assert all(effect["part"] in done.stdout for effect in effects)
    assert all(effect["low"] <= effect["difference"] <= effect["high"] for effect in effects)
    assert (folder / "eval/test,ablate=all.png").read_bytes().startswith(b"\x89PNG")


def test_sentences_longer_than_any_in_training_need_an_overflow_policy(first):
    """test_long has longer lists than the training split."""
    flags = (f"--workdir={first.folder}", "--set=model.overflow=error")
    line = refuse("evaluate", *flags, "--split=test_long")
    assert " of split 'test_long' has a source of " in line
    assert "tokens, but model.positions='sinusoidal' was trained on at most" in line
    assert "--set=model.overflow=extrapolate or clamp or zero" in line


def test_a_comparison_with_a_run_of_another_task_is_refused(first, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    values = json.loads((first.folder / "config.json").read_text()) | {"task": "language_modeling"}
    (folder / "config.json").write_text(json.dumps(values))
    line = refuse("evaluate", f"--workdir={first.folder}", f"--compare={folder}")
    assert line == f"the task of {folder} in --compare is language_modeling; name a run of translation"


@pytest.mark.slow
def test_an_evaluation_with_changes_has_separate_files(first, tmp_path):
    """The evaluation is compared with the evaluation of the same run without changes.

    The number of sentences translated in parts is printed.
    """
    folder = shutil.copytree(first.folder, tmp_path / "first")
    for path in (folder / "eval").glob("*compare*"):
        path.unlink()
    plain = contents(folder)
    changes = {"model.dtype": "bfloat16", "decode.beam_size": 1, "decode.max_source_length": 24}
    flags = [f"--set={key}={value}" for key, value in changes.items()]
    printed = call(
        "evaluate", f"--workdir={folder}", "--set=decode.beam_size=3", *flags, f"--compare={folder}"
    ).stdout
    written = contents(folder)
    assert {name: written.pop(name) for name in plain} == plain
    suffix = ",decode.beam_size=1,decode.max_source_length=24,model.dtype=bfloat16"
    endings = ("json", "src.txt", "hyp.txt", "ref.txt", "compare-first.json")
    assert set(written) == {f"test{suffix}.{ending}" for ending in endings}
    scores, comparison = (
        json.loads(written[f"test{suffix}.{kind}"]) for kind in ("json", "compare-first.json")
    )
    assert scores["changes"] == comparison["run"]["changes"] == changes
    assert first.scores["changes"] == comparison["other"]["changes"] == {}
    assert scores["params_sha256"] == first.scores["params_sha256"]
    assert scores["perplexity"] != first.scores["perplexity"]
    assert comparison["metrics"]["chrf"]["score"] == scores["chrf"]
    assert comparison["metrics"]["chrf"]["other_score"] == first.scores["chrf"]
    assert f"test: {folder}{suffix} against {folder}\n" in printed
    assert f"{folder}: checkpoint 300{suffix.replace(',', ', ')}\n" in printed
    lengths = Corpus(Run(folder).config.data).split("test").source.lengths
    assert (lengths > 24).any()
    assert f"test: translated {(lengths > 24).sum()} sentences of more than 24 tokens in parts\n" in printed


def test_files_of_an_evaluation_with_changes_are_named_by_the_changes(second, monkeypatch):
    """The order in which changes are given does not matter. One metric is compared, which takes less time."""
    monkeypatch.setattr(score_files, "metrics_for", lambda _: {"exact_match": METRICS["exact_match"]})
    folder = shutil.copytree(second, second.with_name("with, a comma"))
    suffix = ",decode.length_penalty=1.0,decode.sampling=True"
    changes = {"decode.sampling": True, "decode.length_penalty": 1.0}
    ScoreFiles(Run(folder), "test", changes).write(ScoreFiles(Run(folder), "test", {}).read())
    for path in (folder / "eval").glob("test.*"):
        path.unlink()
    missing = refuse("evaluate", f"--workdir={second}", f"--compare={folder}")
    assert missing.endswith(f" --split=test, or use --compare={folder}{suffix}")
    files, compared = ScoreFiles(Run(second), "test", {}), ScoreFiles(Run(folder), "test", changes)
    comparison = files.compare(files.read(), compared, compared.read())
    assert comparison["exact_match"].difference == 0
    path = second / "eval" / f"test.compare-with, a comma{suffix}.json"
    assert json.loads(path.read_text())["other"]["folder"] == str(folder)


def test_changes_that_cannot_be_a_file_name_are_refused(second):
    files = ScoreFiles(Run(second), "test", {"decode.penalty": "x" * 160})
    compared = ScoreFiles(Run(second), "test", {"decode.penalty": "y" * 30})
    for changes in ({"decode.penalty": "a/b"}, {"decode.penalty": "x" * 250}):
        with pytest.raises(UserError, match="'test,decode.penalty=.*'; it must be a plain file name"):
            ScoreFiles(Run(second), "test", changes).path(".json")
    assert len(files.path(".json").name) == 185
    with pytest.raises(UserError, match=r"'test,.*'; it must be a plain file name"):
        files.comparison_path(compared)


def test_compute_scores_covers_every_metric_in_the_registry(second):
    references = read_lines(second / "eval" / "test.ref.txt")
    summary = {"loss": 1.0, "nll": 1.0, "accuracy": 1.0, "perplexity": 1.0, "perplexity_per_character": 1.0}
    outputs = Outputs(references, references, references, "de", [True] * len(references), summary, 10)
    assert set(compute_scores(outputs)) == set(metrics_for("de"))

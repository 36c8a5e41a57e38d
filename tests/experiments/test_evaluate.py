"""One search, all scores: the files, sacreBLEU's own command line on them, comparison, refusals."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from experiments import evaluate
from experiments.evaluations import COMPARED, Evaluation, lines_of
from experiments.runs import Run
from tests.experiments.test_commands import ROOT, SMOKE, environment
from transformer.config import UserError
from transformer.data.corpus import Corpus
from transformer.data.tokenizer import Tokenizer
from transformer.evaluation.scores import METRICS, corpus_scores

COMMAND_LINE = {  # the options that give these scores
    ("bleu", "chrf"): ["-m", "bleu", "chrf"],
    ("bleu_lc",): ["-m", "bleu", "-lc"],
    ("bleu_intl",): ["-m", "bleu", "-tok", "intl"],
    ("bleu_lc_intl",): ["-m", "bleu", "-tok", "intl", "-lc"],
    ("bleu_tok",): ["-m", "bleu", "-tok", "none"],
}


@pytest.fixture(scope="module")
def call(data_dir):
    def call(verb, *arguments, status=0):
        command = [sys.executable, "-m", f"experiments.{verb}", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(data_dir), capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stderr
        return done

    return call


@pytest.fixture(scope="module")
def first(call, tmp_path_factory):
    """A run that has hardly begun to learn, evaluated, and what was printed."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    call("train", SMOKE, "--config.train.steps=2", f"--workdir={folder}")
    return folder, call("evaluate", f"--workdir={folder}").stdout


@pytest.fixture(scope="module")
def second(first):
    """A run that has half of it right, made of the first one."""
    folder = shutil.copytree(first[0], first[0].parent / "second")
    hypotheses, references = (folder / "eval" / f"test.{kind}.txt" for kind in ("hyp", "ref"))
    lines = zip(lines_of(hypotheses), lines_of(references), strict=True)
    better = [own if number % 2 else right for number, (own, right) in enumerate(lines)]
    hypotheses.write_text("".join(f"{line}\n" for line in better))
    return folder


@pytest.fixture
def copy(second, tmp_path):
    """One to break."""
    return shutil.copytree(second, tmp_path / "copy")


def test_what_is_written_and_printed(first):
    folder, printed = first
    scores = json.loads((folder / "eval" / "test.json").read_text())
    assert {*METRICS, *evaluate.SHOWN} <= set(scores)
    assert scores["sentences"] == 200 == sum(bucket["sentences"] for bucket in scores["by_length"])
    for name, form in evaluate.SHOWN.items():
        assert f"{name} " in printed
        assert f" {scores[name]:{form}} " in printed
    assert f"bleu     {scores['signatures']['bleu']}\n" in printed
    assert "17 to 24" in printed


def test_the_same_nats_stand_behind_every_perplexity(first):
    folder, _ = first
    scores = json.loads((folder / "eval" / "test.json").read_text())
    references = lines_of(folder / "eval" / "test.ref.txt")
    words, characters = sum(len(line.split()) for line in references), sum(map(len, references))
    nats = math.log(scores["perplexity_per_character"]) * characters
    assert math.log(scores["perplexity_per_word"]) * words == pytest.approx(nats)
    assert math.log(scores["perplexity"]) == pytest.approx(scores["nll"])


def test_references_are_the_data_s_own_text(first, data_dir):
    folder, _ = first
    data = dataclasses.replace(Run(folder).config.data, data_dir=data_dir)
    _, references = Corpus(data, Tokenizer.load(folder / "tokenizer.model")).texts("test")
    assert lines_of(folder / "eval" / "test.ref.txt") == references


def test_sacrebleus_command_line_gives_the_same(first, second):
    """On the files of both runs: one bad, one with figures of every size."""
    for folder in (first[0], second):
        hypotheses, references = (folder / "eval" / f"test.{kind}.txt" for kind in ("hyp", "ref"))
        scores = corpus_scores(lines_of(hypotheses), lines_of(references))
        if folder != second:
            written = json.loads((folder / "eval" / "test.json").read_text())
            assert scores == {name: written[name] for name in scores}
        else:
            assert len({f"{scores[name]:.2f}" for name in ("bleu", "bleu_tok", "chrf")}) == 3
        for names, options in COMMAND_LINE.items():
            command = [sys.executable, "-m", "sacrebleu", str(references), "-i", str(hypotheses), "-w", "8"]
            done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
            for name, one in zip(names, found if len(names) > 1 else [found], strict=True):
                assert f"{one['score']:.8f}" == f"{scores[name]:.8f}", name
                assert one["signature"] == scores["signatures"][name]


def test_again_is_the_same_bytes_and_compares(call, first, second):
    """The second evaluation also compares; the other run's files are only read."""
    own, other = contents(first[0]), contents(second)
    printed = call("evaluate", f"--workdir={first[0]}", f"--compare={second}").stdout
    written = contents(first[0])
    comparison = json.loads(written.pop("test.compare-second.json"))
    assert written == own
    assert contents(second) == other
    assert comparison["differing"] == 100
    assert list(comparison["metrics"]) == list(COMPARED)
    exact = comparison["metrics"]["exact_match"]
    assert (exact["score"], exact["other"], exact["difference"]) == (0, 50, -50)
    assert comparison["metrics"]["bleu"]["p_bootstrap"] < 0.01
    assert "this test set only: says nothing about other seeds" in printed
    assert f"test: {first[0]} against {second}" in printed
    assert "-50.00" in printed
    path = first[0] / "eval" / "test.compare-second.json"
    before = path.read_bytes()
    path.unlink()
    one, other = (Evaluation(Run(folder), "test", {}) for folder in (first[0], second))
    one.compare(one.read(), other, other.read())
    assert path.read_bytes() == before


def contents(folder):
    return {path.name: path.read_bytes() for path in (folder / "eval").iterdir()}


@pytest.mark.parametrize("kind", ["json", "hyp.txt", "ref.txt"])
def test_a_missing_file_is_one_line(copy, kind):
    path = copy / "eval" / f"test.{kind}"
    path.unlink()
    again = f"python -m experiments.evaluate --workdir={copy} --split=test"
    assert refused(copy) == f"{path} is missing; {again} writes it"


def test_a_line_too_few_is_one_line(copy):
    path, references = (copy / "eval" / f"test.{kind}.txt" for kind in ("hyp", "ref"))
    path.write_text("".join(f"{line}\n" for line in lines_of(path)[:-1]))
    assert refused(copy).startswith(f"{path} has 199 lines, {references} 200; python -m experiments.evaluate")
    path.write_text("")
    assert refused(copy).startswith(f"{path} has 0 lines, {references} 200; ")


def test_another_test_set_is_refused(copy):
    path = copy / "eval" / "test.ref.txt"
    right = lines_of(path)
    assert Evaluation(Run(copy), "test", {}).comparable(right).references == right
    changed = [*right[:16], "another", *right[17:]]
    line = refused(copy, changed)
    assert line == f"{path} is another test set: line 17 is {right[16]!r} there, 'another' here"
    assert refused(copy, right[:-1]).endswith("it has 200 lines, split 'test' here 199")


def test_another_signature_is_refused(copy):
    path = copy / "eval" / "test.json"
    scores = json.loads(path.read_text())
    scores["signatures"]["chrf"] = scores["signatures"]["chrf"].replace("nw:0", "nw:2")
    path.write_text(json.dumps(scores))
    line = refused(copy)
    assert line.startswith("the signature of chrf is nrefs:1|case:mixed|eff:yes|nc:6|nw:2|")
    assert line.endswith(f"here; python -m experiments.evaluate --workdir={copy} --split=test scores it anew")


def test_an_older_evaluation_compares_if_what_is_compared_is_the_same(copy):
    path = copy / "eval" / "test.json"
    scores = json.loads(path.read_text())
    scores["signatures"] = {name: scores["signatures"][name] for name in COMPARED[1:]}
    path.write_text(json.dumps(scores))
    references = lines_of(copy / "eval" / "test.ref.txt")
    Evaluation(Run(copy), "test", {}).comparable(references)
    scores["signatures"].pop("chrf")
    path.write_text(json.dumps(scores))
    assert refused(copy).startswith("the signature of chrf is None in ")


def test_a_refusal_comes_before_anything_is_scored(call, first, copy):
    (copy / "eval" / "test.hyp.txt").unlink()
    done = call("evaluate", f"--workdir={first[0]}", f"--compare={copy}", status=2)
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {copy}/eval/test.hyp.txt is missing; python -m ")
    assert done.stderr.count("\n") == 1


def test_an_empty_split_is_one_line(number_words):
    corpus = Corpus(number_words)
    corpus._parts["test"] = "test[:0]"
    for read in (corpus.split, corpus.texts):
        with pytest.raises(UserError, match="^split 'test' of number_words is empty$"):
            read("test")


def test_a_line_end_within_a_reference_is_a_space():
    """What is scored is what stands in the file: one line a sentence."""
    corpus = corpus_of(["one\ntwo", "three\r", "\u2028four"])
    assert evaluate._texts(corpus, "test")[1] == ["one two", "three ", "\u2028four"]


def test_only_a_line_feed_ends_a_line(tmp_path):
    (tmp_path / "lines").write_bytes("one\u2028\rtwo\x85\n\nthree\n".encode())
    assert lines_of(tmp_path / "lines") == ["one\u2028\rtwo\x85", "", "three"]


def refused(folder, references=None):
    """What is said of a run whose outputs cannot be compared with ours."""
    path = folder / "eval" / "test.ref.txt"
    if references is None:
        references = lines_of(path) if path.exists() else []
    with pytest.raises(UserError) as caught:
        Evaluation(Run(folder), "test", {}).comparable(references)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def corpus_of(references):
    return SimpleNamespace(texts=lambda split: (["source"] * len(references), references))


def test_what_was_never_trained_is_refused_unless_a_policy_is_named(call, tmp_path):
    """Learned positions: a table has rows for 1,024 pieces, and no training list is half as long."""
    folder = tmp_path / "learned"
    call("train", SMOKE, "--config.train.steps=2", "--config.model.positions=learned", f"--workdir={folder}")
    arguments = (f"--workdir={folder}", "--split=test_long")
    (line,) = call("evaluate", *arguments, status=2).stderr.splitlines()[-1:]
    assert "but model.positions='learned' was trained up to" in line
    assert "--set=model.overflow=clamp or zero" in line
    call("evaluate", *arguments, "--set=model.overflow=clamp")
    assert not (folder / "eval" / "test_long.json").exists()
    scores = json.loads((folder / "eval" / "test_long,model.overflow=clamp.json").read_text())
    assert scores["changes"] == {"model.overflow": "clamp"}


def test_a_changed_run_stands_beside_the_plain_one_and_is_compared_with_it(call, first, tmp_path):
    folder = shutil.copytree(first[0], tmp_path / "first")
    plain = contents(folder)
    changes = ("--set=model.dtype=bfloat16", "--set=decode.beam_size=2", "--set=decode.beam_size=1")
    printed = call("evaluate", f"--workdir={folder}", *changes, f"--compare={folder}").stdout
    written = contents(folder)
    assert {name: written.pop(name) for name in plain} == plain
    name = "test,decode.beam_size=1,model.dtype=bfloat16"
    assert set(written) == {f"{name}.{kind}" for kind in ("json", "hyp.txt", "ref.txt", "compare-first.json")}
    scores, comparison = (json.loads(written[f"{name}.{kind}"]) for kind in ("json", "compare-first.json"))
    assert scores["changes"] == {"model.dtype": "bfloat16", "decode.beam_size": 1}
    before = json.loads(plain["test.json"])
    assert before["changes"] == {}
    assert "overflow" not in before
    assert scores["params_sha256"] == before["params_sha256"]
    assert scores["perplexity"] != before["perplexity"]
    assert comparison["run"]["changes"] == scores["changes"]
    assert comparison["metrics"]["chrf"]["score"] == scores["chrf"]
    assert comparison["metrics"]["chrf"]["other"] == before["chrf"]
    assert f"test: {folder}{name.removeprefix('test')} against {folder}\n" in printed
    assert f"{folder}: checkpoint 2, decode.beam_size=1, model.dtype=bfloat16\n" in printed


def test_what_a_run_scored_with_changes_is_compared_with(call, first, second):
    """Each value by what the config makes of it, however it was written."""
    folder = shutil.copytree(second, second.parent / "with, a comma")
    changed = "test,decode.length_penalty=1.0,decode.sampling=True"
    for path in (folder / "eval").iterdir():
        path.rename(path.with_name(path.name.replace("test", changed)))
    missing = call("evaluate", f"--workdir={first[0]}", f"--compare={folder}", status=2).stderr
    named = f"--compare={folder},decode.length_penalty=1.0,decode.sampling=True"
    assert missing.endswith(f" --split=test writes it; there is {named}\n")
    written = f"--compare={folder},decode.sampling=true,decode.length_penalty=1"
    printed = call("evaluate", f"--workdir={first[0]}", written).stdout
    assert f"test: {first[0]} against {named.removeprefix('--compare=')}\n" in printed
    path = first[0] / "eval" / f"test.compare-{changed.replace('test', 'with, a comma')}.json"
    comparison = json.loads(path.read_text())
    path.unlink()
    assert comparison["other"] == {
        "folder": str(folder),
        **{fact: json.loads((folder / "eval" / f"{changed}.json").read_text())[fact] for fact in IDENTITY},
    }
    assert comparison["metrics"]["exact_match"]["difference"] == -50


IDENTITY = ("checkpoints", "params_sha256", "changes")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("{first},{second}", "{first},{second} is not a run: it has no config.json"),
        ("{second},decode.beam", "--compare=decode.beam: it must be KEY=VALUE"),
        ("{second},decode.beam=1", "unknown config key decode.beam; the nearest known one is"),
        ("{second},model.d_model=1", "model.d_model: only decode.*, model.overflow and model.dtype can be"),
        ("nowhere", "nowhere is not a run: it has no config.json"),
        ("{first}/config.json", "{first}/config.json is not a folder"),
    ],
)
def test_what_cannot_be_compared_with_is_one_line(first, second, other, message, monkeypatch):
    own = Evaluation(Run(first[0]), "test", {})
    names = {"first": first[0], "second": second}
    monkeypatch.setattr(evaluate, "COMPARE", SimpleNamespace(value=other.format(**names)))
    with pytest.raises(UserError) as caught:
        evaluate._other(own, corpus_of([]))
    assert str(caught.value).startswith(message.format(**names))


def test_what_no_file_can_be_called_is_refused(second):
    one = Evaluation(Run(second), "test", {"decode.penalty": "x" * 200})
    other = Evaluation(Run(second), "test", {"decode.penalty": "y" * 30})
    for changes in ({"decode.penalty": "a/b"}, {"decode.penalty": "x" * 250}):
        with pytest.raises(UserError, match="no file can be called 'test,decode.penalty="):
            Evaluation(Run(second), "test", changes).path(".json")
    assert len(one.path(".json").name) == 225
    with pytest.raises(UserError, match=r"no file can be called 'test,.*\.compare-second,"):
        one.comparison(other)

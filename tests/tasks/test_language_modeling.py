"""The task of language modeling: losses by hand, resumed runs, bits per byte, and commands."""

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import pytest

from tests.support.commands import call, refuse
from tests.support.tiny import random_params, token_batch
from tests.support.training import run_or_resume
from transformer.config import (
    BOS,
    DataConfig,
    DecodeConfig,
    ExperimentConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    UserError,
)
from transformer.tasks import LanguageModeling, LoadedModel, open_task, resolve
from transformer.tasks.language_modeling import summarize

TEXT = "".join(f"def f_{n}(x):\n\treturn  x + {n * n}  # zwölf\n" for n in range(60))


@pytest.fixture
def config(tmp_path):
    """A run of 12 steps on one text, with one layer and d_model 16."""
    (tmp_path / "text.txt").write_text(TEXT)
    return ExperimentConfig(
        task="language_modeling",
        model=ModelConfig(
            kind="decoder_only",
            num_layers=1,
            d_model=16,
            d_ff=32,
            num_heads=2,
            positions="rope",
            dropout_rate=0.1,
        ),
        data=DataConfig(
            name="text_files",
            data_dir=str(tmp_path / "prepared"),
            options={"file": str(tmp_path / "text.txt")},
            vocab_size=300,
            byte_fallback=True,
            row_length=32,
        ),
        optimizer=OptimizerConfig(warmup_steps=5, learning_rate=1e-2),
        train=TrainConfig(
            steps=12,
            batch_tokens=128,
            log_every=1,
            validate_every=4,
            label_smoothing=0.0,
            parallelism="single",
        ),
    )


@pytest.mark.slow
def test_a_stopped_and_resumed_run_equals_one_without_a_stop(config, tmp_path):
    whole = run_or_resume(config, tmp_path / "whole")
    run_or_resume(config, tmp_path / "parts", stop_after=6)
    resumed = run_or_resume(config, tmp_path / "parts")
    assert resumed.finished
    assert resumed.params_sha256 == whole.params_sha256
    assert whole.validation["nll"] < math.log(300)
    assert whole.validation["perplexity"] == pytest.approx(math.exp(whole.validation["nll"]))
    assert whole.units_seen == pytest.approx(12 * 128, rel=0.1)  # the last row of an epoch is not full


def test_the_scores_of_a_split_equal_those_of_single_windows(config, tmp_path):
    """Every window is computed alone; its first input is the token before it."""
    task = open_task(resolve(config), tmp_path)
    params, test_set, num_done = random_params(task.model), task.test_set("validation"), []
    loaded = LoadedModel(task.model, task.corpus.tokenizer)
    config = dataclasses.replace(task.config, decode=DecodeConfig(batch_tokens=64))
    evaluated = LanguageModeling.evaluate(config, loaded, params, test_set, num_done.append)
    tokens = [BOS, *task.corpus.split("validation").target[0].tolist()]
    forward = jax.jit(functools.partial(task.model.apply, method="next_token_logit_factors"))
    nll, correct = 0.0, 0
    for first in range(0, len(tokens) - 1, 32):
        labels = np.array(tokens[first + 1 : first + 33])
        inputs = token_batch([tokens[first : first + len(labels)]], 32)
        vectors, table = forward({"params": params}, inputs)
        logits = np.float64(vectors[0, : len(labels)]) @ np.float64(table).T
        log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        nll -= log_probs[np.arange(len(labels)), labels].sum()
        correct += (log_probs.argmax(axis=-1) == labels).sum()
    text = TEXT[len(TEXT) * 9 // 10 :]
    scores = evaluated.scores
    assert scores["tokens"] == len(tokens) - 1
    assert scores["nll"] == pytest.approx(nll / (len(tokens) - 1), rel=1e-5)
    assert scores["accuracy"] == pytest.approx(correct / (len(tokens) - 1))
    assert scores["bits_per_byte"] == pytest.approx(nll / math.log(2) / len(text.encode()), rel=1e-5)
    assert scores["perplexity_per_word"] == pytest.approx(math.exp(nll / len(text.split())), rel=1e-5)
    assert set(LanguageModeling.metrics(config)) <= scores.keys()
    inexact = LanguageModeling.evaluate(config, loaded, params, test_set._replace(is_exact=False)).scores
    assert inexact == scores | {"bits_per_byte": None, "perplexity_per_word": None}
    spaceless = dataclasses.replace(config, data=dataclasses.replace(config.data, target="ja"))
    assert {*LanguageModeling.metrics(config)} - {*LanguageModeling.metrics(spaceless)} == {
        "perplexity_per_word"
    }
    assert (test_set.items, test_set.num_items) == ("tokens", len(tokens) - 1)
    assert num_done == [*range(64, len(tokens) - 1, 64), len(tokens) - 1]  # within one long document


def test_scores_per_byte_and_word_need_tokens_that_restore_the_text(config, tmp_path):
    """Without byte tokens, characters of the validation text that training lacks are lost."""
    totals = {"loss": 8.0, "nll": 6.0, "correct": 1.0, "count": 4.0, "bytes": 12.0, "slots": 8.0}
    summary = summarize(totals, is_exact=True, num_words=2)
    assert summary["perplexity_per_word"] == pytest.approx(math.exp(3))
    assert summary["bits_per_byte"] == pytest.approx(6 / math.log(2) / 12)
    assert summary["perplexity"] == pytest.approx(math.exp(1.5))
    assert summary["padding"] == 0.5
    inexact = summarize(totals, is_exact=False, num_words=2)
    assert summary.keys() - inexact.keys() == {"bits_per_byte", "perplexity_per_word"}
    (tmp_path / "text.txt").write_text(TEXT + "€" * 20)
    data = dataclasses.replace(config.data, byte_fallback=False, vocab_size=60, tokenizer="char")
    task = open_task(resolve(dataclasses.replace(config, data=data)), tmp_path)
    assert not task.is_exact
    assert "bits_per_byte" not in task.summary(totals)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"kind": "transformer"}},
            "model.kind is 'transformer'; with task=language_modeling, it must",
        ),
        (
            {"model": {"prefix": "bidirectional"}},
            "model.prefix is 'bidirectional'; .*must be causal, since there is no source",
        ),
        (
            {"data": {"name": "number_words", "options": {}}},
            "'number_words', a set of pairs; choose a set of doc",
        ),
        (
            {"model": {"positions": "learned", "max_positions": 16}},
            "data.row_length is 32, but model.positions='learned' has only 16 positions; increase",
        ),
    ],
    ids=["kind", "prefix", "pairs", "positions"],
)
def test_an_unusable_config_is_refused(config, tmp_path, changes, message):
    sections = {
        name: dataclasses.replace(getattr(config, name), **values) for name, values in changes.items()
    }
    with pytest.raises(UserError, match=message):
        open_task(resolve(dataclasses.replace(config, **sections)), tmp_path).plan  # noqa: B018


def test_the_commands_train_score_and_sample_a_language_model(config, tmp_path):
    folder, source = tmp_path / "run", tmp_path / "text.txt"
    words = "configs/gpt.py:shakespeare,smoke"
    arguments = (f"--config.data.options.file={source}", f"--config.data.data_dir={tmp_path / 'prepared'}")
    single = "--config.train.parallelism=single"
    call("train", f"--config={words}", single, f"--workdir={folder}", *arguments)
    scored = call("evaluate", f"--workdir={folder}", "--split=validation").stdout
    assert "bits_per_byte" in scored
    samples = call(
        "generate", f"--workdir={folder}", "--prompt=def f", "--num_tokens=8", "--samples=2"
    ).stdout
    first, second = re.fullmatch("--- sample 1\n(.*)\n--- sample 2\n(.*)\n", samples, re.DOTALL).groups()
    assert min(len(first), len(second)) > len("def f")
    assert first.startswith("def f")
    assert second.startswith("def f")
    assert first != second
    text = call("generate", f"--workdir={folder}", "--num_tokens=8", stdin=b"\xef\xbb\xbfdef").stdout
    assert text.startswith("def")
    call("visualize", f"--workdir={folder}", "--sentence=def f", "--page")
    page = (folder / "figures" / "explorer.html").read_text()
    assert "decoder self-attention" in page
    assert '"title": "embeddings"' in page
    refused = [
        call("generate", f"--workdir={folder}", *flags, stdin=b"\xff", status=2)
        for flags in ((), ("--prompt=a", "--num_tokens=99"), (f"--input={tmp_path / 'none.txt'}",))
    ]
    flags = ("--samples=2", "--set=decode.sampling=false")
    assert "remove --samples" in call("generate", f"--workdir={folder}", *flags, status=2).stderr
    assert "standard input: not UTF-8 at byte 1" in refused[0].stderr
    assert "only 64 positions" in refused[1].stderr
    assert "is not a file" in refused[2].stderr
    assert not any(done.stdout for done in refused)
    for command, flag in (
        ("translate", f"--input={source}"),
        ("evaluate", "--ablate=all"),
    ):
        refused = call(command, f"--workdir={folder}", flag, status=2)
        assert "translation" in refused.stderr
        assert "Traceback" not in refused.stderr
    for command, field in (
        ("generate", "decode.beam_size"),
        ("generate", "decode.batch_tokens"),
        ("evaluate", "decode.max_source_length"),
        ("evaluate", "decode.seed"),  # nothing is sampled
    ):
        line = refuse(command, f"--workdir={folder}", f"--set={field}=2")
        assert line == f"--set changes {field}, which has no effect in this call; leave it out"

"""The page of a study: content, size, escaping, and behaviour in headless Chromium."""

import contextlib
import dataclasses
import re
import shutil

import numpy as np
import pytest

from experiments.run_folder import Run
from experiments.score_files import Evaluation, ScoreFiles
from experiments.study.page import page
from experiments.study.report import write_report
from experiments.study.results import read_study
from experiments.study.study_file import Trial, Tuned, write_study
from experiments.study.sweep import expand
from tests.support.chromium import needs_chromium, run_script
from tests.support.commands import ROOT
from tests.support.studies import DEMO, write_run
from transformer.training.metric_log import MetricsWriter

BY_LENGTH = [{"least": 1, "most": 8, "sentences": 20}, {"least": 9, "most": 12, "sentences": 20}]


def write_whole_study(root, sweep, seeds, sentences=30):
    """Writes a study with scores, learning curves and translations, in which later variants score higher."""
    rng = np.random.default_rng(0)
    runs = expand(sweep, {}, seeds=seeds)
    costs = {variant: {"parameters": 1e6, "flops": 1e12} for variant in sweep.variants}
    write_study(root, sweep, runs, costs=costs)
    for planned in runs:
        level = 10.0 * list(sweep.variants).index(planned.variant) + rng.normal()
        run = write_run(root, planned, {})
        writer = MetricsWriter(run.folder, 0)
        for step in (10, 20):
            layers = {f"gradient_norm.encoder.layers_{layer}": 1.0 / step for layer in range(2)}
            layers["attention_entropy.decoder.layers_1.cross_attention"] = 0.5
            writer.write({"kind": "train", "step": step, "loss": 5.0 - level / 100 - step / 10, **layers})
            writer.write({"kind": "validation", "step": step, "perplexity": 50.0 - level / 10 - step})
        writer.close()
        for split in sweep.splits:
            scores = dict.fromkeys(sweep.metrics, level)
            lengths = [{**bucket, "exact_match": level} for bucket in BY_LENGTH]
            made_from = {
                "identity": run.result["identity"],
                "checkpoints": [10, 20],
                "signatures": {},
                "by_length": lengths,
            }
            texts = [
                [f"{word} {number} {name}" for number in range(sentences)]
                for word, name in (("a", "source"), ("b", planned.variant), ("c", "reference"))
            ]
            ScoreFiles(run, split, {}).write(Evaluation(scores | made_from, *texts))
    return read_study(root)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The folder of a study of three variants with three seeds. Tests must not change its scores."""
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def study(root):
    names = {
        "base": {},
        "deep": {"model.num_layers": 3},
        "<img src=x onerror=alert(1)>&": {"model.d_ff": 256},
    }
    sweep = dataclasses.replace(DEMO, variants=names, published={"deep": {"paper: bleu": 25.5}})
    with contextlib.chdir(ROOT):
        return write_whole_study(root, sweep, seeds=3)


def test_the_page_has_the_whole_report_and_loads_nothing(study, root):
    html = page(study)
    for text in (
        *(
            "Does depth help?",
            "deep is better than base",
            "paper: bleu",
            ">25.5<",
            "95% interval",
            "number_words/",
        ),
        *(
            "validation perplexity",
            "FLOPs of the training",
            "gradient norm, encoder, first record",
            "attention entropy, decoder cross attention, last record",
            "model.num_layers",
            "jax 0.",
            "Some variants have 3 seeds",
        ),
    ):
        assert text in html, text
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!x onerror)[^"'\s>]""", html)
    folder = write_report(root, study)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert first["report.html"].decode() == html
    shutil.rmtree(folder)
    write_report(root, read_study(root))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_names_are_escaped(study):
    html = page(study)
    assert "<img" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;&amp;" in html


@pytest.mark.slow
def test_a_large_study_stays_below_500_kilobytes(sweep, tmp_path):
    variants = {f"variant-{number}": {"model.d_ff": 8 * (number + 1)} for number in range(20)}
    sweep = dataclasses.replace(sweep, variants=variants, baseline="variant-0")
    study = write_whole_study(tmp_path, sweep, seeds=5, sentences=1_000)
    assert len(page(study).encode()) < 500_000


def test_runs_without_scores_are_listed_with_the_reason(sweep, tmp_path):
    runs = expand(sweep, {}, seeds=2)
    write_study(tmp_path, sweep, runs)
    write_run(
        tmp_path, runs[0], {}, status="failed", result={"reason": "diverged", "message": "diverged at 7"}
    )
    Run(tmp_path / runs[1].id).begin(runs[1].config)
    html = page(read_study(tmp_path))
    for cells in (
        ("base", "0", "diverged at 7"),
        ("base", "1", "not started"),
        ("deep", "0, 1", "not started"),
    ):
        assert "".join(f"<td>{cell}</td>" for cell in cells) in html


def test_a_tuned_study_shows_its_trials(study):
    assert "<h2>Tuning</h2>" not in page(study)
    trials = [Trial({"optimizer.learning_rate": 0.1}, None), Trial({"optimizer.learning_rate": 0.01}, 1.5)]
    html = page(dataclasses.replace(study, tuned={"deep": Tuned(trials[1].values, trials)}))
    for cells in (("0.1", "diverged", ""), ("0.01", "1.5000", "chosen")):
        rate, loss, chosen = cells
        assert f"<td>deep</td><td>optimizer.learning_rate={rate}</td><td>{loss}</td><td>{chosen}</td>" in html


SCRIPT = """
const rows = () => find("#scores tbody tr").filter(row => !row.hidden).map(row => row.cells[0].textContent);
const head = number => find("#scores th button")[number];
result.first = rows();
head(2).click(); result.highest = rows();
head(2).click(); result.lowest = rows();
head(0).click(); result.names = rows();
const filter = document.getElementById("filter");
filter.value = "DEE"; filter.dispatchEvent(new Event("input")); result.filtered = rows();
const boxes = find("#switches input");
const shown = () => find("svg .v1").every(mark => getComputedStyle(mark).display !== "none");
result.before = shown(); boxes[1].click(); result.after = shown(); boxes[1].click(); result.again = shown();
const select = document.querySelector("select[data-charts=seeds]");
select.selectedIndex = 2; select.dispatchEvent(new Event("change"));
result.charts = find("[data-chart=seeds]").map(chart => !chart.hidden);
result.pairs = find("#pairs .pair").length;
sides[1].selectedIndex = 0; sides[1].dispatchEvent(new Event("change"));
result.alike = pairs.textContent;
result.focusable = find("#scores th button, input, select").every(item => item.tabIndex === 0);
result.images = document.images.length;
"""


@needs_chromium
def test_the_page_works_in_chromium(study, tmp_path):
    result = run_script(page(study), SCRIPT, tmp_path)
    image = "<img src=x onerror=alert(1)>&"
    assert result["first"] == result["lowest"] == ["base", "deep", image]
    assert result["highest"] == [image, "deep", "base"]
    assert result["names"] == result["first"]
    assert result["filtered"] == ["deep"]
    assert (result["before"], result["after"], result["again"]) == (True, False, True)
    assert result["charts"] == [False, False, True, False]
    assert result["pairs"] == 30
    assert result["alike"] == "The two variants translate these sentences identically."
    assert result["focusable"]
    assert result["images"] == 0

"""Sweep files and the plans that they give."""

import dataclasses

import pytest

from experiments.config_files import load_config
from experiments.costs import count_parameters
from experiments.study import equal
from experiments.study.plan import Selection
from experiments.study.sweep import PlannedRun, expand, expand_trials
from experiments.study.sweep_file import load_sweep
from tests.support.errors import refused


def test_a_plan_has_every_variant_with_every_seed(sweep):
    runs = expand(sweep, {"train.steps": 7}, seeds=2)
    assert [(run.variant, run.seed) for run in runs] == [("base", 0), ("deep", 0), ("base", 1), ("deep", 1)]
    assert {run.config.train.steps for run in runs} == {7}
    assert [run.config.model.num_layers for run in runs] == [2, 3, 2, 3]
    assert [run.config.train.seed for run in runs] == [0, 0, 1, 1]


def test_the_id_of_a_run_changes_only_with_fields_that_affect_the_result(sweep):
    (run, deep) = expand(sweep, {}, seeds=1)
    assert run.id.startswith("base/0-")
    assert run.id.partition("/")[2] != deep.id.partition("/")[2]
    unimportant = {
        "train.log_every": 1,
        "train.parallelism": "pmap",
        "data.data_dir": "/x",
        "data.workers": 2,
    }
    assert expand(sweep, unimportant, seeds=1)[0].id == run.id
    for key, value in {"train.batch_tokens": 99, "data.options.lists": "9", "decode.seed": 0}.items():
        changed = expand(sweep, {key: value}, seeds=1)[0]
        assert (changed.id == run.id) == (key == "decode.seed"), key


@pytest.mark.parametrize(
    ("variant", "overrides", "message"),
    [
        ({"model.num_layer": 3}, {}, "variant new: unknown config key model.num_layer; did you mean model.num_layers?"),
        ({"model": {"num_layers": 3}}, {}, "variant new: model is a group of fields; name single fields, such as model.num_layers"),
        ({"model.d_ff": 3}, {"model.d_ff": 2}, "--set cannot change model.d_ff, which the study varies; change the sweep file instead"),
    ],
)  # fmt: skip
def test_an_impossible_plan_is_refused(sweep, variant, overrides, message):
    wrong = dataclasses.replace(sweep, variants={"new": variant})
    assert refused(expand, wrong, overrides, seeds=1) == message


def test_a_metric_that_is_undefined_for_the_language_is_refused(sweep):
    wrong = dataclasses.replace(sweep, metrics=("chrf", "perplexity_per_word"))
    overrides = {"data.target": "ja"}
    assert refused(expand, wrong, overrides, seeds=1).startswith(
        "an entry of METRICS for variant base (task translation) is 'perplexity_per_word'; it must be one of: "
    )


def test_a_wrong_value_is_refused_before_anything_is_trained(sweep):
    wrong = dataclasses.replace(sweep, variants={"new": {"model.positions": "lerned"}})
    assert refused(expand, wrong, {}, seeds=1).startswith(
        "variant new: model.positions is 'lerned'; it must be one of: "
    )


def test_the_error_for_a_sweep_file_says_what_is_wrong(tmp_path):
    path = tmp_path / "study.py"
    assert refused(load_sweep, "nowhere.py") == "there is no sweep file 'nowhere.py'"
    path.write_text("CONFIG = 'configs/base.py'\nVARIANTS = {}\n")
    assert "does not define SPLITS" in refused(load_sweep, str(path))
    path.write_text(SWEEP.replace("VARIANTS", "VARIENTS"))
    assert refused(load_sweep, str(path)) == f"sweep file {path} defines VARIENTS; did you mean VARIANTS?"


SWEEP = """
CONFIG = "configs/number_words.py"
VARIANTS = {"base": {}, "deep": {"model.num_layers": 3}}
SPLITS = ("test", "test_long")
METRICS = ("exact_match", "chrf")
"""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("VARIANTS = {}", "FILE has no variants; add one to VARIANTS, or values to GRID"),
        ("del VARIANTS; GRID = {}", "FILE has no variants; add one to VARIANTS, or values to GRID"),
        ("del VARIANTS; GRID = {'data.source': ('report', 'en')}", "variant 'report' in FILE has the name of a file or folder of a study; rename it"),
        ("VARIANTS = ['a']", "VARIANTS in FILE is ['a']; it must map the name of each variant to its changes"),
        ("VARIANTS = {'a': ['b']}", "VARIANTS in FILE is {'a': ['b']}; it must map the name of each variant to its changes"),
        ("VARIANTS = {'a/b': {}}", "the name of a variant in FILE is 'a/b'; "),
        ("VARIANTS = {'..': {}}", "the name of a variant in FILE is '..'; "),
        ("VARIANTS = {3: {}}", "VARIANTS in FILE is {3: {}}; the name of a variant must be a string, not 3"),
        ("VARIANTS = {'a': {'train.seed': 3}}", "variant a in FILE sets train.seed, which a sweep file must not do; use --seeds"),
        ("VARIANTS = {'a': {3: 3}}", "variant a in FILE has the key 3; a key must be a string, such as 'train.steps'"),
        ("SPLITS = 'test'", "SPLITS in FILE is 'test'; it must be a tuple: ('test',)"),
        ("METRICS = 'bleu'", "METRICS in FILE is 'bleu'; it must be a tuple: ('bleu',)"),
        ("METRICS = ()", "METRICS in FILE is (); it must be a tuple of strings with at least one entry"),
        ("SPLITS = (1,)", "SPLITS in FILE is (1,); it must be a tuple of strings with at least one entry"),
        ("SPLITS = ('test', 'test')", "SPLITS in FILE is ('test', 'test'); an entry is repeated; name each once"),
        ("SPLITS = ('a/b',)", "an entry of SPLITS in FILE is 'a/b'; "),
        ("METRICS = ('bluu',)", "an entry of METRICS in FILE is 'bluu'; it must be one of: "),
        ("CONFIG = 3", "CONFIG in FILE is 3; it must be a string"),
        ("BASELINE = 'bass'", "BASELINE in FILE is 'bass'; it must be one of: base, deep"),
        ("BASLINE = 'base'", "sweep file FILE defines BASLINE; did you mean BASELINE?"),
        ("PRIMARY = 'chrf'", "PRIMARY in FILE is 'chrf'; it must be a pair of a metric in METRICS and a split in SPLITS, such as "),
        ("PRIMARY = ('bleu', 'test')", "PRIMARY in FILE is ('bleu', 'test'); it must be a pair of a metric in METRICS and a split in SPLITS, "),
        ("PRIMARY = ('chrf',)", "PRIMARY in FILE is ('chrf',); it must be a pair of a metric in METRICS and a split in SPLITS, "),
        ("GRID = {'model.d_ff': 3}", "GRID in FILE is {'model.d_ff': 3}; the values of model.d_ff must be a tuple"),
        ("GRID = {'train.seed': (1, 2)}", "GRID in FILE sets train.seed, which "),
        ("GRID = {'model.positions': ('base',)}", "GRID in FILE is {'model.positions': ('base',)}; a variant named base exists already; "),
        ("TUNE = {'model.num_layers': (1, 2)}", "TUNE in FILE tries model.num_layers, which a variant also sets; "),
        ("TUNE = ('a',)", "TUNE in FILE is ('a',); it must map config keys to the values to try"),
        ("PUBLISHED = {'wide': {'paper': 1.0}}", "variant in PUBLISHED of FILE is 'wide'; it must be one of: base, deep"),
        ("PUBLISHED = {'base': 25.8}", "PUBLISHED in FILE is {'base': 25.8}; it must map each variant to a mapping from labels to numbers"),
        ("PUBLISHED = {'base': {'paper': '25.8'}}", "PUBLISHED in FILE is {'base': {'paper': '25.8'}}; it must map each variant to a mapping from labels to numbers"),
        ("PUBLISHED = {'base': {'paper': True}}", "PUBLISHED in FILE is {'base': {'paper': True}}; it must map each variant to a mapping from labels to numbers"),
        ("PUBLISHED = {'base': {'paper': float('nan')}}", "PUBLISHED in FILE is {'base': {'paper': nan}}; it must map each variant to a mapping from labels to numbers"),
        ("TUNE = {'train.steps': (9, 9)}", "TUNE in FILE is {'train.steps': (9, 9)}; a value of train.steps is repeated; name each once"),
        ("EQUAL = 'target_tokens'; TUNE = {'train.batch_tokens': (256, 512)}", "TUNE in FILE tries train.batch_tokens, which may change the costs that EQUAL makes equal; remove it from TUNE, or leave EQUAL out"),
        *[(f"VARIANTS = {{{name!r}: {{}}}}", f"variant {name!r} in FILE has the name of a file or folder of a study; rename it")
          for name in ("config.json", "study.json", "report", "slurm")],
        ("EQUAL = 'step'", "EQUAL in FILE is 'step'; it must be one of: flops, parameters, steps, target_tokens"),
        ("EQUAL = 'steps'; TUNE = {'train.steps': (1, 2)}", "EQUAL in FILE computes train.steps, which variant base or TUNE also sets; leave train.steps out"),
    ],
)  # fmt: skip
def test_a_wrong_definition_is_refused(tmp_path, line, message):
    path = tmp_path / "study.py"
    path.write_text(f"{SWEEP}{line}\n")
    assert refused(load_sweep, str(path)).startswith(message.replace("FILE", str(path)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {"a": {}, "b": {"model.d_ff": 512}}}, "variants a and b have the same config, with model.d_ff=512; leave out one of them"),
        ({"variants": {"a": {"model.cell": "gru"}}}, "variant a sets model.cell, which has no effect in its config; leave it out"),
        ({"splits": ("dev",)}, "number_words has no split 'dev'; choose train, test, validation, test_long"),
        ({"variants": {"a": {}, "b": {"model.kind": "recurrent"}}, "baseline": "a", "equal": "parameters"},
         "EQUAL = 'parameters' adjusts model.d_ff, which variant b does not use; leave EQUAL out"),
        ({"variants": {"a": {"model.num_layers": 1}, "b": {"model.num_layers": 4}}, "baseline": "a", "equal": "parameters"},
         "EQUAL = 'parameters' is impossible: without feed-forward networks, variant b already has "),
    ],
)  # fmt: skip
def test_a_plan_with_a_wrong_variant_is_refused(sweep, changes, message):
    wrong = dataclasses.replace(sweep, **changes)
    assert refused(expand, wrong, {}, seeds=1).startswith(message)


def test_a_variant_can_be_selected_whatever_its_name(tmp_path):
    """The name of a variant in a grid may contain commas and brackets, which patterns read otherwise."""
    config = load_config("configs/number_words.py", {})
    runs = [PlannedRun(variant, 0, config) for variant in ("1,2", "a[1]", "b")]
    for run in runs:
        selection = Selection(only=[f"{run.variant}/0"])
        selection.check(runs, {})
        assert [selected for selected in runs if selection.includes(selected)] == [run]


def test_a_grid_is_named_by_its_values(tmp_path):
    path = tmp_path / "norm.py"
    path.write_text(
        SWEEP.replace("VARIANTS", "_")
        + "GRID = {'model.residual': ('post_norm', 'pre_norm'), 'optimizer.warmup_steps': (1, 9)}"
    )
    sweep = load_sweep(str(path))
    assert list(sweep.variants) == [
        "post_norm,warmup_steps=1", "post_norm,warmup_steps=9", "pre_norm,warmup_steps=1", "pre_norm,warmup_steps=9"
    ]  # fmt: skip
    assert sweep.variants["pre_norm,warmup_steps=1"] == {
        "model.residual": "pre_norm", "optimizer.warmup_steps": 1
    }  # fmt: skip
    assert (sweep.baseline, sweep.primary) == ("post_norm,warmup_steps=1", ("exact_match", "test"))


@pytest.mark.parametrize(("resource", "steps"), [("steps", 1_200), ("target_tokens", 600), ("flops", 600)])
def test_variants_get_as_much_training_as_the_baseline(sweep, resource, steps):
    variants = {"base": {}, "large_batches": {"train.batch_tokens": 2048}}
    planned = expand(dataclasses.replace(sweep, variants=variants, equal=resource), {}, seeds=1)
    assert planned[0].config == expand(sweep, {}, seeds=1)[0].config
    assert [run.config.train.steps for run in planned] == [1_200, steps]


def test_variants_get_as_many_parameters_as_the_baseline(sweep):
    variants = {"base": {}, "gated": {"model.feed_forward": "swiglu"}}
    planned = expand(dataclasses.replace(sweep, variants=variants, equal="parameters"), {}, seeds=1)
    assert planned[0].config == expand(sweep, {}, seeds=1)[0].config
    base, gated = (count_parameters(run.config) for run in planned)
    assert gated == pytest.approx(base, rel=1e-3)


def test_costs_are_computed_once_for_all_seeds(sweep, monkeypatch):
    described = []
    monkeypatch.setattr(equal, "describe", lambda config: described.append(config) or {"flops_per_step": 1})
    expand(dataclasses.replace(sweep, equal="flops"), {}, seeds=5)
    assert len(described) == len(sweep.variants)


def test_each_variant_has_equally_many_trials(sweep):
    tuned = dataclasses.replace(sweep, tune={"optimizer.learning_rate": [1e-3, 2e-3], "train.steps": [9, 10]})
    trials = expand_trials(tuned, {})
    assert len(trials) == 8
    assert {run.seed for run, _ in trials} == {0}
    by_variant = [values for run, values in trials if run.variant == "deep"]
    assert by_variant == tuned.trials
    chosen = {"base": tuned.trials[0], "deep": tuned.trials[3]}
    runs = expand(tuned, {}, 2, chosen)
    assert {run.id for run in runs if run.seed == 0} <= {run.id for run, _ in trials}
    assert [run.config.train.steps for run in runs] == [9, 10, 9, 10]


def test_arguments_after_the_name_of_a_sweep_are_added_to_its_config(sweep):
    assert load_sweep("configs/sweeps/positions.py:smoke").config == "configs/number_words.py:smoke"
    assert load_sweep("configs/sweeps/table3.py:smoke").config == "configs/table3.py:number_words,smoke"


def test_a_config_file_is_refused_as_a_sweep_file():
    message = refused(load_sweep, "configs/number_words.py")
    assert message.startswith("configs/number_words.py is a config file, not a sweep file; name it as CONFIG")

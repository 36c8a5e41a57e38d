"""Departures of a config from the paper.

A departure is a value that the paper does not report for base, for big or for a row of Table 3. A combination
of values that the paper reports only for different models is a departure, too. Each config field declares the
values that the paper reports (`transformer.config`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformer.config import (
    Declaration,
    ExperimentConfig,
    Rule,
    declarations,
    flatten,
    to_dict,
)

# The target language and the vocabulary that the paper reports for each data set.
PAIRS: dict[str, dict[str, Any]] = {
    "wmt14_translate/de-en": {"data.target": "de", "data.tokenizer": "bpe", "data.vocab_size": 37_000},
    "wmt14_translate/fr-en": {
        "data.target": "fr",
        "data.tokenizer": "word pieces",
        "data.vocab_size": 32_000,
    },
}
# The columns of Table 3 and the values of big (P_drop for EN-FR is 0.1, section 6.1).
BIG: dict[str, Any] = {
    "model.num_layers": 6,
    "model.d_model": 1_024,
    "model.d_ff": 4_096,
    "model.num_heads": 16,
    "model.d_k": None,
    "model.dropout_rate": 0.3,
    "model.positions": "sinusoidal",
    "train.label_smoothing": 0.1,
    "train.steps": 300_000,
}
BIG_ONLY = {"model.dropout_rate", "train.steps"}  # values of big that no other row has


def is_read(field: str, config: ExperimentConfig) -> bool:
    """Returns true if a field has an effect, given the other values of a config."""
    declared = declarations(ExperimentConfig).get(field)
    return declared is None or all(condition(config) for condition in declared.read_if)


def departures(config: ExperimentConfig, options_type: type | None = None) -> list[str]:
    """Returns one line per departure. Each line begins with the name of a field.

    Args:
      config: a config with complete `data.options`, as `tasks.resolve` returns it.
      options_type: the dataclass that declares `data.options`; if None, the options are not compared.
    """
    declared = declarations(ExperimentConfig)
    if options_type is not None:
        declared |= declarations(options_type, "data.options.")
    values = flatten(to_dict(config))
    departing = [
        field
        for field, declaration in declared.items()
        if field in values and _departs(field, values[field], declaration, config)
    ]
    lines = [
        f"{field} is {values[field]!r}; the paper's: {_text(declared[field].paper)}" for field in departing
    ]
    combinations = () if "model.kind" in departing else _mixed_rows(config, departing)
    return [*lines, *_unequal_depths(config), *_mixed_pairs(config, declared), *combinations]


def _departs(field: str, value: Any, declared: Declaration, config: ExperimentConfig) -> bool:
    is_effective = all(condition(config) for condition in declared.read_if) and declared.departs_if(config)
    return bool(declared.paper) and is_effective and not _is_reported(field, value, declared, config)


def _unequal_depths(config: ExperimentConfig) -> Iterator[str]:
    encoder, decoder = config.model.encoder_depth, config.model.decoder_depth
    has_two_stacks = all(is_read(f"model.{side}_layers", config) for side in ("encoder", "decoder"))
    if encoder != decoder and has_two_stacks:
        yield (
            f"model.encoder_layers is {encoder} and model.decoder_layers {decoder}; "
            "the paper's: equal numbers (section 3.1)"
        )


def _mixed_pairs(config: ExperimentConfig, declared: Mapping[str, Declaration]) -> Iterator[str]:
    """Yields a line for each field whose value the paper reports only for the other pair of languages."""
    values = flatten(to_dict(config))
    for field, value in PAIRS.get(_without_version(config.data.name), {}).items():
        if values[field] != value and _is_reported(field, values[field], declared[field], config):
            yield (
                f"{field} is {values[field]!r}; the paper's with {config.data.name}: {value!r} (section 5.1)"
            )


def _mixed_rows(config: ExperimentConfig, departing: Sequence[str]) -> Iterator[str]:
    """Yields a line if Table 3 has each of the values, but no single model of the paper has all of them.

    The fields in `departing` have lines of their own and are left out.
    """
    base, columns = _columns(ExperimentConfig()), _columns(config)
    changed = {field for field in columns if columns[field] != base[field] and field not in departing}
    big = BIG | ({"model.dropout_rate": 0.1} if config.data.target == "fr" else {})
    like_big = any(columns[field] == BIG[field] for field in BIG_ONLY & changed)
    if columns == big or (len(changed) < 2 and not like_big):
        return
    names = {"model.num_layers": "model.encoder_layers"} if config.model.encoder_layers else {}
    values = ", ".join(
        f"{names.get(field, field)} is {columns[field]!r}" for field in columns if field in changed
    )
    models = "no single model of the paper has these values"
    if len(changed) == 1:
        models = "the paper has this value with big only"
    yield f"{values}; {models} (Table 3)"


def _columns(config: ExperimentConfig) -> dict[str, Any]:
    """Returns the values of a config for the columns of Table 3."""
    values = flatten(to_dict(config))
    columns = {field: values[field] for field in BIG} | {"model.num_layers": config.model.encoder_depth}
    if columns["model.d_k"] == config.model.d_model / config.model.num_heads:
        columns["model.d_k"] = None
    return columns


def _without_version(name: str) -> str:
    return name.partition(":")[0]


def _is_reported(field: str, value: Any, declared: Declaration, config: ExperimentConfig) -> bool:
    value = _without_version(value) if field == "data.name" else value
    reported = [item for values in declared.paper.values() for item in values]
    rules = [item for item in reported if isinstance(item, Rule)]
    return value in reported or any(value in (None, rule.value(config)) for rule in rules)


def _text(paper: Mapping[str, Sequence[Any]]) -> str:
    return ", ".join(
        f"{', '.join(item.text if isinstance(item, Rule) else repr(item) for item in values)} ({place})"
        for place, values in paper.items()
    )

"""What the paper reports for each field of a config, and what of a config departs from it.

A departure is a value that the paper reports nothing for: not for base, not for big, not in a row of
Table 3; or values that it reports, but of no one model. Every field of every section is in `REPORTED` or in
`LEFT_OPEN`, and a test sees to it.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from transformer.config import ExperimentConfig, flatten, to_dict


class Rule(NamedTuple):
    """What None stands for.

    Attributes:
      text: in the paper's words.
      value: what it comes to in a config, so that the same in figures is no departure.
    """

    text: str
    value: Callable[[ExperimentConfig], Any] = lambda config: None


AS_DEEP = Rule("num_layers", lambda config: config.model.num_layers)
AS_WIDE = Rule("d_model / num_heads", lambda config: config.model.d_model / config.model.num_heads)
PEAK = Rule(
    "(d_model * warmup_steps)^-0.5",
    lambda config: (config.model.d_model * config.optimizer.warmup_steps) ** -0.5,
)

# Field -> where in the paper -> the values it has there.
REPORTED: dict[str, dict[str, list[Any]]] = {
    "model.kind": {"section 3.1": ["transformer"]},
    "model.num_layers": {"section 3.1": [6], "Table 3, row C": [2, 4, 8]},
    "model.encoder_layers": {"section 3.1": [AS_DEEP, 6], "Table 3, row C": [2, 4, 8]},
    "model.decoder_layers": {"section 3.1": [AS_DEEP, 6], "Table 3, row C": [2, 4, 8]},
    "model.d_model": {"section 3.1": [512], "Table 3, row C": [256], "Table 3, row C and big": [1_024]},
    "model.d_ff": {"section 3.3": [2_048], "Table 3, row C": [1_024], "Table 3, row C and big": [4_096]},
    "model.num_heads": {"section 3.2.2": [8], "Table 3, row A": [1, 4, 16, 32]},
    "model.d_k": {"section 3.2.2": [AS_WIDE], "Table 3, row B": [16, 32]},
    "model.d_v": {"section 3.2.2": [AS_WIDE]},
    "model.dropout_rate": {"section 5.4": [0.1], "Table 3, row D": [0.0, 0.2], "Table 3, big": [0.3]},
    "model.dropout_sites": {"section 5.4": ["paper"]},
    "model.positions": {"section 3.5": ["sinusoidal"], "Table 3, row E": ["learned"]},
    "model.overflow": {"section 3.5": [Rule("sinusoids go on"), "extrapolate"]},
    "model.norm": {"section 3.1": ["layer_norm"]},
    "model.norm_placement": {"section 3.1": ["post"]},
    "model.feed_forward": {"section 3.3": ["relu"]},
    "model.embeddings": {"section 3.4": ["three_way"]},
    "model.dtype": {"section 6.1: single precision": ["float32"]},
    "data.name": {"section 5.1": ["wmt14_translate/de-en", "wmt14_translate/fr-en"]},
    "data.source": {"section 5.1": ["en"]},
    "data.target": {"section 5.1": ["de", "fr"]},
    "data.train": {"section 5.1": [Rule("the whole split")]},
    "data.validation": {"section 6.2": [Rule("newstest2013")]},
    "data.test": {"section 6.1": [Rule("newstest2014")]},
    "data.tokenizer": {"section 5.1": ["bpe"]},
    "data.vocab_size": {"section 5.1": [37_000, 32_000]},
    "optimizer.beta1": {"section 5.3": [0.9]},
    "optimizer.beta2": {"section 5.3": [0.98]},
    "optimizer.epsilon": {"section 5.3": [1e-9]},
    "optimizer.warmup_steps": {"section 5.3": [4_000]},
    "optimizer.learning_rate": {"equation 3": [PEAK]},
    "train.steps": {"section 5.2": [100_000, 300_000]},
    "train.batch_tokens": {"section 5.1": [25_000]},
    "train.label_smoothing": {"section 5.4": [0.1], "Table 3, row D": [0.0, 0.2]},
    "train.validate_every": {"sections 5.2 and 6.1: every 10 minutes": [1_500, 600]},
    "train.patience": {"section 5.2": [Rule("no early end")]},
    "decode.sampling": {"section 6.1": [False]},
    "decode.beam_size": {"section 6.1": [4]},
    "decode.penalty": {"section 6.1": ["wu"]},
    "decode.length_penalty": {"section 6.1": [0.6]},
    "decode.max_extra": {"section 6.1": [50]},
    "decode.max_length": {"section 6.1": [Rule("input length + 50")]},
    "decode.min_length": {"section 6.1": [Rule("no least length"), 1]},
    "decode.average_last": {"section 6.1": [5, 20], "section 6.2": [1]},
}

# Fields in which no config departs, and why.
LEFT_OPEN: dict[str, str] = {
    "model.max_positions": "the paper does not say how many positions it learns; sinusoids have no end",
    "model.max_distance": "only schemes that are departures themselves read it",
    "model.equal_parameters": "only feed-forward layers that are departures themselves read it",
    "model.cell": "only kinds that are departures themselves read it",
    "data.data_dir": "where data lies",
    "data.manual_dir": "where data lies",
    "data.text": "only a data set that is a departure itself reads it",
    "data.held_out": "only a data set that is a departure itself reads it",
    "data.min_characters": "only a data set that is a departure itself reads it",
    "data.max_characters": "only a data set that is a departure itself reads it",
    "data.max_ratio": "only a data set that is a departure itself reads it",
    "data.deduplicate": "only a data set that is a departure itself reads it",
    "data.lists": "only a data set that is a departure itself reads it",
    "data.row_length": "the paper does not say which pairs are too long to train on",
    "data.workers": "changes no result",
    "train.seed": "the paper does not say",
    "train.accumulation": "changes no result",
    "train.placement": "changes no result",
    "train.log_every": "changes no result",
    "train.keep_last": "what counts is decode.average_last",
    "decode.temperature": "only sampling, which is a departure itself, reads it",
    "decode.top_k": "only sampling, which is a departure itself, reads it",
    "decode.top_p": "only sampling, which is a departure itself, reads it",
    "decode.seed": "only sampling, which is a departure itself, reads it",
    "decode.batch_tokens": "changes no result",
    "decode.max_source": "the paper does not say what it does with long sources",
}

# Fields that are read on a condition only.
READ_IF: dict[str, Callable[[ExperimentConfig], bool]] = {
    "model.num_layers": lambda config: None in (config.model.encoder_layers, config.model.decoder_layers),
    "model.dropout_sites": lambda config: config.model.dropout_rate > 0,
    "model.cell": lambda config: config.model.kind != "transformer",
    "model.equal_parameters": lambda config: config.model.feed_forward not in ("relu", "gelu"),
    "decode.beam_size": lambda config: not config.decode.sampling,
}
# Fields whose effect departs from the paper on a condition only.
DEPARTS_IF: dict[str, Callable[[ExperimentConfig], bool]] = {
    "model.overflow": lambda config: config.model.overflow != "error",  # a refusal changes no result
    "train.validate_every": lambda config: config.decode.average_last > 1,
    # Without a beam only scores are divided by it, and no output is another.
    "decode.penalty": lambda config: config.decode.beam_size > 1 and not config.decode.sampling,
    "decode.length_penalty": lambda config: config.decode.beam_size > 1 and not config.decode.sampling,
}
# Of `model`, what the recurrent kinds read.
READ_BY_RECURRENT = {
    "kind",
    "cell",
    "num_layers",
    "encoder_layers",
    "decoder_layers",
    "d_model",
    "dropout_rate",
    "embeddings",
    "dtype",
}
# What goes together: the pieces of each pair of languages.
PAIRS: dict[str, dict[str, Any]] = {
    "wmt14_translate/de-en": {"data.target": "de", "data.tokenizer": "bpe", "data.vocab_size": 37_000},
    "wmt14_translate/fr-en": {"data.target": "fr", "data.tokenizer": "word piece", "data.vocab_size": 32_000},
}
# What big has in the columns of Table 3 (EN-FR: P_drop 0.1, section 6.1), and in which a row changes base.
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
BIG_ALONE = {"model.dropout_rate", "train.steps"}  # whose values there no row has


def is_read(field: str, config: ExperimentConfig) -> bool:
    """Whether a field of `model` or `decode` has an effect in a config, as far as it depends on others."""
    section, _, name = field.partition(".")
    if section == "model" and config.model.kind != "transformer" and name not in READ_BY_RECURRENT:
        return False
    return _holds(READ_IF, field, config)


def _holds(conditions: dict[str, Callable[[ExperimentConfig], bool]], field: str, config) -> bool:
    return field not in conditions or conditions[field](config)


def departures(config: ExperimentConfig) -> list[str]:
    """A line for each departure, which begins with its field; none for a config of the paper's."""
    values = flatten(to_dict(config))
    alone = [
        field
        for field in REPORTED
        if is_read(field, config)
        and _holds(DEPARTS_IF, field, config)
        and not _is_reported(field, values[field], config)
    ]
    lines = [f"{field} is {values[field]!r}; the paper's: {_text(REPORTED[field])}" for field in alone]
    of_rows = () if "model.kind" in alone else _of_rows(config, without={*alone})
    return [*lines, *_of_depths(config), *_of_pairs(config), *of_rows]


def _of_depths(config: ExperimentConfig) -> Iterator[str]:
    encoder, decoder = config.model.encoder_depth, config.model.decoder_depth
    if is_read("model.encoder_layers", config) and encoder != decoder:
        yield (
            f"model.encoder_layers is {encoder} and model.decoder_layers {decoder}; "
            "the paper's: equally many (section 3.1)"
        )


def _of_pairs(config: ExperimentConfig) -> Iterator[str]:
    """What the paper has, but of its other pair of languages."""
    values = flatten(to_dict(config))
    for field, value in PAIRS.get(_without_version(config.data.name), {}).items():
        if values[field] != value and _is_reported(field, values[field], config):
            pair = f"the paper's with {config.data.name}"
            yield f"{field} is {values[field]!r}; {pair}: {value!r} (section 5.1)"


def _of_rows(config: ExperimentConfig, without: set[str]) -> Iterator[str]:
    """Values that the paper has in Table 3, but of several of its models; `without` fields that are named."""
    base, own = (_columns(one) for one in (ExperimentConfig(), config))
    changed = {field for field in own if own[field] != base[field] and field not in without}
    big = BIG | ({"model.dropout_rate": 0.1} if config.data.target == "fr" else {})
    as_big = any(own[field] == BIG[field] for field in BIG_ALONE & changed)
    if own == big or (len(changed) < 2 and not as_big):
        return
    names = {"model.num_layers": "model.encoder_layers"} if config.model.encoder_layers else {}
    values = ", ".join(f"{names.get(field, field)} is {own[field]!r}" for field in own if field in changed)
    models = "no one model of the paper's has this" if len(changed) > 1 else "the paper's with big alone"
    yield f"{values}; {models} (Table 3)"


def _columns(config: ExperimentConfig) -> dict[str, Any]:
    """The columns of Table 3."""
    values = flatten(to_dict(config))
    columns = {field: values[field] for field in BIG} | {"model.num_layers": config.model.encoder_depth}
    if columns["model.d_k"] == AS_WIDE.value(config):
        columns["model.d_k"] = None
    return columns


def _without_version(name: str) -> str:
    return name.partition(":")[0]


def _is_reported(field: str, value: Any, config: ExperimentConfig) -> bool:
    value = _without_version(value) if field == "data.name" else value
    reported = [one for values in REPORTED[field].values() for one in values]
    rules = [one for one in reported if isinstance(one, Rule)]
    return value in reported or any(value in (None, rule.value(config)) for rule in rules)


def _text(sources: dict[str, list[Any]]) -> str:
    return ", ".join(
        f"{', '.join(one.text if isinstance(one, Rule) else repr(one) for one in values)} ({source})"
        for source, values in sources.items()
    )

"""The paper's base model on WMT 2014 English-German: 65M parameters, 27.3 BLEU after 100,000 steps.

Every other config starts from this one, whose values are the dataclasses' own defaults. Not yet trained
by us: the figures are the paper's (Table 2).
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence

from ml_collections import ConfigDict, config_dict

from transformer.config import ExperimentConfig, UserError, choose

Variants = Mapping[str, Callable[[ConfigDict], None]]


def get_config(argument: str = "") -> ConfigDict:
    return with_arguments(defaults(), argument, {})


def defaults() -> ConfigDict:
    """The dataclasses' defaults, as a locked ConfigDict."""
    return _config_dict(ExperimentConfig()).lock()


def _config_dict(section) -> ConfigDict:
    config = ConfigDict()
    hints = typing.get_type_hints(type(section))
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            value = _config_dict(value)
        elif value is None:  # remembers the type, so that a flag can set it
            kind, *_ = (one for one in typing.get_args(hints[field.name]) if one is not types.NoneType)
            value = config_dict.placeholder(kind)
        config[field.name] = value
    return config


def with_arguments(
    config: ConfigDict,
    argument: str,
    variants: Variants,
    alternatives: Sequence[Collection[str]] = (),
) -> ConfigDict:
    """Applies the comma-separated words after a config's name in the order of `variants`, not their own.

    Args:
      config: changed in place, and returned.
      argument: as in `configs/multi30k.py:cpu,smoke`.
      variants: what each word changes; `smoke` is known to every config, and comes last unless it is there.
      alternatives: groups of words of which only one may be given.

    Raises:
      UserError: an unknown word, or two alternatives.
    """
    words = dict.fromkeys(word for word in argument.split(",") if word)
    known = {**variants, "smoke": smoke}
    for word in words:
        choose(known, word, "the config argument")
    words = sorted(words, key=list(known).index)
    for group in alternatives:
        given = [word for word in words if word in group]
        if len(given) > 1:
            raise UserError(f"the config argument has {' and '.join(given)}; it may have one of them")
    for word in words:
        known[word](config)
    return config


def smoke(config: ConfigDict) -> None:
    """Shrinks a config to seconds: it shows that everything runs, and nothing else."""
    config.model.update(num_layers=1, d_model=32, d_ff=64, num_heads=2)
    config.data.update(vocab_size=300, lists=200)
    config.optimizer.update(warmup_steps=10, learning_rate=3e-3)
    config.train.update(steps=20, batch_tokens=256, log_every=5, validate_every=10)
    config.decode.update(average_last=1, max_extra=10)

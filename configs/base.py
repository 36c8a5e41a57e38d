"""The paper's base model on WMT 2014 English-German: 65M parameters, 27.3 BLEU after 100,000 steps.

Every other config starts from this one. All values are the defaults of `ExperimentConfig`. We have not
trained this model; the figures are the paper's (Table 2).
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence

from ml_collections import ConfigDict, config_dict

from transformer.config import ExperimentConfig, UserError, choose

Variants = Mapping[str, Callable[[ConfigDict], None]]


def get_config(argument: str = "") -> ConfigDict:
    """Returns the config. Every config file defines a function with this name and signature."""
    return with_arguments(defaults(), argument, {})


def defaults() -> ConfigDict:
    """Returns the defaults of `ExperimentConfig` as a locked ConfigDict."""
    return _config_dict(ExperimentConfig()).lock()


def _config_dict(section) -> ConfigDict:
    # Without conversion, `data.options` stays a plain dict, which accepts any key.
    config = ConfigDict(convert_dict=False)
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            value = _config_dict(value)
        elif value is None:  # a placeholder stores the type of a field that a config may set later
            kind, *_ = (kind for kind in typing.get_args(field.type) if kind is not types.NoneType)
            value = config_dict.placeholder(kind)
        config[field.name] = value
    return config


def with_arguments(
    config: ConfigDict,
    argument: str,
    variants: Variants,
    alternatives: Sequence[Collection[str]] = (),
) -> ConfigDict:
    """Applies the arguments that follow the name of a config file, in the order of `variants`.

    Args:
      config: the config, which is changed in place and returned.
      argument: comma-separated words, such as `cpu,smoke` in `configs/multi30k.py:cpu,smoke`.
      variants: for each word, a function that changes the config. Every config also accepts the word `smoke`.
        If `variants` does not contain it, it is applied last.
      alternatives: groups of words; at most one word of each group may be given.

    Raises:
      UserError: a word is unknown, or two words of a group are given.
    """
    words = dict.fromkeys(word for word in argument.split(",") if word)
    known = {**variants, "smoke": variants.get("smoke", smoke)}
    for word in words:
        choose(known, word, "the config argument")
    words = sorted(words, key=list(known).index)
    for group in alternatives:
        chosen = [word for word in words if word in group]
        if len(chosen) > 1:
            raise UserError(f"the config argument has {' and '.join(chosen)}; give only one of them")
    for word in words:
        known[word](config)
    return config


def smoke(config: ConfigDict) -> None:
    """Shrinks a config so that training takes seconds. The scores of such a run have no meaning."""
    config.model.update(num_layers=1, d_model=32, d_ff=64, num_heads=2)
    config.data.vocab_size = 300
    if "lists" in config.data.options:
        config.data.options = {**config.data.options, "lists": 200}
    config.optimizer.update(warmup_steps=10, learning_rate=3e-3)
    config.train.update(steps=20, batch_tokens=256, log_every=5, validate_every=10, on_divergence="warn")
    config.decode.update(average_last=1, max_extra_length=10)

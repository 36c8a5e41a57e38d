"""Removes a part of a trained model: an attention head, a sub-layer, or the positions.

A removal acts at inference only; the model is not trained again. So the result says how much this trained
model relies on the part (Michel et al. 2019), not how well a model could be trained without the part.

A part is named as

    encoder.2.self.head.3          a head; layers and heads count from 1
    decoder.1.cross                a sub-layer: self, cross or feed_forward
    positions                      the position scheme of both stacks
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PyTree
from scipy import stats

from transformer.config import ModelConfig, UserError
from transformer.model.encoder_decoder import EncoderDecoder
from transformer.model.transformer import Transformer

PART = re.compile(r"(?P<stack>encoder|decoder)\.(?P<layer>\d+)\.(?P<kind>\w+?)(\.head\.(?P<head>\d+))?")
SUBLAYERS = {"self": "self_attention", "cross": "cross_attention", "feed_forward": "feed_forward"}
NUM_SAMPLES = 2_000  # of the bootstrap
# (model, parameters) -> loss of each sentence in nats, summed over its tokens.
NatsFn = Callable[[EncoderDecoder, PyTree], Float[np.ndarray, "n"]]


class Effect(NamedTuple):
    """The loss of a model without a part, minus the loss of the whole model.

    Attributes:
      part: the name of the part.
      difference: in nats per target token; positive if the model needs the part.
      low, high: bounds of the 95% interval of the difference, from a paired bootstrap over sentences. The
        interval accounts for the choice of sentences, not for the training of the model.
    """

    part: str
    difference: float
    low: float
    high: float


def parts(config: ModelConfig) -> list[str]:
    """Returns the names of all parts of a model that can be removed."""
    names = []
    for stack, depth in (("encoder", config.encoder_depth), ("decoder", config.decoder_depth)):
        for layer in range(1, depth + 1):
            for kind in ("self", "cross") if stack == "decoder" else ("self",):
                sublayer = f"{stack}.{layer}.{kind}"
                names += [f"{sublayer}.head.{head}" for head in range(1, config.num_heads + 1)] + [sublayer]
            names.append(f"{stack}.{layer}.feed_forward")
    return names + (["positions"] if config.positions != "none" else [])


def ablate(model: EncoderDecoder, params: PyTree, part: str) -> tuple[EncoderDecoder, PyTree]:
    """Returns a model and its parameters without one part.

    For a head, its rows of W^O are set to zero. For a sub-layer, its last linear map is set to zero, so only
    the residual connection is left; with `sandwich`, the bias of the norm of its output, too. For the
    positions, the position scheme is replaced by `none`: no vectors are added to the embeddings, no logits
    are biased, and queries and keys are not rotated.

    Args:
      model: the model.
      params: its parameters, which are not changed.
      part: the name of the part; see `parts`.

    Raises:
      UserError: the model has no such part.
    """
    if not isinstance(model, Transformer):
        raise UserError(
            f"model.kind is {model.config.kind!r}, but only parts of a transformer can be removed; "
            "use a run with model.kind=transformer"
        )
    if part not in (known := parts(model.config)):
        heads = f"heads 1 to {model.config.num_heads}"
        shown = [name for name in known if ".head." not in name]
        raise UserError(
            f"{part!r} is not a part of this model; choose one of: {', '.join(shown)}, "
            f"or one of the {heads} of an attention, such as {known[0]}"
        )
    if part == "positions":
        without = dataclasses.replace(model.config, positions="none")
        stacks = {
            name: {key: value for key, value in params[name].items() if key != "positions"}
            for name in ("encoder", "decoder")
        }
        return dataclasses.replace(model, config=without), {**params, **stacks}
    match = PART.fullmatch(part)
    place = (match["stack"], f"layers_{int(match['layer']) - 1}", SUBLAYERS[match["kind"]])
    if match["head"]:
        width = model.config.value_width
        rows = slice((int(match["head"]) - 1) * width, int(match["head"]) * width)
        zeroed = {"output": lambda x: x.at[rows].set(0)}
    else:
        name = "outer" if match["kind"] == "feed_forward" else "output"
        zeroed = {name: jnp.zeros_like}

    def remove(path, x):
        *modules, module, _ = (entry.key for entry in path)
        return zeroed[module](jnp.asarray(x)) if tuple(modules) == place and module in zeroed else x

    return model, jax.tree.map_with_path(remove, params)


def effects(
    model: EncoderDecoder,
    params: PyTree,
    nats: NatsFn,
    num_tokens: Int[np.ndarray, "n"],
    progress: Callable[[int], None] = lambda num_done: None,
) -> list[Effect]:
    """Returns the effect of removing each part of a model, the largest first.

    Args:
      model: the model.
      params: its parameters.
      nats: returns the loss in nats of each sentence of a test set, given a model and its parameters.
      num_tokens: number of target tokens of each sentence.
      progress: called with the number of finished parts.
    """
    whole = nats(model, params)
    measured = []
    for number, part in enumerate(parts(model.config), start=1):
        differences = nats(*ablate(model, params, part)) - whole
        measured.append(Effect(part, *_mean_per_token(differences, num_tokens)))
        progress(number)
    return sorted(measured, key=lambda effect: -effect.difference)


def _mean_per_token(
    differences: Float[np.ndarray, "n"], num_tokens: Int[np.ndarray, "n"]
) -> tuple[float, float, float]:
    """Returns the mean per token and the bounds of its 95% interval over sentences."""

    def mean(differences, num_tokens, axis=-1):
        return differences.sum(axis=axis) / num_tokens.sum(axis=axis)

    samples: Sequence[np.ndarray] = (differences, num_tokens)
    if np.ptp(differences) == 0:  # SciPy has no interval for equal values
        return (float(mean(*samples)),) * 3
    interval = stats.bootstrap(
        samples, mean, paired=True, vectorized=True, n_resamples=NUM_SAMPLES, method="percentile", rng=0
    ).confidence_interval
    return float(mean(*samples)), float(interval.low), float(interval.high)

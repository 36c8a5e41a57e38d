"""Log-probabilities of given translations."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from transformer.batch import TokenBatch
from transformer.config import DecodeConfig, UserError
from transformer.data.batching import length_batches, pad_rows
from transformer.data.tokenizer import Tokenizer
from transformer.model.encoder_decoder import EncoderDecoder
from transformer.model.ensemble import Ensemble


class Scorer:
    """Scores given translations with a trained model, without a search."""

    def __init__(
        self, model: EncoderDecoder | Ensemble, params: PyTree, tokenizer: Tokenizer, config: DecodeConfig
    ):
        """Moves the weights to the device.

        Args:
          model: the model.
          params: the weights of the model.
          tokenizer: the vocabulary.
          config: settings, of which `batch_tokens` and `max_source_length` are read.
        """
        self._model, self._tokenizer, self._config = model, tokenizer, config
        self._params = jax.device_put(params)

    def log_probs(
        self, texts: Sequence[str], targets: Sequence[str], first: int = 0
    ) -> list[Float[np.ndarray, "_"]]:
        """Returns the log-probability, in nats, of each token of the targets, EOS included.

        Args:
          texts: sentences.
          targets: a translation of each sentence.
          first: index of `texts[0]`, if the texts are part of a longer sequence; used in error messages.

        Raises:
          UserError: a text or a target has more tokens than the model has positions, or more than
            `decode.max_source_length`.
        """
        sides = [self._tokenizer.encode_arrays(side) for side in (texts, targets)]
        lengths = np.array([[len(tokens) for tokens in side] for side in sides], int).reshape(2, -1)
        self._check_lengths(lengths, first)
        scores: list[np.ndarray] = [np.zeros(0)] * len(texts)
        for batch in length_batches(lengths.max(axis=0, initial=0), self._config.batch_tokens):
            source, target = (
                pad_rows(
                    [side[member] for member in batch.members],
                    min(batch.length, limit or batch.length),
                    batch.num_rows,
                )
                for side, limit in zip(sides, self._model.max_lengths, strict=True)
            )
            log_probs = jax.device_get(_target_log_probs(self._model, self._params, source, target))
            for row, member in enumerate(batch.members):
                scores[member] = log_probs[row, : lengths[1, member]]
        return scores

    def _check_lengths(self, lengths: Int[np.ndarray, "2 n"], first: int) -> None:
        """Checks the numbers of tokens of the texts and of the targets; see `log_probs`.

        Raises:
          UserError: a text or a target is too long.
        """
        for side, side_lengths, limit in zip(
            ("text", "target"), lengths, self._model.max_lengths, strict=True
        ):
            limit = min(self._config.max_source_length, limit or self._config.max_source_length)
            if side_lengths.max(initial=0) > limit:
                raise UserError(
                    f"{side} {first + int(side_lengths.argmax()) + 1} has {side_lengths.max():,} tokens; it "
                    f"must have at most {limit:,}; shorten the {side}, or change decode.max_source_length "
                    "or model.overflow"
                )


@functools.partial(jax.jit, static_argnames="model")
def _target_log_probs(
    model: EncoderDecoder | Ensemble, params: PyTree, source: Int[Array, "b s"], target: Int[Array, "b t"]
) -> Float[Array, "b t"]:
    batches = TokenBatch.from_tokens(source), TokenBatch.from_tokens(target)
    log_probs = jax.nn.log_softmax(model.apply({"params": params}, *batches))
    return jnp.take_along_axis(log_probs, target[..., None], axis=-1)[..., 0]

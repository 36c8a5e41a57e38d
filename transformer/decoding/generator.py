"""Continuation of texts with a language model."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from transformer.config import BOS, PAD, UNK, DecodeConfig, UserError
from transformer.data.batching import bucket
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.sampling import Sampler
from transformer.decoding.search import Constraints, IndependentSearch, IndependentState, advance
from transformer.model.decoder_only import DecoderOnly
from transformer.model.masks import NEG_INF

CHUNK = 16  # tokens that are generated between two outputs
DEFAULT_TOKENS = 200


class Generator:
    """Continues texts, by sampling or with the most probable tokens.

    The settings are those of `DecodeConfig` for sampling; there is no beam search.
    """

    def __init__(self, model: DecoderOnly, params: PyTree, tokenizer: Tokenizer, config: DecodeConfig):
        """Sets up the model; `config.sampling` chooses between sampling and the most probable tokens."""
        self._model, self._params, self._tokenizer = model, jax.device_put(params), tokenizer
        self._config = config

    def stream(self, prompt: str, num_tokens: int | None = None, sample: int = 0) -> Iterator[str]:
        """Yields the continuation of a prompt in parts, as it is generated.

        It ends at the end of the document, or after `num_tokens` tokens.

        Args:
          prompt: the beginning of a document; may be empty.
          num_tokens: largest number of tokens of the continuation; if None, `DEFAULT_TOKENS`, or fewer if the
            model has not as many positions.
          sample: number of the sample; different samples of a prompt differ.

        Raises:
          UserError: the prompt and the continuation have more tokens than the model has positions.
        """
        tokens = [BOS, *self._tokenizer.encode(prompt)[:-1]]
        limit = self._model.max_length
        if num_tokens is None:
            num_tokens = (
                DEFAULT_TOKENS if limit is None else max(1, min(DEFAULT_TOKENS, limit - len(tokens) + 1))
            )
        if limit is not None and len(tokens) - 1 + num_tokens > limit:
            has_space = len(tokens) <= limit
            raise UserError(
                f"the prompt has {len(tokens) - 1} tokens"
                + (f", and {num_tokens} are requested" if has_space else "")
                + f", but the model has only {limit} positions; "
                + ("decrease --num_tokens or " if has_space else "")
                + "shorten the prompt"
            )
        length = -(-num_tokens // CHUNK) * CHUNK
        # The prompt is read except for its last token, which is the first input of the search.
        prompts = np.zeros((1, bucket(len(tokens))), np.int32)
        prompts[0, : len(tokens) - 1] = tokens[:-1]
        encoder_cache, state = _start(self._model, self._params, prompts, tokens[-1], length)
        text, limits = "", jnp.array([num_tokens])
        for end in range(CHUNK, length + 1, CHUNK):
            state = _advance(
                self._model, self._config, self._params, encoder_cache, state, limits, sample, end
            )
            output = np.asarray(state.tokens[0, 0, 1 : end + 1]).tolist()
            whole = self._tokenizer.decode([token for token in output if token != PAD])
            is_last = bool(state.finished[0])
            # A character of several byte tokens may be incomplete.
            stable = whole if is_last else whole.rstrip("\N{REPLACEMENT CHARACTER}")
            yield stable[len(text) :]
            text = stable
            if is_last:
                return


@functools.partial(jax.jit, static_argnames=("model", "length"))
def _start(
    model: DecoderOnly,
    params: PyTree,
    prompts: Int[Array, "1 s"],
    last_token: Int[Array, ""] | int,
    length: int,
) -> tuple[PyTree, IndependentState]:
    """Reads a prompt. Returns the mask of its tokens, and the state of the search before the first step."""
    cache, model_state = model.apply({"params": params}, prompts, 1, length, method="start_continuation")
    constraints = Constraints(jnp.array([length]))
    state = IndependentSearch().init(model_state, constraints, length)
    return cache, state._replace(tokens=state.tokens.at[:, :, 0].set(last_token))


@functools.partial(jax.jit, static_argnames=("model", "config"))
def _advance(model, config, params, encoder_cache, state, limits, sample, end) -> IndependentState:
    """Extends the output to `end` tokens."""

    def step(tokens, parents, model_state, index):
        arguments = (encoder_cache, model_state, tokens, parents, index)
        logits, model_state = model.apply({"params": params}, *arguments, method="decode_step")
        return logits.at[..., UNK].set(NEG_INF), model_state  # an unknown token is no text

    search = IndependentSearch()
    if config.sampling:
        sampler = Sampler(
            jax.random.key(config.seed), sample[None], config.temperature, config.top_k, config.top_p
        )
        search = IndependentSearch(choose_token=sampler)
    constraints = Constraints(limits, config.min_output_length)
    return advance(search, step, constraints, state, end)

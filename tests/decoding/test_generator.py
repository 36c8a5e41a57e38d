"""Continuation of texts: the tokens of the whole forward pass, in parts, within limits."""

import functools

import jax
import numpy as np
import pytest

from tests.support.tiny import random_params, tiny_config, token_batch
from transformer.config import BOS, EOS, PAD, UNK, DecodeConfig, UserError
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.generator import Generator
from transformer.model import build_model

GREEDY = DecodeConfig(sampling=False)


@functools.cache
def tokenizer():
    return Tokenizer.train(["ab cd\n", "é"] * 9, "char", 270, byte_fallback=True, exact=True)


@functools.cache
def model_and_params(**changes):
    model = build_model(tiny_config(kind="decoder_only", num_layers=1, **changes), 270, (0, 64))
    return model, jax.tree.map(lambda x: 3 * x, random_params(model, 1))


@functools.partial(jax.jit, static_argnames="model")
def next_logits(model, params, batch, index):
    """The logits after the token at `index` of the only row, without caches."""
    return model.apply({"params": params}, batch, method="next_token_logit_factors").logits()[0, index]


def generate(prompt, num_tokens, config=GREEDY, sample=0, **changes):
    model, params = model_and_params(**changes)
    return list(Generator(model, params, tokenizer(), config).stream(prompt, num_tokens, sample))


@pytest.mark.parametrize("positions", ["sinusoidal", "relative"])
@pytest.mark.parametrize("prompt", ["", "ab", "ab cd ab cd ab cd"])
def test_greedy_text_equals_that_of_whole_forward_passes(prompt, positions):
    """The prompt is read at once, and the rest with caches; the expected text is computed without caches."""
    model, params = model_and_params(positions=positions)
    tokens, num_prompt = [BOS, *tokenizer().encode(prompt)[:-1]], len(tokenizer().encode(prompt))
    for _ in range(20):
        logits = np.array(next_logits(model, params, token_batch([tokens], 64), len(tokens) - 1))
        logits[[PAD, BOS]] = -np.inf
        tokens.append(int(logits.argmax()))
        if tokens[-1] == EOS:
            break
    expected = tokenizer().decode(tokens[num_prompt:])
    assert "".join(generate(prompt, 20, positions=positions)) == expected


def test_samples_depend_on_the_seed_and_their_number():
    sampled = functools.partial(generate, "ab", 20)
    first = "".join(sampled(DecodeConfig(sampling=True)))
    assert "".join(sampled(DecodeConfig(sampling=True))) == first
    assert "".join(sampled(DecodeConfig(sampling=True), sample=1)) != first
    assert "".join(sampled(DecodeConfig(sampling=True, seed=1))) != first


def test_the_text_does_not_depend_on_its_parts():
    """More tokens are generated in more parts."""
    short, long = generate("ab", 10), generate("ab", 20)
    assert len(long) > len(short) == 1
    assert "".join(long).startswith("".join(short).rstrip("\N{REPLACEMENT CHARACTER}"))


def test_by_default_a_text_ends_at_the_last_position():
    model, params = model_and_params(positions="learned", max_positions=64)
    generator = Generator(model, params, tokenizer(), DecodeConfig(sampling=True, min_output_length=60))
    assert len(tokenizer().encode("ab " + "".join(generator.stream("ab ")))) > 40


def test_an_unknown_token_is_never_text():
    model, params = model_and_params()
    params = jax.tree.map(np.array, params)
    params["embedding"]["table"][UNK] *= 100
    assert "\u2047" not in "".join(Generator(model, params, tokenizer(), GREEDY).stream("ab", 20))


def test_a_text_longer_than_the_positions_is_refused():
    message = "the prompt has 3 tokens, and 62 are requested, but .*64 positions; decrease --num_tokens or "
    with pytest.raises(UserError, match=message):
        generate("ab ", 62, positions="learned", max_positions=64)
    with pytest.raises(UserError, match="the prompt has 64 tokens, but .* 64 positions; shorten the prompt"):
        generate("ab " * 21 + "a", None, positions="learned", max_positions=64)

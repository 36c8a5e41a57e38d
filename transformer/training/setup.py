"""From a config and a run folder to the parts that the loop turns."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import jax
from jaxtyping import Array, Key, PyTree

from transformer.config import ExperimentConfig, UserError
from transformer.data.corpus import Corpus, Split
from transformer.data.pipeline import TrainingBatches, evaluation_batches
from transformer.data.plan import BucketedPlan, PackedPlan, Plan
from transformer.data.tokenizer import Tokenizer
from transformer.model import build, init_params
from transformer.model.encoder_decoder import EncoderDecoder
from transformer.model.positions import POSITIONS
from transformer.training.losses import Hyper, Sums, make_loss_fn
from transformer.training.optimizer import adam, peak_learning_rate
from transformer.training.placement import Placement, place
from transformer.training.step import TrainState, initial_state, make_train_step, make_validation_step

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Task:
    """What one run trains, on what, and how.

    Attributes:
      state: the state before the first update.
      key: the key of all dropout.
      hyper: learning rate, dropout and smoothing.
      train_step: (state, batch, key, hyper) -> (state, sums, info).
      validate: (params) -> sums over the validation split.
      batches: the batch of each step.
      plan: which examples go into them.
      placement: where they go.
      tokenizer: the vocabulary.
      data: the identity of the data.
    """

    state: TrainState
    key: Key[Array, ""]
    hyper: Hyper
    train_step: Callable
    validate: Callable[[PyTree], Sums]
    batches: TrainingBatches
    plan: Plan
    placement: Placement
    tokenizer: Tokenizer
    data: str


def set_up(config: ExperimentConfig, folder: Path) -> Task:
    """Builds everything a run needs; its vocabulary is `folder`'s own where it has one.

    Raises:
      UserError: a name, the data or a length that cannot be used, as early as it can be known.
    """
    placement = place(config.train.placement)
    packs = build(config.model, vocab_size=1).packs  # refuses unknown names before data is touched
    corpus = open_corpus(config, folder)
    training, validation = corpus.split("train"), corpus.split("validation")
    plan = _plan(config, training, PackedPlan if packs else BucketedPlan)
    model = build(config.model, corpus.tokenizer.vocab_size)
    check_lengths(model, "train", plan.longest)
    check_lengths(model, "validation", validation.longest)
    params = init_params(model, config.train.seed)
    log.info("%s parameters", f"{sum(x.size for x in jax.tree.leaves(params)):,}")
    optimizer, loss_fn = adam(config.optimizer), make_loss_fn(model)
    hyper = make_hyper(config)
    return Task(
        state=initial_state(params, optimizer),
        key=jax.random.fold_in(jax.random.key(config.train.seed), 1),
        hyper=hyper,
        train_step=make_train_step(
            loss_fn, optimizer, config.optimizer.warmup_steps, placement, config.train.accumulation
        ),
        validate=make_validation(
            make_validation_step(loss_fn, placement), hyper, validation, config.decode.batch_tokens, placement
        ),
        batches=TrainingBatches(training, plan, config.train.steps, jax.process_index(), jax.process_count()),
        plan=plan,
        placement=placement,
        tokenizer=corpus.tokenizer,
        data=corpus.identity,
    )


def make_hyper(config: ExperimentConfig) -> Hyper:
    """The values that a step takes at run time."""
    return Hyper(
        learning_rate=peak_learning_rate(config.optimizer, config.model.d_model),
        dropout_rate=config.model.dropout_rate,
        label_smoothing=config.train.label_smoothing,
    )


def open_corpus(config: ExperimentConfig, folder: Path) -> Corpus:
    """The data of a run; the vocabulary is kept in its folder from the first time on."""
    path = folder / "tokenizer.model"
    corpus = Corpus(config.data, Tokenizer.load(path) if path.exists() else None)
    if not path.exists():
        partial = path.with_suffix(".partial")  # a broken one would stand in the way
        partial.write_bytes(corpus.tokenizer.model)
        partial.rename(path)
    return corpus


def check_lengths(model: EncoderDecoder, split: str, longest: tuple[int, int]) -> None:
    """Refuses a split with an example that the model cannot place: nothing is clipped in silence.

    Args:
      longest: pieces of the longest source and the longest target in the split.
    """
    for side, own, most in zip(("source", "target"), longest, model.longest, strict=True):
        if most is None or own <= most:
            continue
        scheme = f"model.positions={model.config.positions!r}"
        if most in (model.trained_lengths or ()):
            policies = POSITIONS[model.config.positions].overflows
            others = " or ".join(policy for policy in policies if policy != "error")
            end = f"{scheme} was trained up to {most}; give --set=model.overflow={others}"
        else:
            end = f"{scheme} ends at {most}; raise model.max_positions"
        raise UserError(f"split {split!r} has a {side} of {own} pieces, but {end}")


def make_validation(
    validation_step: Callable, hyper: Hyper, split: Split, batch_tokens: int, placement: Placement
) -> Callable[[PyTree], Sums]:
    """(params) -> sums over every pair of a split."""

    def validate(params):
        # Every process scores the whole split: validation needs no agreement on who has what.
        sums = [
            validation_step(params, placement.shard(batch), hyper)
            for batch in evaluation_batches(split, batch_tokens)
        ]
        return Sums(*(sum(map(float, column)) for column in zip(*jax.device_get(sums), strict=True)))

    return validate


def _plan(config: ExperimentConfig, training: Split, kind: Callable[..., Plan]) -> Plan:
    row_length = config.data.row_length
    try:
        plan = kind(
            training.source.lengths,
            training.target.lengths,
            row_length,
            config.train.batch_tokens,
            config.train.seed,
        )
    except ValueError as error:
        raise UserError(f"data.row_length is {row_length}: {error}") from None
    log.info(
        "%d pairs (%d dropped: longer than %d pieces), %d steps an epoch, %s",
        len(training) - plan.dropped,
        plan.dropped,
        row_length,
        plan.steps_per_epoch,
        plan.summary,
    )
    return plan

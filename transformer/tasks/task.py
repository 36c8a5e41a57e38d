"""The interface of a task."""

import abc
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
from flax import linen as nn
from jaxtyping import PyTree

from transformer.config import DataConfig, ExperimentConfig, UserError
from transformer.data.progress import Progress
from transformer.model import init_params
from transformer.training.parallelism import Single, local_mesh
from transformer.training.train_step import make_eval_step
from transformer.training.trainable import Hyperparameters, LossFn, Totals, Trainable


class LoadedModel(NamedTuple):
    """The model of a run folder, without weights.

    Attributes:
      model: a Flax module.
      tokenizer: the vocabulary of the model; None for a task without text.
    """

    model: Any
    tokenizer: Any


@runtime_checkable
class TestSet(Protocol):
    """Examples to score a model on.

    Attributes:
      name: name of the split or of the files, for messages.
      digest: digest of the examples.
      items: what is scored one by one, for messages: pairs, tokens or images.
      num_items: number of items.
    """

    name: str
    items: str

    @property
    def digest(self) -> str: ...

    @property
    def num_items(self) -> int: ...


class Evaluated(NamedTuple):
    """The result of scoring a model on a test set.

    Attributes:
      scores: JSON data: one score per metric, and further entries of the task.
      texts: the sources, the translations and the references; empty for a task without translations.
      notes: remarks for the user, one line each.
    """

    scores: dict[str, Any]
    texts: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()


class Task(Trainable):
    """Data, model, loss and scores of one kind of problem, which `config.task` names.

    The training loop uses a task as a `Trainable`. A subclass also defines how to open, load and score it.

    Attributes:
      records: kind of the examples: pairs, documents or images.
      kinds: the values of `model.kind` that the task can use.
      searches: whether the task searches for its output, as in translation.
      row_format: format of the number of tokens in a row of a batch, for messages.
      config: the resolved config.
      model: the model without weights; every method takes the weights as an argument.
    """

    records: ClassVar[str]
    kinds: ClassVar[Sequence[str]]
    searches: ClassVar[bool] = False
    row_format: ClassVar[str] = "rows of {:,} tokens, without padding"
    config: ExperimentConfig
    model: nn.Module

    @classmethod
    @abc.abstractmethod
    def resolve(cls, config: ExperimentConfig) -> ExperimentConfig:
        """Checks the names in a config, and adds the defaults of options missing from `data.options`.

        Raises:
          UserError: an unknown name, or an option that the data set does not have.
        """

    @classmethod
    def default_options(cls, data: DataConfig) -> Mapping[str, Any]:
        """Returns the default of every option of a data set."""
        return {}

    @classmethod
    def options_type(cls, config: ExperimentConfig) -> type | None:
        """Returns the dataclass that declares `data.options`; None if every option affects the result."""

    @classmethod
    def check_split_name(cls, config: ExperimentConfig, split: str) -> None:
        """Checks the name of a split before the data is prepared. Does nothing if the names are unknown.

        Raises:
          UserError: the data set has no such split.
        """

    @classmethod
    def check_data(cls, config: ExperimentConfig) -> None:
        """Checks that the data of a new run exists. Prepares nothing, and uses no network.

        Raises:
          UserError: the data set does not exist, or an option, a file or a language cannot be used, or
            TensorFlow is missing, which a TFDS set needs.
        """

    @classmethod
    def present_data(cls, config: ExperimentConfig) -> str | None:
        """Returns the name of the raw data in its present state; None if it is unknown.

        If the result is not None, it is compared with `data` in the identity of a run.
        """

    @classmethod
    def check_vectorized(cls, config: ExperimentConfig) -> None:
        """Checks that several runs can be trained in one program; see `training.vectorized`.

        Raises:
          UserError: the shapes of batches depend on the seed, or the weights are to be split.
        """
        for name, size in (("fsdp", config.train.fsdp), ("tensor", config.train.tensor)):
            if size > 1:
                raise UserError(f"train.{name} is {size}, but runs in one program are not split; set it to 1")

    @classmethod
    @abc.abstractmethod
    def open(
        cls,
        config: ExperimentConfig,
        folder: Path,
        progress: Progress | None = None,
        stored: Mapping[str, str] | None = None,
        may_prepare: bool = True,
        tokenizer: Any = None,
    ) -> "Task":
        """Opens the data of a run.

        Args:
          config: the resolved config.
          folder: the run folder. It stores the vocabulary of a new run and, if the data is read-only, the
            tokens.
          progress: receives progress reports; if None, they are logged.
          stored: the identity (see `Trainable`) in the checkpoints of the run; None for a new run.
          may_prepare: whether to prepare missing data. If false, only prepared data is read, and nothing is
            written.
          tokenizer: the vocabulary of a new run; if None, the config describes it.

        Raises:
          UserError: the data cannot be used, or differs from the data that `stored` identifies.
        """

    @classmethod
    @abc.abstractmethod
    def load_model(cls, config: ExperimentConfig, folder: Path, metadata: Mapping[str, Any]) -> LoadedModel:
        """Makes the model of a run folder from the metadata of one of its checkpoints; reads no data.

        Raises:
          UserError: a file is missing from the folder, or was changed after the training.
        """

    @classmethod
    @abc.abstractmethod
    def prepare(cls, config: ExperimentConfig, progress: Progress | None = None) -> "Task":
        """Prepares the data of a resolved config, and opens it without a run folder.

        Raises:
          UserError: the data cannot be used.
        """

    def describe_data(self) -> str:
        """Prepares all splits, and returns a description of the data in one line."""
        return self.identity["data"]

    @classmethod
    def is_prepared(cls, config: ExperimentConfig, identity: Mapping[str, str]) -> bool:
        """Returns whether the data of a run with this identity is prepared on this machine."""
        return False

    @property
    def splits(self) -> Collection[str]:
        """The names of the stored splits."""
        return ()

    def check_split(self, name: str) -> None:
        """Reads the stored data of a split, unless `open` has read it.

        Raises:
          UserError: the data is damaged.
        """

    @classmethod
    def planned_model(cls, config: ExperimentConfig) -> nn.Module:
        """Returns the model of a config before its data is prepared, to compute its costs.

        Raises:
          UserError: the config has an unknown name, or the task does not know its model before the data.
        """
        raise UserError(f"the costs of task={config.task} are unknown; choose another task")

    @classmethod
    def step_shape(cls, config: ExperimentConfig) -> dict[str, int]:
        """Returns the shape of a training step: rows, row_length in tokens, and parts.

        The number of rows is a multiple of the number of parts, `train.accumulation`.
        """
        return {"rows": config.train.accumulation, "row_length": 1, "parts": config.train.accumulation}

    @classmethod
    @abc.abstractmethod
    def loss_fn(cls, config: ExperimentConfig, model: Any) -> LossFn:
        """Returns the loss of a batch as a function of the weights of a model."""

    def init(self, seed: int) -> PyTree:
        return init_params(self.model, seed)

    def loss(self, params, batch, key, hyperparameters):
        return self.loss_fn(self.config, self.model)(params, batch, key, hyperparameters)

    @classmethod
    @abc.abstractmethod
    def full_rows(cls, config: ExperimentConfig, num_rows: int) -> PyTree:
        """Returns the shapes of a batch whose rows have no padding."""

    @classmethod
    @abc.abstractmethod
    def metrics(cls, config: ExperimentConfig) -> Collection[str]:
        """Returns the names in `METRICS` of the scores that `evaluate` returns, in the order of tables."""

    @abc.abstractmethod
    def test_set(self, split: str) -> TestSet:
        """Returns the examples of a split.

        Raises:
          UserError: there is no such split, or its data is damaged.
        """

    @classmethod
    @abc.abstractmethod
    def evaluate(
        cls,
        config: ExperimentConfig,
        loaded: LoadedModel,
        params: PyTree,
        test_set: TestSet,
        progress: Callable[[int], None] = lambda num_done: None,
    ) -> Evaluated:
        """Scores a trained model on a test set.

        Args:
          config: the config of the run.
          loaded: the model and its vocabulary.
          params: the weights of the model.
          test_set: the examples.
          progress: called with the number of finished items of the test set.
        """


def eval_totals(
    config: ExperimentConfig, loss_fn: LossFn, params: PyTree, batches: Iterable[PyTree]
) -> Iterator[tuple[PyTree, Totals]]:
    """Yields each batch with its totals without dropout, computed on all devices of this process.

    Waits for the totals of a batch while the next batch is computed, so that progress reports are true.
    """
    parallelism = local_mesh() or Single()
    eval_step = make_eval_step(loss_fn, parallelism)
    hyperparameters = Hyperparameters.from_config(config)
    previous = []
    for batch in batches:
        totals = eval_step(params, parallelism.shard(batch), None, hyperparameters)
        yield from jax.block_until_ready(previous)
        previous = [(batch, totals)]
    yield from jax.block_until_ready(previous)

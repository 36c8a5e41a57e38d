"""Interface of a format of another toolkit."""

import abc
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import PyTree

from experiments.run_folder import Trained
from transformer.config import ModelConfig, UserError
from transformer.files import atomic_folder


class Format(abc.ABC):
    """Writes a trained model for another toolkit, and asks that toolkit for its log-probabilities.

    Attributes:
      name: value of `--format`.
      packages: packages that must be installed.
      holds: the values that the format can hold, by field of `model`; it can hold any value of other fields.
      usage: three lines of Python that translate with the toolkit, with a place for the `folder`.
      note: remaining differences between the toolkit and our models.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    holds: ClassVar[Mapping[str, tuple[Any, ...]]]
    usage: ClassVar[str]
    note: ClassVar[str]

    def require(self, flag: str) -> None:
        """Raises a `UserError` if a package is missing that `flag` needs."""
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                raise UserError(f"{flag} needs {package}: pip install -e '.[peers]'")

    def check(self, config: ModelConfig) -> None:
        """Raises a `UserError` that names the first field whose value the format cannot hold."""
        for field, values in self.holds.items():
            if (value := getattr(config, field)) not in values:
                allowed = ", ".join(map(str, values))
                raise UserError(f"model.{field} is {value!r}; --format={self.name} holds only: {allowed}")

    @abc.abstractmethod
    def write(self, trained: Trained, folder: Path) -> None:
        """Writes weights and vocabulary into an existing folder."""

    @abc.abstractmethod
    def write_tokenizer(self, trained: Trained, folder: Path) -> None:
        """Writes the files with which the toolkit reads and writes text."""

    @abc.abstractmethod
    def score(
        self, folder: Path, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        """Returns the toolkit's log-probabilities, in nats, of the tokens of each target and then of EOS.

        Args:
          folder: the exported model.
          sources: tokens, without EOS.
          targets: tokens, without EOS.
        """


def export(trained: Trained, form: Format, folder: Path) -> None:
    """Writes a folder completely or not at all.

    Raises:
      UserError: the format cannot hold the model.
    """
    form.check(trained.model.config)
    with atomic_folder(folder) as partial:
        form.write(trained, partial)
        form.write_tokenizer(trained, partial)


def table_lengths(trained: Trained) -> tuple[int, int]:
    """Returns the lengths of the position tables of encoder and decoder: all that a translation may use."""
    decode, limits = trained.config.decode, trained.model.max_lengths
    source = limits.source or decode.max_source_length
    target = limits.target or decode.max_source_length + decode.max_extra_length
    return source, target


def to_numpy(params: PyTree) -> PyTree:
    """Returns the weights as NumPy arrays."""
    return jax.tree.map(np.asarray, params)

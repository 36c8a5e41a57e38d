"""Interface of the exporters, which write a trained model in another toolkit's format."""

import abc
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import PyTree

from experiments.trained_model import Trained
from transformer.config import ModelConfig, UserError
from transformer.files import atomic_folder

# The paper's attention, by field of `ModelConfig`, for formats that support nothing else.
PAPER_ATTENTION: dict[str, tuple[Any, ...]] = {
    "num_kv_heads": (None,),
    "qk_norm": (False,),
    "logit_cap": (None,),
    "attention_window": (None,),
    "attention_gate": (False,),
}


class Format(abc.ABC):
    """Writes a trained model for another toolkit, and computes log-probabilities with that toolkit.

    Attributes:
      name: value of `--format`.
      packages: packages that must be installed.
      holds: supported values by field of `ModelConfig`; a field that is missing here may have any value.
      usage: three lines of Python that translate with the toolkit; `{folder}` stands for the exported folder.
      note: remaining differences between the toolkit and our models.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    holds: ClassVar[Mapping[str, tuple[Any, ...]]]
    usage: ClassVar[str]
    note: ClassVar[str]

    def require(self, flag: str) -> None:
        """Raises a `UserError` if a package that `flag` needs is not installed."""
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                raise UserError(f"{flag} needs the package {package}; run pip install -e '.[peers]'")

    def check(self, config: ModelConfig) -> None:
        """Raises a `UserError` that names the first field whose value the format does not support."""
        for field, values in self.holds.items():
            if (value := getattr(config, field)) not in values:
                allowed = ", ".join(map(str, values))
                raise UserError(f"model.{field} is {value!r}; --format={self.name} supports only: {allowed}")

    @abc.abstractmethod
    def write(self, trained: Trained, folder: Path) -> None:
        """Writes the weights and the vocabulary into an existing folder."""

    @abc.abstractmethod
    def write_tokenizer(self, trained: Trained, folder: Path) -> None:
        """Writes the files of the toolkit's tokenizer."""

    @abc.abstractmethod
    def score(
        self, folder: Path, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        """Returns the log-probability, in nats, of each target token and of the EOS after the last token.

        The toolkit computes the log-probabilities.

        Args:
          folder: the exported model.
          sources: tokens of the source sentences, without EOS.
          targets: tokens of the target sentences, without EOS.
        """


def export(trained: Trained, form: Format, folder: Path) -> None:
    """Writes a trained model and its tokenizer into `folder`. If writing fails, no folder is left.

    Raises:
      UserError: the format does not support the model.
    """
    form.check(trained.model.config)
    with atomic_folder(folder) as partial:
        form.write(trained, partial)
        form.write_tokenizer(trained, partial)


def table_lengths(trained: Trained) -> tuple[int, int]:
    """Returns the lengths of the encoder's and the decoder's position tables.

    The tables are long enough for the longest source and the longest translation that are allowed.
    """
    decode, limits = trained.config.decode, trained.model.max_lengths
    source = limits.source or decode.max_source_length
    target = limits.target or decode.max_source_length + decode.max_extra_length
    return source, target


def to_numpy(params: PyTree) -> PyTree:
    """Returns the weights as NumPy arrays."""
    return jax.tree.map(np.asarray, params)

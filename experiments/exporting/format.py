"""What a format of another toolkit is to us."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from experiments.runs import Trained
from transformer.config import TransformerConfig, UserError


class Format(NamedTuple):
    """How to write a trained model for another toolkit, and how to ask what that toolkit makes of it.

    Attributes:
      packages: that must be installed.
      check: raises a `UserError` where the format cannot hold a model.
      write: weights and vocabulary, into a folder that is there.
      write_tokenizer: what the toolkit needs to read and write text.
      score: log-probabilities, in nats, of each target's pieces and then of EOS, by the model in a folder.
        Sources and targets are pieces without EOS.
      usage: how to translate with it, in three lines with a place for the `folder`.
      note: in what the toolkit differs from ours even so.
    """

    packages: tuple[str, ...]
    check: Callable[[TransformerConfig], None]
    write: Callable[[Trained, Path], None]
    write_tokenizer: Callable[[Trained, Path], None]
    score: Callable[[Path, Sequence[Sequence[int]], Sequence[Sequence[int]]], list[np.ndarray]]
    usage: str
    note: str

    def require(self, flag: str) -> None:
        """Raises a `UserError` where a package is missing that `flag` needs."""
        for package in self.packages:
            if importlib.util.find_spec(package) is None:
                raise UserError(f"{flag} needs {package}: pip install -e '.[peers]'")


def export(trained: Trained, form: Format, folder: Path) -> None:
    """Writes a folder whole or not at all.

    Raises:
      UserError: the format cannot hold the model.
    """
    form.check(trained.model.config)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    form.write(trained, partial)
    form.write_tokenizer(trained, partial)
    os.replace(partial, folder)


def refuse(name: str, config: TransformerConfig, holds: Mapping[str, tuple]) -> None:
    """Checks fields of a config against the values that a format holds.

    Raises:
      UserError: names the first field that has another value.
    """
    for field, allowed in holds.items():
        if (value := getattr(config, field)) not in allowed:
            choices = ", ".join(map(str, allowed))
            raise UserError(f"model.{field} is {value!r}; --format={name} holds: {choices}")


def rows(trained: Trained) -> tuple[int, int]:
    """Positions that an encoder's and a decoder's table have: all that a translation of the run may use."""
    decode = trained.config.decode
    source, target = trained.model.longest
    return source or decode.max_source, target or decode.max_source + decode.max_extra


def arrays(params: PyTree) -> PyTree:
    """The weights as NumPy."""
    return jax.tree.map(np.asarray, params)

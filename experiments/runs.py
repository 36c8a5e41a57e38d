"""A run folder: its config, its result, and the trained model in it."""

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import PyTree

from transformer.config import (
    ExperimentConfig,
    UserError,
    check_key,
    flatten,
    from_dict,
    from_stored,
    to_dict,
)
from transformer.data.tokenizer import Tokenizer
from transformer.disk import room
from transformer.model import build, init_params
from transformer.training.checkpoints import Checkpoints, average, digest

PACKAGES = (
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "sentencepiece",
    "sacrebleu",
)
CHANGEABLE = ("model.overflow", "model.dtype")  # after training, besides how is searched


class Run:
    """One run's folder; see the README for what it holds."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is not a folder")

    def begin(self, config: ExperimentConfig | None) -> ExperimentConfig:
        """The config to train with: the folder's own; a given one starts the folder or must equal it.

        As long as nothing was trained, a given config replaces the one that is there.

        Raises:
          UserError: there is no config, or the two differ, in which case the fields are named.
        """
        path = self.folder / "config.json"
        if config is None or (self.folder / "tokenizer.model").exists():
            stored = self.config
            if config is not None and config != stored:
                raise UserError(f"{self.folder} has another config: {difference(stored, config)}")
            return stored
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {self.folder}: {error.strerror}") from None
        write_json(path, to_dict(config))
        return config

    @contextlib.contextmanager
    def locked(self):
        """Keeps a second process from training the same run.

        Raises:
          UserError: one is at it.
        """
        with open(self.folder / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.folder} is being trained by another process") from None
            yield

    @property
    def config(self) -> ExperimentConfig:
        """What config.json says."""
        path = self.folder / "config.json"
        if not path.is_file():
            raise UserError(
                f"{self.folder} is not a run: it has no config.json; train --config=FILE makes one"
            )
        return from_stored(read_json(path))

    @property
    def result(self) -> dict[str, Any]:
        """What result.json says; empty before the run has started."""
        path = self.folder / "result.json"
        return read_json(path) if path.exists() else {}

    def write_result(self, **values: Any) -> None:
        """Writes result.json: the values, and what they were made with."""
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        write_json(
            self.folder / "result.json",
            {
                **values,
                "versions": versions,
                "device": jax.devices()[0].device_kind,
                "git_revision": _revision(),
            },
        )

    def load(self, changes: Mapping[str, Any] | None = None) -> "Trained":
        """The trained model: the mean of the last `decode.average_last` checkpoints.

        Args:
          changes: fields of the config, such as "decode.beam_size", and what they are for this call.

        Raises:
          UserError: there is no checkpoint yet, or one that cannot be read; a change that is none.
        """
        config = changed(self.config, changes or {})
        path = self.folder / "tokenizer.model"
        folder = self.folder / "checkpoints"
        checkpoints = Checkpoints(folder) if path.is_file() and folder.is_dir() else None
        there = checkpoints.steps if checkpoints else []
        every, last = config.train.validate_every, config.train.steps
        # Where a run was interrupted must not decide what is averaged.
        scheduled = [step for step in there if step % every == 0 or step == last]
        steps = scheduled[-config.decode.average_last :] or there[-1:]
        if not steps:
            raise UserError(f"{self.folder} has no checkpoint yet; train it first")
        tokenizer = Tokenizer.load(path)
        model = build(config.model, tokenizer.vocab_size)
        template = jax.eval_shape(lambda: init_params(model, seed=0))
        trees, facts = [], {}
        for step in steps:
            params, facts = checkpoints.params(step, template)
            if facts["tokenizer_sha256"] != tokenizer.sha256:
                raise UserError(f"{path} is not the one checkpoint {step} was trained with")
            trees.append(params)
        checkpoints.close()
        # The first checkpoints did not store it.
        trained = facts.get("trained_lengths")
        model = model.clone(trained_lengths=None if trained is None else tuple(trained))
        return Trained(config, tokenizer, model, average(trees), steps)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model ready for use; its weights are the mean of the checkpoints of `steps`."""

    config: ExperimentConfig
    tokenizer: Tokenizer
    model: nn.Module
    params: PyTree
    steps: list[int]

    @property
    def params_sha256(self) -> str:
        return digest(self.params)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file that a run wrote."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a file whole or not at all."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with room(path.parent, ", then give the same command again"):
        partial.write_text(text, "utf-8")
        os.replace(partial, path)


def changed(config: ExperimentConfig, changes: Mapping[str, Any]) -> ExperimentConfig:
    """The config of a trained model with other values for some fields, of those that may change.

    Raises:
      UserError: a field that there is not or that may not change, or a value that it cannot have.
    """
    values = to_dict(config)
    for key, value in changes.items():
        check_key(key)
        section, _, field = key.partition(".")
        if section != "decode" and key not in CHANGEABLE:
            allowed = ", ".join(["decode.*", *CHANGEABLE[:-1]])
            raise UserError(f"{key}: only {allowed} and {CHANGEABLE[-1]} can be changed after training")
        values[section][field] = value
    return from_dict(values)


def converted(config: ExperimentConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes with the values that the config makes of them; errors as of `changed`."""
    values = flatten(to_dict(changed(config, changes)))
    return {key: values[key] for key in changes}


def difference(stored: ExperimentConfig, given: ExperimentConfig) -> str:
    """The fields in which two configs differ, in words: the first three, and how many more."""
    old, new = flatten(to_dict(stored)), flatten(to_dict(given))
    fields = [f"{key} is {old[key]!r} there, {new[key]!r} here" for key in old if old[key] != new[key]]
    return "; ".join(fields[:3]) + (f"; and {len(fields) - 3} more" if len(fields) > 3 else "")


def _revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None

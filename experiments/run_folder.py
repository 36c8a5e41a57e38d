"""Run folders: the config, the result, and the trained model."""

import dataclasses
import importlib.metadata
import subprocess
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from experiments.config_files import with_changes
from transformer.config import (
    ExperimentConfig,
    UserError,
    check_key,
    declarations,
    difference,
    flatten,
    from_dict,
    to_dict,
)
from transformer.data.tokenizer import Tokenizer
from transformer.files import lock, read_json, write_json
from transformer.model import EncoderDecoder, parameter_shapes
from transformer.tasks import task_type
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


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model; its weights are the mean of the checkpoints of `steps`."""

    config: ExperimentConfig
    tokenizer: Tokenizer
    model: EncoderDecoder
    params: PyTree
    steps: list[int]

    @property
    def params_sha256(self) -> str:
        """Digest of the weights."""
        return digest(self.params)


class Run:
    """The folder of a run; README lists its files."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is not a folder; name a run folder")

    @property
    def config(self) -> ExperimentConfig:
        """The config in config.json.

        Raises:
          UserError: the folder is not a run, or its config cannot be read.
        """
        path = self.folder / "config.json"
        if path.is_file():
            return from_dict(read_json(path))
        if (self.folder / "study.json").is_file():
            runs = read_json(self.folder / "study.json")["runs"]
            raise UserError(
                f"{self.folder} is a study, not a run; name one of its runs, such as {self.folder}/{runs[0]}"
            )
        raise UserError(
            f"{self.folder} is not a run: it has no config.json; experiments.train --config=FILE starts one"
        )

    @property
    def result(self) -> dict[str, Any]:
        """The content of result.json; empty before the run has started."""
        path = self.folder / "result.json"
        return read_json(path) if path.exists() else {}

    def begin(self, config: ExperimentConfig | None) -> ExperimentConfig:
        """Returns the config to train with, and stores it if the run is new.

        Until training has started, a new config replaces the stored one; afterwards it must equal it.

        Raises:
          UserError: no config is given or stored, or the two differ.
        """
        started = any((self.folder / name).exists() for name in ("tokenizer.model", "checkpoints"))
        if config is None or started:
            stored = self.config
            if config is not None and config != stored:
                raise UserError(
                    f"{self.folder} has another config: {difference(stored, config)}; name another --workdir"
                )
            return stored
        if (self.folder / "study.json").is_file():
            raise UserError(f"{self.folder} is a study, not a run; name another --workdir")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot create {self.folder}: {error.strerror}; name another --workdir"
            ) from None
        write_json(self.folder / "config.json", to_dict(config))
        return config

    def locked(self) -> AbstractContextManager:
        """Returns a context in which no other process can train the run."""
        return lock(self.folder, wait=False)

    def write_result(self, **values: Any) -> None:
        """Writes result.json: the values, and the versions that they were computed with."""
        environment = {
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "device": jax.devices()[0].device_kind,
            "git_revision": _git_revision(),
        }
        write_json(self.folder / "result.json", values | environment)

    def load(self, changes: Mapping[str, Any] | None = None) -> Trained:
        """Loads the trained model: the mean of the last `decode.average_last` checkpoints.

        Args:
          changes: fields of the config and their values for this call; see `changed`.

        Raises:
          UserError: there is no readable checkpoint, or a field cannot be changed.
        """
        config = changed(self.config, changes or {})
        folder = self.folder / "checkpoints"
        if not folder.is_dir():
            raise UserError(f"{self.folder} has no checkpoint yet; train it first")
        checkpoints = Checkpoints(folder)
        steps = _averaged_steps(config, checkpoints.steps)
        if not steps:
            raise UserError(f"{self.folder} has no checkpoint yet; train it first")
        task = task_type(config)
        model, tokenizer = task.load_model(config, self.folder, checkpoints.metadata(steps[-1]))
        shapes = parameter_shapes(model)
        params = average([checkpoints.params(step, shapes)[0] for step in steps])
        checkpoints.close()
        return Trained(config, tokenizer, model, params, steps)


def changed(config: ExperimentConfig, changes: Mapping[str, Any]) -> ExperimentConfig:
    """Returns the config of a trained model with other values for fields that may change after training.

    Raises:
      UserError: an unknown field, a field that may not change, or a value that it cannot have.
    """
    changeable = [key for key, field in declarations(ExperimentConfig).items() if field.changeable]
    for key in changes:
        check_key(key)
        if key not in changeable:
            fields = [name for name in changeable if not name.startswith("decode.")]
            listed = f"{', '.join(['decode.*', *fields[:-1]])} and {fields[-1]}"
            raise UserError(f"{key} cannot change after training; only {listed} can")
    return from_dict(with_changes(to_dict(config), changes))


def converted(config: ExperimentConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the changes with their values as the config holds them, such as 1.0 for 1; see `changed`."""
    values = flatten(to_dict(changed(config, changes)))
    return {key: values[key] for key in changes}


def _averaged_steps(config: ExperimentConfig, steps: list[int]) -> list[int]:
    """The steps whose weights are averaged: a checkpoint of an interruption only if there is no other."""
    train = config.train
    scheduled = [step for step in steps if step % train.validate_every == 0 or step == train.steps]
    return scheduled[-config.decode.average_last :] or steps[-1:]


def _git_revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None

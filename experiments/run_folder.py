"""Run folders: stores the config and the result of a run, and loads the trained model."""

import contextlib
import dataclasses
import importlib.metadata
import subprocess
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from experiments.config_files import ROOT, with_changes
from transformer.config import (
    ExperimentConfig,
    UserError,
    check_key,
    declarations,
    difference,
    flatten,
    from_dict,
    result_hash,
    to_dict,
)
from transformer.data.builders import options_type
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
    """A trained model. `params` is the average of the weights saved at `steps`."""

    config: ExperimentConfig
    tokenizer: Tokenizer
    model: EncoderDecoder
    params: PyTree
    steps: list[int]

    @property
    def params_sha256(self) -> str:
        """SHA-256 digest of the weights."""
        return digest(self.params)


class Run:
    """The folder of a run. docs/commands.md lists the files in a run folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is not a folder; name a run folder")

    @property
    def config(self) -> ExperimentConfig:
        """The config that config.json stores.

        Raises:
          UserError: the folder is not a run, or config.json cannot be read.
        """
        path = self.folder / "config.json"
        if path.is_file():
            return from_dict(read_json(path))
        if (self.folder / "study.json").is_file():
            runs = read_json(self.folder / "study.json")["runs"]
            raise UserError(
                f"{self.folder} is a study, not a run; "
                f"name a run of the study, such as {self.folder}/{runs[0]}"
            )
        if not self.folder.exists() and (ROOT / self.folder / "config.json").is_file():
            raise UserError(f"{self.folder} is not a run here; run the command in {ROOT}")
        raise UserError(
            f"{self.folder} is not a run: config.json is missing; "
            f"start a run with python -m experiments.train --config=FILE --workdir={self.folder}"
        )

    @property
    def result(self) -> dict[str, Any]:
        """The content of result.json. Before training has started, the dict is empty."""
        path = self.folder / "result.json"
        return read_json(path) if path.exists() else {}

    def begin(self, config: ExperimentConfig | None) -> ExperimentConfig:
        """Returns the config to train with, and stores that config.

        If `config` is None, the stored config is used; otherwise `config` replaces the stored config. Once
        training has started, the two configs may differ only in fields that do not affect the result.

        Raises:
          UserError: there is no config, or the two configs differ in a field that affects the result.
        """
        if config is None:
            return self.config
        if any((self.folder / name).exists() for name in ("tokenizer.model", "checkpoints")):
            stored, options = self.config, options_type(config.data.name)
            if result_hash(config, options) != result_hash(stored, options):
                raise UserError(
                    f"{self.folder} has another config: {difference(stored, config)}; name another --workdir"
                )
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
        """Returns a context manager; no other process can train the run while the context is active."""
        return lock(self.folder, wait=False)

    def write_result(self, **values: Any) -> None:
        """Writes result.json: `values`, the versions of packages, the device and the git revision."""
        environment = {
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "device": jax.devices()[0].device_kind,
            "git_revision": _git_revision(),
        }
        write_json(self.folder / "result.json", values | environment)

    def load(self, changes: Mapping[str, Any] | None = None) -> Trained:
        """Loads the trained model: the mean of the last `decode.average_last` checkpoints.

        Args:
          changes: new values by config field, for this call only; see `changed`.

        Raises:
          UserError: there is no readable checkpoint, or a field cannot be changed.
        """
        config = changed(self.config, changes or {})
        with contextlib.closing(Checkpoints(self.folder / "checkpoints")) as checkpoints:
            steps = _averaged_steps(config, checkpoints.steps)
            if not steps:
                raise UserError(f"{self.folder} has no checkpoint yet; train the run first")
            metadata = checkpoints.metadata(steps[-1])
            model, tokenizer = task_type(config).load_model(config, self.folder, metadata)
            shapes = parameter_shapes(model)
            params = average([checkpoints.params(step, shapes)[0] for step in steps])
        return Trained(config, tokenizer, model, params, steps)


def changed(config: ExperimentConfig, changes: Mapping[str, Any]) -> ExperimentConfig:
    """Returns the config of a trained model with new values for some of the fields that may still change.

    Raises:
      UserError: a field is unknown, may not change after training, or cannot have the new value.
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
    """Returns the changes with each value in the type of the field, such as 1.0 for 1; see `changed`."""
    values = flatten(to_dict(changed(config, changes)))
    return {key: values[key] for key in changes}


def _averaged_steps(config: ExperimentConfig, steps: list[int]) -> list[int]:
    """Returns the steps whose weights are averaged.

    A checkpoint that was saved because of an interruption is used only if the run has no other checkpoint.
    """
    train = config.train
    scheduled = [step for step in steps if step % train.validate_every == 0 or step == train.steps]
    return scheduled[-config.decode.average_last :] or steps[-1:]


def _git_revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None

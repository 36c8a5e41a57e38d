"""Run folders: stores the config and the result of a run."""

import contextlib
import functools
import importlib.metadata
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.config_files import ROOT
from experiments.machine import processor
from transformer.config import ExperimentConfig, UserError, difference, from_dict, result_hash, to_dict
from transformer.files import lock, refuse_links
from transformer.json_files import check_types, read_json, read_sealed, write_json, write_sealed
from transformer.tasks import task_type
from transformer.training.checkpoint_files import DamagedCheckpoint
from transformer.training.checkpoints import Checkpoints, read_identity

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
# The files of a run that has not started to train.
START_FILES = {".lock", "config.json", "result.json", "tokenizer.model"}

# The types of the values in result.json, and of those in the result of a run that is done.
RESULT_TYPES = {
    "status": str,
    "identity": dict[str, str] | None,
    "reason": str | None,
    "message": str | None,
    "seconds": float | None,
    "init_from": str | None,
    "versions": dict[str, str],
    "device": str,
    "git_revision": str | None,
}
FINISHED_TYPES = {
    "identity": dict[str, str],
    "step": int,
    "seconds": float,
    "validation": dict[str, float | str],
    "params_sha256": str,
}


class Run:
    """The folder of a run. docs/commands.md lists the files in a run folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if self.folder.is_symlink() and not self.folder.exists():
            raise UserError(f"{self.folder} is a link to nothing; delete it or name another folder")
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is not a folder; name a run folder")
        refuse_links(self.folder)

    @property
    def config(self) -> ExperimentConfig:
        """The config that config.json stores.

        Raises:
          UserError: the folder is not a run, or config.json cannot be read.
        """
        path = self.folder / "config.json"
        if path.is_file():
            return from_dict(read_json(path))
        if (self.folder / "checkpoints").is_dir():
            raise UserError(
                f"{path} is missing; to write it again, run experiments.train with the run's --config=FILE"
            )
        if (self.folder / "study.json").is_file():
            raise UserError(
                f"{self.folder} is a study, not a run; name one of its runs: {self.folder}/VARIANT/SEED-HASH"
            )
        if not self.folder.exists() and (ROOT / self.folder / "config.json").is_file():
            raise UserError(f"there is no run {self.folder} in the current folder; run the command in {ROOT}")
        if runs := sorted(path.parent for path in self.folder.glob("*/config.json")):
            raise UserError(
                f"{self.folder} is a folder of runs, not a run; name one of them, such as {runs[0]}"
            )
        raise UserError(
            f"{self.folder} is not a run: config.json is missing; "
            f"start a run with python -m experiments.train --config=FILE --workdir={self.folder}"
        )

    @property
    def config_hash(self) -> str:
        """Digest of the fields of `config` that affect the result."""
        return config_hash(self.config)

    @property
    def result(self) -> dict[str, Any]:
        """The content of result.json; an empty dict if training has not started yet.

        Raises:
          UserError: the file is damaged, or is not the result of a run.
        """
        path = self.folder / "result.json"
        if not path.exists():
            return {}
        result = read_sealed(path, RESULT_TYPES)
        if result["status"] == "done":
            check_types(path, result, FINISHED_TYPES)
            check_types(path, result["identity"], {"config": str, "data": str})
        return result

    @property
    def identity(self) -> Mapping[str, str] | None:
        """Identity of the run, from the newest checkpoint; None if there is no checkpoint.

        The identity consists of the digest of the config, the name and the digest of the prepared data, and
        the digest of the vocabulary; after --init_from, also of the digest of the initial weights.

        Raises:
          UserError: no checkpoint can be read.
        """
        return read_identity(self.folder / "checkpoints")

    @property
    def is_trained(self) -> bool:
        """True if training is complete and the last checkpoint is undamaged.

        Raises:
          UserError: config.json is not the config that the run was trained with.
        """
        result = self.result
        if result.get("status") != "done":
            return False
        if result["identity"]["config"] != self.config_hash:
            raise UserError(
                f"{self.folder / 'config.json'} is not the config that the run was trained with; "
                "restore the file"
            )
        with contextlib.closing(Checkpoints(self.folder / "checkpoints")) as checkpoints:
            try:
                checkpoints.verify(result["step"])
            except DamagedCheckpoint:
                return False
        return True

    def begin(self, config: ExperimentConfig | None, init_from: str | None = None) -> ExperimentConfig:
        """Returns the config to train with, and stores that config.

        If `config` is None, the stored config is used; otherwise `config` replaces the stored config. Once
        training has started, the two configs may differ only in fields that do not affect the result.

        Args:
          config: the config of the command line, if it has one.
          init_from: the run whose weights this run starts from; result.json names it from now on.

        Raises:
          UserError: `config` is None and no config is stored; or training has started, and the two configs
            differ in a field that affects the result.
        """
        identity = self.identity
        if config is None:
            if init_from is not None and identity is None:
                self._note_source(init_from)
            return self.config
        if identity and identity["config"] != config_hash(config):
            is_stored = (self.folder / "config.json").is_file()
            differing = f": {difference(self.config, config)}" if is_stored else ""
            raise UserError(f"{self.folder} has a run with another config{differing}; name another --workdir")
        if (self.folder / "study.json").is_file():
            raise UserError(f"{self.folder} is a study, not a run; name another --workdir")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot create {self.folder}: {error.strerror}; name another --workdir"
            ) from None
        if init_from is not None and identity is None:
            self._note_source(init_from)
        write_json(self.folder / "config.json", to_dict(config))
        return config

    def _note_source(self, init_from: str) -> None:
        """Notes that the run starts from other weights, before there is a config that could be trained."""
        self.write_result(**self.result | {"status": "running", "init_from": init_from})

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training the run inside the context.

        If the folder is new and the training is refused before it starts, removes the folder again.
        """
        new = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        with lock(self.folder, wait=False):
            try:
                yield
            except UserError:
                if new:
                    self._remove_unstarted(parents=new[1:])
                raise

    def _remove_unstarted(self, parents: Sequence[Path]) -> None:
        """Removes the folder, and those of its parents that are empty then, if nothing was trained."""
        files = {path.name for path in self.folder.rglob("*") if not path.is_dir()}
        if files <= START_FILES:
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another process has written into a parent
                for path in parents:
                    path.rmdir()

    def write_result(self, **values: Any) -> None:
        """Writes result.json: `values`, the versions of packages, the device and the git revision."""
        environment = {
            "versions": _versions(),
            "device": _device(),
            "git_revision": _git_revision(),
        }
        write_sealed(self.folder / "result.json", values | environment)


def distinct_runs(folders: Sequence[str]) -> list[Run]:
    """Returns the runs in several folders.

    Raises:
      UserError: two names are of the same folder, or a folder cannot be a run.
    """
    known = set()
    for name in folders:
        path = Path(name).resolve()
        if path in known:
            raise UserError(f"{name} is named twice; name each run once")
        known.add(path)
    return [Run(name) for name in folders]


def config_hash(config: ExperimentConfig) -> str:
    """Returns the digest of the fields of a config that affect the result; see `result_hash`."""
    return result_hash(config, task_type(config).options_type(config))


def _device() -> str:
    """Returns the number and the name of JAX's devices; on a CPU, those of the cores."""
    devices = jax.devices()
    if devices[0].platform == "cpu":
        return processor()
    return f"{len(devices)} x {devices[0].device_kind}"


@functools.cache
def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def _git_revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return None
    return done.stdout.strip() or None

"""Eight virtual devices, shapes checked at run time, and a tiny task that every test may share."""

import importlib.metadata
import os
import signal

# Most of the suite's time is compilation: no optimisation and, as long as XLA has them, the older emitters,
# which compile in half the time.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FLAGS)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

install_import_hook("transformer", "beartype.beartype")

import jax
import pytest
from absl import flags

from tests.tiny import SOURCE, TARGET, VOCAB, as_int, tiny_config
from transformer.config import DataConfig
from transformer.model import build, init_params

flags.FLAGS.mark_as_parsed()  # Grain asks absl
# A script's background jobs ignore Ctrl-C, and so would the processes that tests start there and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def pair():
    """Two padded sentence pairs."""
    return as_int(SOURCE), as_int(TARGET)


@pytest.fixture(scope="session")
def tiny():
    """A model of pairwise different sizes, and its weights."""
    model = build(tiny_config(), VOCAB)
    return model, init_params(model, seed=1)


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder of this test session, the same in each of its processes."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def data_dir(shared) -> str:
    """Where prepared data lives."""
    return str(shared / "prepared")


@pytest.fixture(scope="session")
def number_words(data_dir) -> DataConfig:
    """300 lists to train on."""
    return DataConfig(name="number_words", data_dir=data_dir, lists=300, vocab_size=300, row_length=64)


@pytest.fixture(scope="session", autouse=True)
def _compile_once(shared):
    """Programs compiled by one test serve the others, in both processes of a session."""
    jax.config.update("jax_compilation_cache_dir", str(shared / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

"""Eight virtual devices, shapes checked at run time, and data that every test may share."""

import importlib.metadata
import os
import signal

# Most of the suite's time is compilation. No optimization and, as long as XLA has them, the older emitters,
# which compile in half the time.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FLAGS)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

from jaxtyping import install_import_hook

install_import_hook("transformer", "beartype.beartype")

import jax
import pytest
from absl import flags

from transformer.config import DataConfig
from transformer.data.builders import resolve_options

flags.FLAGS.mark_as_parsed()  # Grain reads absl's flags
# The background jobs of a shell script ignore Ctrl-C, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory):
    """A folder of this test session, the same in each of its processes."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def data_dir(session_folder) -> str:
    """The folder of prepared data."""
    return str(session_folder / "prepared")


@pytest.fixture(scope="session")
def number_words(data_dir) -> DataConfig:
    """number_words with 300 training lists, options resolved."""
    return resolve_options(
        DataConfig(
            name="number_words", data_dir=data_dir, options={"lists": 300}, vocab_size=300, row_length=64
        )
    )


@pytest.fixture(scope="session", autouse=True)
def _compile_once(session_folder):
    """Programs compiled by one test serve the others, in all processes of a session."""
    jax.config.update("jax_compilation_cache_dir", str(session_folder / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

"""Sets up eight virtual devices and shape checks at run time, and defines fixtures that all tests can use."""

import gc
import importlib.metadata
import os
import signal

# The suite spends most of its time on compilation, so optimization is off, and the code of a program is not
# split into parts for several threads. In jaxlib 0.10, XLA still has the older fusion emitters, which compile
# in half the time.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
FLAGS += " --xla_cpu_parallel_codegen_split_count=1"
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
# A background job of a shell script ignores Ctrl-C. Without this line, processes that tests start from such a
# job would ignore Ctrl-C too.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Likewise, processes that tests start under nohup would ignore SIGHUP: processes inherit ignored signals, but
# not handlers.
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)


def pytest_collection_finish():
    """Exempts modules from garbage collection, which otherwise visits JAX's many objects again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory):
    """A folder that all processes of this test session share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def data_dir(session_folder) -> str:
    """The folder of prepared data."""
    return str(session_folder / "prepared")


@pytest.fixture(scope="session")
def number_words(data_dir) -> DataConfig:
    """The config of the data set `number_words` with 300 training lists and its options resolved."""
    return resolve_options(
        DataConfig(
            name="number_words", data_dir=data_dir, options={"lists": 300}, vocab_size=300, row_length=64
        )
    )


@pytest.fixture(scope="session", autouse=True)
def _compile_once(session_folder):
    """Caches compiled programs on disk, so that all tests in all processes of the session share them."""
    jax.config.update("jax_compilation_cache_dir", str(session_folder / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

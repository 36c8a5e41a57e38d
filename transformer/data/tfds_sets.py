"""TFDS's own translation sets, by name: `wmt14_translate/de-en`, `opus/medical:0.1.0`."""

import contextlib
import importlib.util
import io
import logging
import re

import tensorflow_datasets as tfds

from transformer.config import DataConfig, UserError
from transformer.disk import is_full

log = logging.getLogger(__name__)


def find(data: DataConfig, ours: list[str]) -> tfds.core.DatasetBuilder:
    """The builder of a set, prepared or not.

    Args:
      data: its name may end in a version; TFDS's newest otherwise.
      ours: data sets that are not TFDS's, for the message.

    Raises:
      UserError: there is no such set, variant or version, it lacks a language, or it is there in a format
        other than array_record.
    """
    import tensorflow_datasets.translate  # noqa: F401  (registers TFDS's own sets)

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints
            builder = tfds.builder(data.name, data_dir=data.data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        raise UserError(f"data.name is {data.name!r}; it must be {', '.join(ours)} or a TFDS set") from None
    except Exception as error:  # no such version or variant, or prepared in another format
        first, *_ = re.split(r"\. (?=[A-Z])", _one_line(error))
        if first.startswith("BuilderConfig"):
            first += f"; it has {', '.join(tfds.builder_cls(data.name.partition('/')[0]).builder_configs)}"
        elif first.startswith("File format"):
            first += "; it must be array_record: set data.data_dir to another folder"
        raise UserError(f"data.name is {data.name!r}; TFDS says: {first}") from error
    _check_languages(data, builder.info.features)
    return builder


def _check_languages(data: DataConfig, features: tfds.features.FeatureConnector) -> None:
    """Before a set is prepared, which may take hours."""
    texts = []
    if isinstance(features, tfds.features.FeaturesDict):
        texts = sorted(name for name, one in features.items() if isinstance(one, tfds.features.Text))
    for field, side in (("data.source", data.source), ("data.target", data.target)):
        if side not in texts:
            raise UserError(f"{field} is {side!r}; {data.name} has {', '.join(texts) or 'no text'}")


def prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Has TFDS download a set and write it as array_record.

    Raises:
      UserError: there is no network, no TensorFlow or whatever else it takes.
    """
    name = builder.info.full_name.removesuffix(f"/{builder.version}")
    needs = UserError(f"preparing {name} needs TensorFlow: pip install -e '.[prepare]'")
    # TFDS's own sets come in archives, which it opens with TensorFlow, after hours of downloads.
    if type(builder).__module__.startswith("tensorflow_datasets.") and not _has_tensorflow():
        raise needs
    log.info("preparing %s by TFDS in %s", name, builder.data_dir)
    try:
        builder.download_and_prepare()
    except Exception as error:  # whatever the network, its libraries and the set's own code raise
        if is_full(error):
            raise
        if isinstance(error, ImportError) and not _has_tensorflow():
            raise needs from error
        raise UserError(f"{name} cannot be prepared: {type(error).__name__}: {_one_line(error)}") from error


def _has_tensorflow() -> bool:
    return importlib.util.find_spec("tensorflow") is not None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return re.sub(r"^Failed to construct dataset .*?}\": ", "", text)[:300]

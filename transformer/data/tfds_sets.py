"""Translation sets of TFDS, by name: `wmt14_translate/de-en`, `opus/medical:0.1.0`."""

import contextlib
import dataclasses
import importlib.util
import io
import itertools
import logging
import re

import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils.shard_utils import FileInstruction

from transformer.config import DataConfig, Rule, UserError, option
from transformer.data.options import Options, read_options
from transformer.files import is_full

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TfdsOptions(Options):
    """Options of a TFDS set: a split or a part of one ("train[:99%]"), or None for the split of that name."""

    train: str | None = option(None, paper={"section 5.1": [Rule("the whole split")]})
    validation: str | None = option(None, paper={"section 6.2": [Rule("newstest2013")]})
    test: str | None = option(None, paper={"section 6.1": [Rule("newstest2014")]})


def describe(name: str) -> str:
    """Describes a name for messages about its options."""
    return f"{name}, which is read as the name of a TFDS set"


def find(data: DataConfig, other_names: list[str]) -> tfds.core.DatasetBuilder:
    """Returns the builder of a set, prepared or not.

    Args:
      data: the config; its name may end in a version and means the newest one otherwise.
      other_names: data sets that are not of TFDS, for the message.

    Raises:
      UserError: no such set, variant or version; a language that it lacks; or a set that is prepared in
        another format than array_record.
    """
    import tensorflow_datasets.translate  # noqa: F401  (registers the sets)

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints
            builder = tfds.builder(data.name, data_dir=data.data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        known = ", ".join(other_names)
        raise UserError(f"data.name is {data.name!r}; it must be {known} or a TFDS set") from None
    except Exception as error:  # no such version or variant, or prepared in another format
        reason, *_ = re.split(r"\. (?=[A-Z])", _one_line(error))
        if reason.startswith("BuilderConfig"):
            variants = tfds.builder_cls(data.name.partition("/")[0]).builder_configs
            reason += f"; it has {', '.join(variants)}"
        elif reason.startswith("File format"):
            reason += "; it must be array_record: set data.data_dir to another folder"
        raise UserError(f"data.name is {data.name!r}; TFDS says: {reason}") from error
    _check_languages(data, builder.info.features)
    return builder


def prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Lets TFDS download a set and write it as array_record.

    Raises:
      UserError: the network, TensorFlow or something else that the set needs is missing.
    """
    name = builder.info.full_name.removesuffix(f"/{builder.version}")
    needs_tensorflow = UserError(f"preparing {name} needs TensorFlow: pip install -e '.[prepare]'")
    # TFDS opens the archives of its sets with TensorFlow, after hours of downloads.
    is_part_of_tfds = type(builder).__module__.startswith("tensorflow_datasets.")
    if is_part_of_tfds and not has_tensorflow():
        raise needs_tensorflow
    log.info("preparing %s by TFDS in %s", name, builder.data_dir)
    try:
        builder.download_and_prepare()
    except Exception as error:  # the network, its libraries and the code of the set raise many kinds
        if is_full(error):
            raise
        if isinstance(error, ImportError) and not has_tensorflow():
            raise needs_tensorflow from error
        raise UserError(f"{name} cannot be prepared: {type(error).__name__}: {_one_line(error)}") from error


def has_tensorflow() -> bool:
    """Returns whether TensorFlow is installed."""
    return importlib.util.find_spec("tensorflow") is not None


def split_parts(data: DataConfig, info: tfds.core.DatasetInfo) -> dict[str, str]:
    """Returns the part of the set that each split is read from, by the name of the split.

    Raises:
      UserError: an option that is no part of a split, or two splits that overlap.
    """
    given = dataclasses.asdict(read_options(TfdsOptions, data, describe(data.name)))
    parts = {name: name for name in info.splits}
    parts |= {name: part for name, part in given.items() if part is not None}
    files = {name: _files(data, info, name, parts[name]) for name in parts if name in given}
    for first, second in itertools.combinations(files, 2):
        if any(_overlap(*pair) for pair in itertools.product(files[first], files[second])):
            raise UserError(
                f"data.options.{first} is {parts[first]!r} and data.options.{second} is {parts[second]!r}; "
                "they overlap: choose parts that do not, such as train[:99%] and train[99%:]"
            )
    return parts


def _files(data: DataConfig, info: tfds.core.DatasetInfo, name: str, part: str) -> list[FileInstruction]:
    """Returns the records of each file that a part of a set consists of."""
    try:
        return info.splits[part].file_instructions
    except Exception as error:  # raised by the parser of TFDS
        allowed = f"a split of {data.name} ({', '.join(info.splits)}) or a part of one: train[99%:]"
        raise UserError(f"data.options.{name} is {part!r}; it must be {allowed}") from error


def _overlap(first: FileInstruction, second: FileInstruction) -> bool:
    """Returns whether two parts of record files share a record."""
    return first.filename == second.filename and max(first.skip, second.skip) < min(
        first.skip + first.take, second.skip + second.take
    )


def _check_languages(data: DataConfig, features: tfds.features.FeatureConnector) -> None:
    """Checks the languages before a set is prepared, which may take hours."""
    texts = []
    if isinstance(features, tfds.features.FeaturesDict):
        texts = sorted(name for name, feature in features.items() if isinstance(feature, tfds.features.Text))
    for field, side in (("data.source", data.source), ("data.target", data.target)):
        if side not in texts:
            raise UserError(f"{field} is {side!r}; {data.name} has {', '.join(texts) or 'no text'}")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return re.sub(r"^Failed to construct dataset .*?}\": ", "", text)[:300]

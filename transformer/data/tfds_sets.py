"""Data sets of TFDS, selected by name: translations (`wmt14_translate/de-en`) or documents (`lm1b`)."""

import contextlib
import dataclasses
import importlib.util
import io
import itertools
import logging
import re
from collections.abc import Mapping, Sequence

import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils.shard_utils import FileInstruction

from transformer.config import DataConfig, Rule, UserError, option
from transformer.data.options import Options, read_options
from transformer.data.records import DOCUMENT, Record
from transformer.files import is_full

# The name of a set, its variant and its version.
NAME = re.compile(r"(?P<name>\w+)(?:/(?P<config>[\w.-]+))?(?::(?P<version>[\d.*]+))?")

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TfdsOptions(Options):
    """Options of a TFDS set.

    Each option is a split, a part of a split ("train[:99%]"), or None for the split with the option's name.
    """

    train: str | None = option(None, paper={"section 5.1": [Rule("the whole split")]})
    validation: str | None = option(None, paper={"section 6.2": [Rule("newstest2013")]})
    test: str | None = option(None, paper={"section 6.1": [Rule("newstest2014")]})


def describe(name: str) -> str:
    """Describes a TFDS set in messages about its options."""
    return f"{name} (read as the name of a TFDS set)"


def find(data: DataConfig, other_names: list[str]) -> tfds.core.DatasetBuilder:
    """Returns the builder of a set of texts, prepared or not; see `find_builder`.

    Raises:
      UserError: the builder cannot be made, or the set lacks a language.
    """
    builder = find_builder(data, other_names, ("text", "translate"))
    find_columns(data, builder.info.features)
    return builder


def find_builder(
    data: DataConfig, other_names: Sequence[str], packages: Sequence[str]
) -> tfds.core.DatasetBuilder:
    """Returns the builder of a set, prepared or not.

    Args:
      data: the config. `data.name` may end in a version; otherwise the newest version is used.
      other_names: names of the data sets that do not come from TFDS, for the message.
      packages: packages of TFDS that register sets when they are imported.

    Raises:
      UserError: the set, variant or version does not exist, or the set is prepared in a different format than
        array_record.
    """
    for package in packages:
        importlib.import_module(f"tensorflow_datasets.{package}")
    parts = NAME.fullmatch(data.name)
    try:
        # `tfds.builder` would also import code that a prepared folder or another namespace names.
        builder_class = tfds.core.registered.imported_builder_cls(parts["name"] if parts else "")
    except tfds.core.DatasetNotFoundError:
        known = ", ".join(other_names)
        raise UserError(f"data.name is {data.name!r}; it must be {known} or a TFDS set") from None
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints
            builder = builder_class(
                config=parts["config"],
                version=parts["version"],
                data_dir=data.data_dir,
                file_format="array_record",
            )
    except Exception as error:  # no such version or variant, or prepared in another format
        reason, *_ = re.split(r"\. (?=[A-Z])", _one_line(error))
        if reason.startswith("BuilderConfig"):
            reason += f"; it has {', '.join(builder_class.builder_configs)}"
        elif reason.startswith("File format"):
            reason += "; it must be array_record: set data.data_dir to another folder"
        raise UserError(f"data.name is {data.name!r}; TFDS says: {reason}") from error
    return builder


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    """Returns whether a set is prepared."""
    return bool(builder.is_prepared() and builder.info.splits)


def check_tensorflow(builder: tfds.core.DatasetBuilder) -> None:
    """Checks that TensorFlow is installed if the set is part of TFDS and not prepared.

    TFDS opens the archives of its sets with TensorFlow, and would fail only after hours of downloads.

    Raises:
      UserError: TensorFlow is missing.
    """
    is_part_of_tfds = type(builder).__module__.startswith("tensorflow_datasets.")
    if is_part_of_tfds and not is_prepared(builder) and not has_tensorflow():
        raise _needs_tensorflow(builder)


def prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Lets TFDS download a set and write it as array_record.

    Raises:
      UserError: the network, TensorFlow or something else that the set needs is missing.
    """
    check_tensorflow(builder)
    name = _name(builder)
    log.info("preparing %s by TFDS in %s", name, builder.data_dir)
    try:
        builder.download_and_prepare()
    except Exception as error:  # the network, its libraries and the code of the set raise many kinds
        if is_full(error):
            raise
        if isinstance(error, ImportError) and not has_tensorflow():
            raise _needs_tensorflow(builder) from error
        raise UserError(
            f"{name} cannot be prepared: {type(error).__name__}: {_one_line(error)}; "
            "check the network and data.data_dir, then run the same command again"
        ) from error


def has_tensorflow() -> bool:
    """Returns whether TensorFlow is installed."""
    return importlib.util.find_spec("tensorflow") is not None


def _name(builder: tfds.core.DatasetBuilder) -> str:
    return builder.info.full_name.removesuffix(f"/{builder.version}")


def _needs_tensorflow(builder: tfds.core.DatasetBuilder) -> UserError:
    return UserError(f"preparing {_name(builder)} needs TensorFlow: pip install -e '.[prepare]'")


def split_parts(data: DataConfig, info: tfds.core.DatasetInfo) -> dict[str, str]:
    """Maps the name of each split to the part of the set that the split is read from.

    Raises:
      UserError: an option is not a part of a split, or two splits overlap.
    """
    given = dataclasses.asdict(read_options(TfdsOptions, data, describe(data.name)))
    return checked_parts(data, info, given)


def checked_parts(
    data: DataConfig, info: tfds.core.DatasetInfo, given: Mapping[str, str | None]
) -> dict[str, str]:
    """Returns the part of each split of a set, with those in `given` that are not None; see `split_parts`."""
    parts = {name: name for name in info.splits}
    parts |= {name: part for name, part in given.items() if part is not None}
    files = {name: _files(data, info, name, parts[name]) for name in parts if name in given}
    for first, second in itertools.combinations(files, 2):
        if any(_overlap(*pair) for pair in itertools.product(files[first], files[second])):
            raise UserError(
                f"data.options.{first} is {parts[first]!r} and data.options.{second} is {parts[second]!r}; "
                "these parts overlap; choose parts that do not, such as train[:99%] and train[99%:]"
            )
    return parts


def _files(data: DataConfig, info: tfds.core.DatasetInfo, name: str, part: str) -> list[FileInstruction]:
    """Returns the files of a part of a set, and the range of records in each file."""
    try:
        return info.splits[part].file_instructions
    except Exception as error:  # raised by the parser of TFDS
        allowed = f"a split of {data.name} ({', '.join(info.splits)}) or a part of a split"
        raise UserError(
            f"data.options.{name} is {part!r}; it must be {allowed}, such as train[99%:]"
        ) from error


def _overlap(first: FileInstruction, second: FileInstruction) -> bool:
    """Returns whether two parts of record files share a record."""
    return first.filename == second.filename and max(first.skip, second.skip) < min(
        first.skip + first.take, second.skip + second.take
    )


def find_columns(data: DataConfig, features: tfds.features.FeatureConnector) -> Record:
    """Returns the columns of a set: `DOCUMENT` if it has a text with this name, otherwise the two languages.

    Runs before the preparation, which may take hours.

    Raises:
      UserError: the set has no text, or lacks a language.
    """
    texts = []
    if isinstance(features, tfds.features.FeaturesDict):
        texts = sorted(name for name, feature in features.items() if isinstance(feature, tfds.features.Text))
    if not texts:
        raise UserError(
            f"data.name is {data.name!r}, which has no text; choose a set of translations or texts"
        )
    if DOCUMENT[0] in texts:
        return DOCUMENT
    for field, side in (("data.source", data.source), ("data.target", data.target)):
        if side not in texts:
            raise UserError(f"{field} is {side!r}; it must be a language of {data.name}: {', '.join(texts)}")
    return data.source, data.target


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return re.sub(r"^Failed to construct dataset .*?}\": ", "", text)[:300]

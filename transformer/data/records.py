"""Records of texts in TFDS's array_record format, written and read as a stream in constant memory.

A record has one text per column. The columns of a sentence pair are its languages; a document has one column.
"""

import contextlib
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Int
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder
from tensorflow_datasets.proto import tf_example_pb2

from transformer.data.progress import Progress, watched

Record = tuple[str, ...]  # one text per column
Pair = tuple[str, str]  # a record with two columns: source and target
DOCUMENT = ("text",)  # the columns of a document
CHUNK = 4_096  # pairs read or written together, since single reads are slow
DOCUMENT_CHUNK = 256  # documents read or written together, since documents may be long
SHARD = 1_000_000  # records per file


def kind_of(columns: Sequence[str]) -> str:
    """Returns the word for records with these columns: "pairs" or "documents"."""
    return "documents" if len(columns) == 1 else "pairs"


def chunk_size(columns: Sequence[str]) -> int:
    """Returns the number of records that are read or written together."""
    return DOCUMENT_CHUNK if kind_of(columns) == "documents" else CHUNK


class ContentDigest:
    """SHA-256 digest of a sequence of records, which identifies the content of a split."""

    def __init__(self):
        self._digest = hashlib.sha256()

    def update(self, records: Iterable[Record]) -> None:
        """Adds records."""
        for text in itertools.chain.from_iterable(records):
            encoded = text.encode("utf-8", "surrogatepass")
            self._digest.update(len(encoded).to_bytes(8, "little") + encoded)

    def hexdigest(self) -> str:
        """Returns the digest of the records so far."""
        return self._digest.hexdigest()


def write_split(
    builder: FileReaderBuilder,
    split: str,
    columns: Record,
    records: Iterable[Record],
    progress: Progress,
) -> tuple[tfds.core.SplitInfo, str]:
    """Writes the records of a split in the given order, and returns the split and its `ContentDigest`.

    This function replaces the writer of TFDS, which sorts a split in memory and needs TensorFlow for a split
    above 1 GB.
    """
    template = builder._get_filename_template(split)
    records, num_bytes, shard_lengths, content = iter(records), 0, [], ContentDigest()
    size = chunk_size(columns)
    chunks = iter(lambda: list(itertools.islice(records, size)), [])
    chunks = watched(chunks, progress, f"writing {split}", kind_of(columns))
    while first := next(chunks, []):
        path = builder.data_path / _partial_name(split, len(shard_lengths))
        shard_lengths.append(0)
        with contextlib.closing(ArrayRecordWriter(str(path), "group_size:1")) as writer:
            for chunk in itertools.chain([first], itertools.islice(chunks, SHARD // size - 1)):
                for record in chunk:
                    encoded = _encode(columns, record)
                    writer.write(encoded)
                    num_bytes += len(encoded)
                shard_lengths[-1] += len(chunk)
                content.update(chunk)
    for index in range(len(shard_lengths)):  # a file name contains the number of files
        path = template.sharded_filepath(shard_index=index, num_shards=len(shard_lengths))
        (builder.data_path / _partial_name(split, index)).rename(path)
    info = tfds.core.SplitInfo(
        name=split, shard_lengths=shard_lengths, num_bytes=num_bytes, filename_template=template
    )
    return info, content.hexdigest()


def read_chunks(
    builder: tfds.core.DatasetBuilder,
    split: str,
    columns: Record,
    progress: Progress,
    activity: str,
    sample: Int[np.ndarray, "_"] | None = None,
) -> Iterator[list[Record]]:
    """Yields the records of a split in lists of `chunk_size` records.

    Args:
      builder: a prepared data set.
      split: a split, or a part of a split, such as `train[:99%]`.
      columns: names of the columns.
      progress: receives progress reports.
      activity: the purpose of reading, for the progress reports.
      sample: indices of the records to read; if None, all records are read.
    """
    raw_bytes = tfds.decode.DeserializeMethod.RAW_BYTES  # the parser of TFDS is much slower than `_decode`
    source = builder.as_data_source(split=split, deserialize_method=raw_bytes)
    numbers: Sequence[int] | np.ndarray = range(len(source)) if sample is None else sample
    size = chunk_size(columns)
    chunks = (
        [_decode(columns, encoded) for encoded in source.__getitems__(list(map(int, keys)))]
        for keys in (numbers[first : first + size] for first in range(0, len(numbers), size))
    )
    return watched(chunks, progress, activity, kind_of(columns), len(numbers))


def _partial_name(split: str, index: int) -> str:
    return f"{split}-{index}.partial"


def _encode(columns: Record, record: Record) -> bytes:
    example = tf_example_pb2.Example()
    for column, text in zip(columns, record, strict=True):
        example.features.feature[column].bytes_list.value.append(text.encode())
    return example.SerializeToString()


def _decode(columns: Record, encoded: bytes) -> Record:
    feature = tf_example_pb2.Example.FromString(encoded).features.feature
    return tuple(feature[column].bytes_list.value[0].decode() for column in columns)

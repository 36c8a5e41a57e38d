"""Sentence pairs in TFDS's array_record format, written and read as a stream in constant memory."""

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

Pair = tuple[str, str]  # source and target: two sentences, or two languages
CHUNK = 4_096  # pairs read or written together, since single reads are slow
SHARD = 1_000_000  # pairs per file


class ContentDigest:
    """SHA-256 digest of a sequence of sentence pairs, which identifies the content of a split."""

    def __init__(self):
        self._digest = hashlib.sha256()

    def update(self, pairs: Iterable[Pair]) -> None:
        """Adds pairs."""
        for text in itertools.chain.from_iterable(pairs):
            encoded = text.encode("utf-8", "surrogatepass")
            self._digest.update(len(encoded).to_bytes(8, "little") + encoded)

    def hexdigest(self) -> str:
        """Returns the digest of the pairs so far."""
        return self._digest.hexdigest()


def write_split(
    builder: FileReaderBuilder,
    split: str,
    languages: Pair,
    pairs: Iterable[Pair],
    progress: Progress,
) -> tuple[tfds.core.SplitInfo, str]:
    """Writes the pairs of a split in the given order, and returns the split and its `ContentDigest`.

    This function replaces the writer of TFDS, which sorts a split in memory and needs TensorFlow for a split
    above 1 GB.
    """
    template = builder._get_filename_template(split)
    pairs, num_bytes, shard_lengths, content = iter(pairs), 0, [], ContentDigest()
    chunks = watched(iter(lambda: list(itertools.islice(pairs, CHUNK)), []), progress, f"writing {split}")
    while first := next(chunks, []):
        path = builder.data_path / _partial_name(split, len(shard_lengths))
        shard_lengths.append(0)
        with contextlib.closing(ArrayRecordWriter(str(path), "group_size:1")) as writer:
            for chunk in itertools.chain([first], itertools.islice(chunks, SHARD // CHUNK - 1)):
                for pair in chunk:
                    record = _to_record(languages, pair)
                    writer.write(record)
                    num_bytes += len(record)
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
    languages: Pair,
    progress: Progress,
    activity: str,
    sample: Int[np.ndarray, "_"] | None = None,
) -> Iterator[list[Pair]]:
    """Yields the pairs of a split in lists of `CHUNK` pairs.

    Args:
      builder: a prepared data set.
      split: a split, or a part of a split, such as `train[:99%]`.
      languages: source and target language.
      progress: receives progress reports.
      activity: the purpose of reading, for the progress reports.
      sample: indices of the pairs to read; if None, all pairs are read.
    """
    raw_bytes = tfds.decode.DeserializeMethod.RAW_BYTES  # the parser of TFDS is much slower than `_to_pair`
    records = builder.as_data_source(split=split, deserialize_method=raw_bytes)
    numbers: Sequence[int] | np.ndarray = range(len(records)) if sample is None else sample
    chunks = (
        [_to_pair(languages, record) for record in records.__getitems__(list(map(int, keys)))]
        for keys in (numbers[first : first + CHUNK] for first in range(0, len(numbers), CHUNK))
    )
    return watched(chunks, progress, activity, len(numbers))


def _partial_name(split: str, index: int) -> str:
    return f"{split}-{index}.partial"


def _to_record(languages: Pair, texts: Pair) -> bytes:
    example = tf_example_pb2.Example()
    for language, text in zip(languages, texts, strict=True):
        example.features.feature[language].bytes_list.value.append(text.encode())
    return example.SerializeToString()


def _to_pair(languages: Pair, record: bytes) -> Pair:
    feature = tf_example_pb2.Example.FromString(record).features.feature
    source, target = (feature[language].bytes_list.value[0].decode() for language in languages)
    return source, target

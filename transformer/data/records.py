"""Sentence pairs as TFDS's array_record, written and read as a stream: memory does not grow with them."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder
from tensorflow_datasets.proto import tf_example_pb2

from transformer.data.progress import Progress, watched

Pair = tuple[str, str]
CHUNK = 4_096  # pairs handled at once: one by one they cost four times as much to read
SHARD = 1_000_000  # pairs a file


def write_split(
    builder: FileReaderBuilder,
    split: str,
    languages: Pair,
    pairs: Iterable[Pair],
    progress: Progress,
) -> tfds.core.SplitInfo:
    """Writes the pairs of a split in their order.

    TFDS's own writer keeps a split in memory to sort it, and beyond 1 GB asks for TensorFlow.
    """
    template = builder._get_filename_template(split)
    pairs, num_bytes, shard_lengths = iter(pairs), 0, []
    chunks = watched(iter(lambda: list(itertools.islice(pairs, CHUNK)), []), progress, f"writing {split}")
    while first := next(chunks, []):
        path = _unnamed(builder, split, len(shard_lengths))
        shard_lengths.append(0)
        with contextlib.closing(ArrayRecordWriter(str(path), "group_size:1")) as writer:
            for chunk in itertools.chain([first], itertools.islice(chunks, SHARD // CHUNK - 1)):
                for pair in chunk:
                    record = _record(languages, pair)
                    writer.write(record)
                    num_bytes += len(record)
                shard_lengths[-1] += len(chunk)
    for index in range(len(shard_lengths)):  # a file's name says how many there are
        final = template.sharded_filepath(shard_index=index, num_shards=len(shard_lengths))
        _unnamed(builder, split, index).rename(final)
    return tfds.core.SplitInfo(
        name=split, shard_lengths=shard_lengths, num_bytes=num_bytes, filename_template=template
    )


def read_chunks(
    builder: tfds.core.DatasetBuilder,
    split: str,
    languages: Pair,
    progress: Progress,
    what: str,
    sample: np.ndarray | None = None,
) -> Iterator[list[Pair]]:
    """The pairs of a split, many at a time.

    Args:
      builder: prepared.
      split: a split, or a part of one: `train[:99%]`.
      languages: of the source and of the target.
      progress: is told how far reading has come.
      what: what it is read for.
      sample: the numbers of the pairs to read; None: all.
    """
    raw = tfds.decode.DeserializeMethod.RAW_BYTES  # TFDS's own parser takes ten times as long
    records = builder.as_data_source(split=split, deserialize_method=raw)
    numbers: Sequence[int] | np.ndarray = range(len(records)) if sample is None else sample
    chunks = (
        [_pair(languages, record) for record in records.__getitems__(list(map(int, keys)))]
        for keys in (numbers[first : first + CHUNK] for first in range(0, len(numbers), CHUNK))
    )
    return watched(chunks, progress, what, len(numbers))


def _unnamed(builder, split, index):
    return builder.data_path / f"{split}-{index}.partial"


def _record(languages, texts):
    example = tf_example_pb2.Example()
    for language, text in zip(languages, texts, strict=True):
        example.features.feature[language].bytes_list.value.append(text.encode())
    return example.SerializeToString()


def _pair(languages, record):
    feature = tf_example_pb2.Example.FromString(record).features.feature
    source, target = (feature[language].bytes_list.value[0].decode() for language in languages)
    return source, target

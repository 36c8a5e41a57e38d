"""TFDS builders of sentence pairs, prepared as array_record, which needs no TensorFlow.

A builder of ours is a class and an entry in `BUILDERS`. Any other name is looked up in TFDS.
"""

import abc
import contextlib
import fcntl
import gzip
import hashlib
import io
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from transformer.config import DataConfig, UserError


class PairBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder that is told everything by a `DataConfig` and keeps the order of its sentences."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, data: DataConfig):
        self.data = data
        super().__init__(
            data_dir=data.data_dir,
            config=tfds.core.BuilderConfig(name=self.variant()),
            file_format="array_record",
        )

    @abc.abstractmethod
    def variant(self) -> str:
        """Names what is prepared: two different contents never share a name."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.Translation(languages=(self.data.source, self.data.target))
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(pairs) for name, pairs in self.pairs(dl_manager).items()}

    @abc.abstractmethod
    def pairs(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, str]]]:
        """The (source, target) sentences of each split."""

    def _generate_examples(self, pairs):
        for number, (source, target) in enumerate(pairs):
            yield number, {self.data.source: source, self.data.target: target}


class NumberWords(PairBuilder):
    """Lists of number names, written by num2words: "twelve; ninety-one" and "zwölf; einundneunzig".

    A list has 1 to 4 numbers, all lengths equally likely, each drawn below 10, 100, ... or 100,000, all
    equally likely; `test_long` has 5 to 10. No list is in two splits. A small model masters it in minutes,
    but only by getting each number, its inner order (German: ones before tens) and the list's order right.
    """

    HELD_OUT: ClassVar = ("test", "validation", "test_long")  # 1,000 lists each, or as many as train has

    def variant(self) -> str:
        return f"{self.data.source}-{self.data.target}.{self.data.lists}"

    def pairs(self, dl_manager):
        source, target = _number_names(self.data.source), _number_names(self.data.target)
        rng, seen = random.Random(2017), set()

        def draw(split, size):
            shortest, longest = (5, 10) if split == "test_long" else (1, 4)
            while size:
                length = rng.randint(shortest, longest)
                numbers = tuple(rng.randrange(10 ** rng.randint(1, 5)) for _ in range(length))
                if numbers not in seen:
                    seen.add(numbers)
                    size -= 1
                    yield "; ".join(map(source, numbers)), "; ".join(map(target, numbers))

        # Held-out lists are drawn first, so that from 1,000 on the training set's size does not change them.
        size = min(1_000, self.data.lists)
        held_out = {split: list(draw(split, size)) for split in self.HELD_OUT}
        return {**held_out, "train": draw("train", self.data.lists)}


def _number_names(language: str):
    import num2words

    if language not in num2words.CONVERTER_CLASSES:
        known = ", ".join(sorted(num2words.CONVERTER_CLASSES))
        raise UserError(f"number_words: language {language!r} is not one num2words writes: {known}")
    names: dict[int, str] = {}

    def name(number):
        if number not in names:
            names[number] = num2words.num2words(number, lang=language)
        return names[number]

    return name


class Multi30k(PairBuilder):
    """Image captions, about 13 words a side (Elliott et al. 2016): 29,000 pairs to train on.

    Reads `<split>[.lc.norm.tok].<language>[.gz]` from `data.manual_dir`, or downloads from the data set's
    own repository.
    """

    REPOSITORY: ClassVar = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1"
    FILES: ClassVar = {"train": "train", "validation": "val", "test": "test_2016_flickr"}

    def variant(self) -> str:
        name = f"{self.data.source}-{self.data.target}.{self.data.text}"
        if self.data.manual_dir is None:
            return name
        paths = [path for split in self.FILES for path in self._manual(split)]
        return f"{name}.{_fingerprint(paths)}"

    def pairs(self, dl_manager):
        if self.data.manual_dir is not None:
            return {split: read_pairs(*self._manual(split)) for split in self.FILES}
        urls = {split: [self._url(split, side) for side in self._sides()] for split in self.FILES}
        try:
            downloaded = dl_manager.download(urls)
        except Exception as error:  # whatever the network and its libraries raise
            raise UserError(
                f"multi30k cannot be downloaded ({type(error).__name__}); get {self.REPOSITORY} yourself "
                "and set data.manual_dir"
            ) from error
        return {split: read_pairs(*map(Path, paths)) for split, paths in downloaded.items()}

    def _sides(self):
        return (self.data.source, self.data.target)

    def _manual(self, split):
        text = "" if self.data.text == "raw" else f".{self.data.text}"
        return [
            _existing(Path(self.data.manual_dir) / f"{self.FILES[split]}{text}.{side}", "data.manual_dir")
            for side in self._sides()
        ]

    def _url(self, split, side):
        if self.data.text == "raw":
            return f"{self.REPOSITORY}/raw/{self.FILES[split]}.{side}.gz"
        return f"{self.REPOSITORY}/tok/{self.FILES[split]}.{self.data.text}.{side}"


class ParallelText(PairBuilder):
    """Your own text: one file of tab-separated pairs, or two files line by line, each plain or .gz."""

    def variant(self) -> str:
        paths = [path for files in self._files().values() for path in files]
        return f"{self.data.source}-{self.data.target}.{_fingerprint(paths)}"

    def pairs(self, dl_manager):
        return {split: read_pairs(*files) for split, files in self._files().items()}

    def _files(self):
        given = {"train": self.data.train, "validation": self.data.validation, "test": self.data.test}
        for split in ("train", "validation"):
            if given[split] is None:
                raise UserError(
                    f"data.{split} is not set; parallel_text needs it: pairs.tsv or source,target"
                )
        return {
            split: [_existing(Path(name), f"data.{split}") for name in names.split(",")]
            for split, names in given.items()
            if names is not None
        }


BUILDERS: dict[str, type[PairBuilder]] = {
    "number_words": NumberWords,
    "multi30k": Multi30k,
    "parallel_text": ParallelText,
}


def prepared(data: DataConfig) -> tfds.core.DatasetBuilder:
    """The builder a config names, its data on disk as array_record.

    Raises:
      UserError: an unknown data set, a missing or unreadable file, two sides of different line counts.
    """
    builder = _builder(data)
    with locked(Path(builder.data_dir).parent), contextlib.redirect_stdout(io.StringIO()):  # TFDS prints
        tfds.disable_progress_bar()
        builder.download_and_prepare()
    return _builder(data)  # made anew: the first knows nothing of what another process prepared meanwhile


def _builder(data: DataConfig) -> tfds.core.DatasetBuilder:
    if data.name in BUILDERS:
        return BUILDERS[data.name](data)
    import tensorflow_datasets.translate  # noqa: F401  (registers TFDS's own sets)

    try:
        return tfds.builder(data.name, data_dir=data.data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        ours = ", ".join(BUILDERS)
        raise UserError(f"data.name is {data.name!r}; it must be {ours} or a TFDS set") from None


@contextlib.contextmanager
def locked(folder: Path):
    """Lets one process at a time prepare in a folder; the others wait and find it done."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_pairs(*paths: Path) -> Iterator[tuple[str, str]]:
    """Pairs of one TSV file or of two files. Only a newline ends a line."""
    if len(paths) == 1:
        for number, line in enumerate(_lines(paths[0]), start=1):
            fields = line.split("\t")
            if len(fields) != 2:
                raise UserError(f"{paths[0]}:{number}: {len(fields)} tab-separated fields; there must be 2")
            yield fields[0], fields[1]
        return
    source, target = paths
    for number, (left, right) in enumerate(itertools.zip_longest(_lines(source), _lines(target)), start=1):
        if left is None or right is None:
            shorter = source if left is None else target
            raise UserError(f"{shorter} ends after {number - 1} lines, before {source} or {target} does")
        yield left, right


def _lines(path: Path) -> Iterator[str]:
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rb") if compressed else open(path, "rb") as file:
        number = 0
        try:
            for line in file:
                number += 1
                yield line.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            raise UserError(f"{path}:{number}: not UTF-8") from None
        except (EOFError, gzip.BadGzipFile) as error:
            raise UserError(f"{path}: broken after line {number}: {error}") from None


def _existing(path: Path, field: str) -> Path:
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    raise UserError(f"{field}: {path} (or .gz) is not a file")


def _fingerprint(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]

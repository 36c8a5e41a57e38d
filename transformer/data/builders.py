"""TFDS builders of sentence pairs, prepared as array_record, which needs no TensorFlow.

A builder of ours is a class and an entry in `BUILDERS`. Any other name is looked up in TFDS.
"""

import abc
import contextlib
import io
import itertools
import json
import logging
import random
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from transformer.config import DataConfig, UserError
from transformer.data import tfds_sets
from transformer.data.progress import LogLines, Progress
from transformer.data.records import write_split
from transformer.data.text import RULES, Fate, decide, existing, fingerprint, read_pairs, report
from transformer.disk import is_full, locked

log = logging.getLogger(__name__)

Pairs = Iterable[tuple[str, str]]


class PairBuilder(FileReaderBuilder, skip_registration=True):
    """A TFDS builder that is told everything by a `DataConfig` and keeps the order of its sentences."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, data: DataConfig, progress: Progress | None = None):
        self.data = data
        self._progress = progress or LogLines()
        super().__init__(
            data_dir=data.data_dir,
            config=tfds.core.BuilderConfig(name=self.variant()),
            file_format="array_record",
        )

    @abc.abstractmethod
    def variant(self) -> str:
        """Names what is prepared: two different contents never share a name."""

    @abc.abstractmethod
    def pairs(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Pairs]:
        """The (source, target) sentences of each split."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.Translation(languages=(self.data.source, self.data.target))
        return tfds.core.DatasetInfo(
            builder=self, features=features, disable_shuffling=True, metadata=tfds.core.MetadataDict()
        )

    def _download_and_prepare(self, dl_manager, download_config):
        languages = (self.data.source, self.data.target)
        splits = []
        for name, pairs in self.pairs(dl_manager).items():
            splits.append(write_split(self, name, languages, pairs, self._progress))
            if not splits[-1].num_examples:
                raise UserError(f"split {name!r} of {self.name} is empty")
        self.info.set_splits(tfds.core.SplitDict(splits))


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
        return f"{name}.{fingerprint(paths)}"

    def pairs(self, dl_manager):
        if self.data.manual_dir is not None:
            return {split: read_pairs(*self._manual(split)) for split in self.FILES}
        urls = {split: [self._url(split, side) for side in self._sides()] for split in self.FILES}
        try:
            downloaded = dl_manager.download(urls)
        except Exception as error:  # whatever the network and its libraries raise
            if is_full(error):
                raise
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
            existing(Path(self.data.manual_dir) / f"{self.FILES[split]}{text}.{side}", "data.manual_dir")
            for side in self._sides()
        ]

    def _url(self, split, side):
        if self.data.text == "raw":
            return f"{self.REPOSITORY}/raw/{self.FILES[split]}.{side}.gz"
        return f"{self.REPOSITORY}/tok/{self.FILES[split]}.{self.data.text}.{side}"


class ParallelText(PairBuilder):
    """Your own text: one file of tab-separated pairs, or two files line by line, each plain or .gz.

    Validation and test pairs that are not given are held out of the training text, whose pairs are dropped
    by the rules of `data` (see `text.decide`). Given ones are taken as they are.
    """

    SPLITS: ClassVar = {"train": Fate.TRAIN, "validation": Fate.VALIDATION, "test": Fate.TEST}

    def variant(self) -> str:
        files = self._files()
        paths = [path for split in files.values() for path in split]
        rules = {rule: value for rule in RULES if (value := getattr(self.data, rule))}
        also = json.dumps([rules, {split: len(paths) for split, paths in files.items()}]) if rules else ""
        return f"{self.data.source}-{self.data.target}.{fingerprint(paths, also)}"

    def pairs(self, dl_manager):
        files = self._files()
        for split, paths in files.items():
            if next(read_pairs(*paths), None) is None:
                raise UserError(f"data.{split}: {','.join(map(str, paths))} has no pairs")
        train = files.pop("train")
        missing = [fate for split, fate in self.SPLITS.items() if split not in ("train", *files)]
        fates = decide(read_pairs(*train), self.data, missing)
        said = report(fates, self.data)
        for fate in (Fate.TRAIN, *missing) if self.data.held_out else (Fate.TRAIN,):
            if not np.any(fates == fate):
                raise UserError(f"data.train: no pair is left for {fate.name.lower()}: {said}")
        self.info.metadata["report"] = f"{','.join(map(str, train))}: {said}"
        splits = {split: read_pairs(*paths) for split, paths in files.items()}
        for split, fate in self.SPLITS.items():
            if fate in fates:
                splits[split] = itertools.compress(read_pairs(*train), fates == fate)
        return splits

    def _files(self) -> dict[str, list[Path]]:
        given = {"train": self.data.train, "validation": self.data.validation, "test": self.data.test}
        forms = "pairs.tsv or source,target"
        for split, names in given.items():
            if names is None and split == "train":
                raise UserError(f"data.train is not set; parallel_text needs it: {forms}")
            if names is None and split == "validation" and not self.data.held_out:
                raise UserError(f"data.validation is not set; give {forms}, or set data.held_out")
            if names is not None and len(names.split(",")) > 2:
                raise UserError(f"data.{split} is {names!r}; it must be {forms}")
        return {
            split: [existing(Path(name.strip()), f"data.{split}") for name in names.split(",")]
            for split, names in given.items()
            if names is not None
        }


BUILDERS: dict[str, type[PairBuilder]] = {
    "number_words": NumberWords,
    "multi30k": Multi30k,
    "parallel_text": ParallelText,
}


def prepared(data: DataConfig, progress: Progress | None = None) -> tfds.core.DatasetBuilder:
    """The builder a config names, its data on disk as array_record.

    Raises:
      UserError: an unknown data set, a missing or unreadable file, two sides of different line counts, a
        set of TFDS's own that cannot be prepared here.
    """
    builder = _builder(data, progress)
    if not (builder.is_prepared() and builder.info.splits):
        folder = Path(builder.data_dir).parent
        with locked(folder), contextlib.redirect_stdout(io.StringIO()):  # TFDS prints
            if not sys.stderr.isatty():
                tfds.disable_progress_bar()
            if isinstance(builder, PairBuilder):
                for left_over in folder.glob(
                    "incomplete.*"
                ):  # by a process that was killed: we hold the lock
                    shutil.rmtree(left_over)
                builder.download_and_prepare()
            else:
                tfds_sets.prepare(builder)
        # Made anew: the first knows nothing of what another process prepared meanwhile.
        builder = _builder(data, progress)
    if isinstance(builder, PairBuilder) and "report" in builder.info.metadata:
        log.info(builder.info.metadata["report"])
    return builder


def _builder(data: DataConfig, progress: Progress | None) -> tfds.core.DatasetBuilder:
    if data.name in BUILDERS:
        return BUILDERS[data.name](data, progress)
    return tfds_sets.find(data, ours=list(BUILDERS))

"""multi30k: captions of images (Elliott et al. 2016)."""

import dataclasses
from pathlib import Path
from typing import ClassVar

from transformer.config import UserError, option
from transformer.data.options import ONLY_A_DEPARTURE, Options
from transformer.data.pair_builder import PairBuilder
from transformer.data.text import existing_file, fingerprint, read_pairs
from transformer.files import is_full


@dataclasses.dataclass(frozen=True)
class Multi30kOptions(Options):
    """Options of `multi30k`."""

    # raw or lc.norm.tok (lower-cased, normalized, tokenized).
    text: str = option("raw", not_in_paper=ONLY_A_DEPARTURE)
    # Folder with the files; if None, the files are downloaded.
    manual_dir: str | None = option(None, not_in_paper="a path", affects_result=False)

    def __post_init__(self):
        self._require("text", self.text in ("raw", "lc.norm.tok"), "raw or lc.norm.tok")


class Multi30k(PairBuilder):
    """Image captions of about 13 words per side: 29,000 pairs to train on.

    Reads `<split>[.lc.norm.tok].<language>[.gz]` from `data.options.manual_dir`, or downloads the files from
    the repository of the data set.
    """

    options_type: ClassVar = Multi30kOptions
    REPOSITORY: ClassVar = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1"
    FILES: ClassVar = {"train": "train", "validation": "val", "test": "test_2016_flickr"}

    def variant(self) -> str:
        name = f"{self.data.source}-{self.data.target}.{self.options.text}"
        if self.options.manual_dir is None:
            return name
        paths = [path for split in self.FILES for path in self._manual_paths(split)]
        return f"{name}.{fingerprint(paths)}"

    def pairs(self, dl_manager):
        if self.options.manual_dir is not None:
            return {split: read_pairs(*self._manual_paths(split)) for split in self.FILES}
        urls = {split: [self._url(split, language) for language in self._languages] for split in self.FILES}
        try:
            downloaded = dl_manager.download(urls)
        except Exception as error:  # the network and its libraries raise many kinds
            if is_full(error):
                raise
            raise UserError(
                f"multi30k cannot be downloaded ({type(error).__name__}); download the files of "
                f"{self.REPOSITORY} yourself and set data.options.manual_dir to their folder"
            ) from error
        return {split: read_pairs(*map(Path, paths)) for split, paths in downloaded.items()}

    @property
    def _languages(self) -> tuple[str, str]:
        return self.data.source, self.data.target

    def _manual_paths(self, split: str) -> list[Path]:
        ending = "" if self.options.text == "raw" else f".{self.options.text}"
        folder = Path(self.options.manual_dir)
        return [
            existing_file(folder / f"{self.FILES[split]}{ending}.{language}", "data.options.manual_dir")
            for language in self._languages
        ]

    def _url(self, split: str, language: str) -> str:
        if self.options.text == "raw":
            return f"{self.REPOSITORY}/raw/{self.FILES[split]}.{language}.gz"
        return f"{self.REPOSITORY}/tok/{self.FILES[split]}.{self.options.text}.{language}"

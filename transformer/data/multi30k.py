"""multi30k: captions of images (Elliott et al. 2016)."""

import dataclasses
import hashlib
import itertools
from pathlib import Path
from typing import ClassVar

from transformer.config import UserError, option
from transformer.data.options import ONLY_A_DEPARTURE, Options
from transformer.data.text import existing_file, fingerprint, local_path, read_pairs
from transformer.data.text_builder import PairBuilder
from transformer.files import is_full

REVISION = "2cc0f2d7c615b60e07e2d51bb5edc004444d7e0e"  # of the repository, 2021-12-02
# SHA-256 of each file of that revision.
CHECKSUMS = {
    "raw/train.cs.gz": "a65adb8b32e3bc664f21ecba7a6e7f6950fd1f405e135f7c312faabdb6255077",
    "tok/train.lc.norm.tok.cs": "7645fb91efa18f94c83d493f740a5d5a941e4b01efa6a124bf2d4af040e133e0",
    "raw/train.de.gz": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    "tok/train.lc.norm.tok.de": "cb5a23529b65ec2061f1dc446192a9c37382b63cc75f81a0be59d34894b3a505",
    "raw/train.en.gz": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
    "tok/train.lc.norm.tok.en": "08925f8e0572bcd5a006702fc5fe20e2d77c6917d4eebd576fc20de6693c2119",
    "raw/train.fr.gz": "622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c",
    "tok/train.lc.norm.tok.fr": "8fa41bb718412bcb7c5dfa58603842810a01543eae86a51279f9886b901266e1",
    "raw/val.cs.gz": "b63226e05c4bd5dd6a42897d74b86a1b9d2c31498252c572b1ea7f7996927fcc",
    "tok/val.lc.norm.tok.cs": "b87ee4917f4a0f9ca6cca03e402026c9f4437dc1bd6a7dadfd2544ecfb6c5501",
    "raw/val.de.gz": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    "tok/val.lc.norm.tok.de": "97232bd273eceb7207f689527386a97e4be2616b18ada47576bdaf96c8ae1f00",
    "raw/val.en.gz": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
    "tok/val.lc.norm.tok.en": "46573ce391ae227f1c72f873392436a20ef18e0a6d518098cfbd70b77c8572ec",
    "raw/val.fr.gz": "ca3106f1a72390591d25f6c45cb4cd39dec4cd3f123e099748a3ce5256c160e9",
    "tok/val.lc.norm.tok.fr": "b303e301aa21fe7822a846b2b3fb2d5a1121ec807cd5b1d006fb7b2b5507168a",
    "raw/test_2016_flickr.cs.gz": "200a4a74cc9560f051924abb9803be008d1908d77f747e9141aeb86dfd2797f1",
    "tok/test_2016_flickr.lc.norm.tok.cs": "748c8816de928732365176e5c5d2f9bbabcec9b8d4448fba2d230feb057898a7",
    "raw/test_2016_flickr.de.gz": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
    "tok/test_2016_flickr.lc.norm.tok.de": "c6a33d39d48f9f510de147651316cd9d918e09ad0219df734a2f16b6baccacc4",
    "raw/test_2016_flickr.en.gz": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
    "tok/test_2016_flickr.lc.norm.tok.en": "5b7f32627cf99eced828311b955dae9800bb52bc8b91cf8b6526829e605b29d2",
    "raw/test_2016_flickr.fr.gz": "6d326e188d259fb1d04ac19eae3af956559b3a0b93d7635e56c90987c40c8b90",
    "tok/test_2016_flickr.lc.norm.tok.fr": "1463bd5960f9bfe098ec3cd752d3df0c49c84dc646fb518964a29232658cd836",
}


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
    """Image captions of about 13 words per side: 29,000 training pairs.

    Reads `<split>[.lc.norm.tok].<language>[.gz]` from `data.options.manual_dir`, or downloads the files from
    the repository of the data set, at a fixed revision and with checksums. The name of data prepared from
    `manual_dir` contains a fingerprint of the files, which may differ from that revision.
    """

    options_type: ClassVar = Multi30kOptions
    REPOSITORY: ClassVar = f"https://raw.githubusercontent.com/multi30k/dataset/{REVISION}/data/task1"
    FILES: ClassVar = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
    SPLITS: ClassVar = tuple(FILES)

    def variant(self) -> str:
        name = f"{self.data.source}-{self.data.target}.{self.options.text}"
        if self.options.manual_dir is None:
            self._downloaded_names()  # refuses an unknown language
            return name
        paths = [path for split in self.FILES for path in self._manual_paths(split)]
        return f"{name}.{fingerprint(paths)}"

    def pairs(self, dl_manager):
        if self.options.manual_dir is not None:
            return {split: read_pairs(*self._manual_paths(split)) for split in self.FILES}
        names = self._downloaded_names()
        try:
            downloaded = dl_manager.download(
                {split: [f"{self.REPOSITORY}/{name}" for name in files] for split, files in names.items()}
            )
        except Exception as error:  # the network and its libraries raise many types
            if is_full(error):
                raise
            raise UserError(
                f"multi30k cannot be downloaded ({type(error).__name__}); download the files of "
                f"{self.REPOSITORY} yourself and set data.options.manual_dir to their folder"
            ) from error
        for split, paths in downloaded.items():
            for name, path in zip(names[split], map(Path, paths), strict=True):
                if hashlib.sha256(path.read_bytes()).hexdigest() != CHECKSUMS[name]:
                    raise UserError(
                        f"{path} differs from {name} in revision {REVISION[:7]} of multi30k; delete the file "
                        "and run the same command again"
                    )
        return {split: read_pairs(*map(Path, paths)) for split, paths in downloaded.items()}

    @property
    def _languages(self) -> tuple[str, str]:
        return self.data.source, self.data.target

    def _manual_paths(self, split: str) -> list[Path]:
        ending = "" if self.options.text == "raw" else f".{self.options.text}"
        folder = local_path(self.options.manual_dir, "data.options.manual_dir")
        return [
            existing_file(folder / f"{self.FILES[split]}{ending}.{language}", "data.options.manual_dir")
            for language in self._languages
        ]

    def _downloaded_names(self) -> dict[str, list[str]]:
        """Returns the names of the files of each split in the repository.

        Raises:
          UserError: the repository has no file of a language.
        """
        names = {split: [self._name(split, language) for language in self._languages] for split in self.FILES}
        for name in itertools.chain.from_iterable(names.values()):
            if name not in CHECKSUMS:
                languages = sorted({known.removesuffix(".gz").rpartition(".")[2] for known in CHECKSUMS})
                raise UserError(
                    f"multi30k has no file {name}; data.source and data.target must be two of: "
                    f"{', '.join(languages)}"
                )
        return names

    def _name(self, split: str, language: str) -> str:
        """Returns the name of a file in the repository."""
        if self.options.text == "raw":
            return f"raw/{self.FILES[split]}.{language}.gz"
        return f"tok/{self.FILES[split]}.{self.options.text}.{language}"

"""Text files of sentence pairs and of documents, and the config of a data set made from such files."""

import gzip
from pathlib import Path

from transformer.config import DataConfig
from transformer.data.builders import resolve_options

PAIRS = [(f"a man and {number} dogs", f"ein Mann und {number} Hunde") for number in range(100)]
ENGLISH, GERMAN = (list(side) for side in zip(*PAIRS, strict=True))


def write_lines(path: Path, lines: list[str], end: str = "\n") -> str:
    """Writes a file, compressed if its name ends in .gz; returns its name."""
    content = "".join(f"{line}{end}" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def write_pairs(path: Path, pairs: list[tuple[str, str]] = PAIRS, end: str = "\n") -> str:
    """Writes tab-separated pairs; returns the name of the file."""
    return write_lines(path, [f"{source}\t{target}" for source, target in pairs], end)


def text_files(tmp_path: Path, /, **options) -> DataConfig:
    """The config of documents that are prepared in a folder."""
    data = DataConfig(
        name="text_files",
        data_dir=str(tmp_path / "data"),
        vocab_size=300,
        byte_fallback=True,
        options=options,
    )
    return resolve_options(data)


def parallel_text(folder: Path, **options) -> DataConfig:
    """The config of a text that is prepared in `folder`."""
    data = DataConfig(
        name="parallel_text", data_dir=str(folder / "data"), vocab_size=60, row_length=64, options=options
    )
    return resolve_options(data)

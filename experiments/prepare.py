"""Builds a config's data set, vocabulary and pieces ahead of time, so that training starts at once.

    python -m experiments.prepare --config=configs/wmt14.py

What is there already is left as it is. TFDS's own sets need TensorFlow, once: pip install -e '.[prepare]'
"""

from absl import flags
from ml_collections import config_flags

from experiments import entry
from experiments.progress import preparing
from transformer.data.corpus import Corpus

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with its arguments after a colon.")
flags.mark_flag_as_required("config")


def main() -> None:
    data = entry.config_from_flag(CONFIG.value).data
    with preparing() as progress:
        corpus = Corpus(data, progress=progress)
        splits = {name: corpus.split(name) for name in corpus.splits if corpus.size(name)}
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in splits.items())
    dropped = int((splits["train"].lengths > data.row_length).sum()) if "train" in splits else 0
    print(
        f"{corpus.identity} is prepared in {corpus.folder}: pairs: {sizes}; training drops {dropped:,} "
        f"longer than data.row_length ({data.row_length}); {corpus.tokenizer.vocab_size:,} pieces"
    )


if __name__ == "__main__":
    entry.run(main)

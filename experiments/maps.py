"""What a model attended to, line by line, in a file that NumPy reads."""

import zipfile
from pathlib import Path

import numpy as np

from experiments.runs import Trained
from transformer.config import EOS
from transformer.evaluation.attention import attention_weights


class AttentionFile:
    """An .npz file with the attention of many lines, each written as it comes.

    For line i, counted from 1, it holds `i/source` and `i/target` (how their pieces are written), and the
    weights as in `AttentionWeights`: `i/encoder` [layers, h, s, s], `i/decoder` [layers, h, t, t] and
    `i/cross` [layers, h, t, s]; recurrent models have `i/cross` alone.
    """

    def __init__(self, path: str | Path, trained: Trained):
        """Opens the file.

        Raises:
          UserError: the model attends to nothing.
          OSError: the file cannot be opened.
        """
        # A model that attends to nothing is refused before anything is translated.
        attention_weights(trained.model, trained.params, [EOS], [EOS])
        self._trained = trained
        self._file = zipfile.ZipFile(path, "w")

    def add(self, number: int, text: str, translation: str) -> None:
        """Writes the weights with which `translation` is read after `text`; nothing for a blank line."""
        trained, tokenizer = self._trained, self._trained.tokenizer
        source, target = tokenizer.encode_all([text, translation])
        if len(source) == 1 or text.isspace():
            return
        target = target[: trained.model.longest.target]  # of one that did not end; its end has no place
        weights = attention_weights(trained.model, trained.params, source, target)
        arrays = {"source": tokenizer.names(source), "target": tokenizer.names(target), **weights._asdict()}
        for name, values in arrays.items():
            if values is not None:
                with self._file.open(f"{number}/{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(values), allow_pickle=False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

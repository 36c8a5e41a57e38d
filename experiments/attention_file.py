"""Attention of a model for many lines, in a file that NumPy reads."""

import zipfile
from pathlib import Path

import numpy as np

from experiments.run_folder import Trained
from transformer.config import EOS
from transformer.evaluation.attention import attention_weights


class AttentionFile:
    """An .npz file with the attention weights of many lines, written line by line.

    For line i, counted from 1, it holds the tokens as text, `i/source` and `i/target`, and the weights of
    `AttentionWeights`: `i/encoder` [layers, h, s, s], `i/decoder` [layers, h, t, t] and `i/cross`
    [layers, h, t, s]. Recurrent models have `i/cross` only. The queries and keys of the decoder are its
    inputs: target token i is predicted from query i, which reads target token i - 1.
    """

    def __init__(self, path: str | Path, trained: Trained):
        """Opens the file.

        Raises:
          UserError: the model has no attention.
          OSError: the file cannot be opened.
        """
        # Refuses a model without attention before anything is translated.
        attention_weights(trained.model, trained.params, [EOS], [EOS])
        self._trained = trained
        self._file = zipfile.ZipFile(path, "w")

    def add(self, number: int, text: str, translation: str) -> None:
        """Writes the weights with which the model reads `translation` after `text`; none for a blank line."""
        trained, tokenizer = self._trained, self._trained.tokenizer
        source, target = tokenizer.encode_all([text, translation])
        if len(source) == 1 or text.isspace():
            return
        # The translation may have reached the last position without an end; then its EOS has none.
        target = target[: trained.model.max_lengths.target]
        weights = attention_weights(trained.model, trained.params, source, target)
        arrays = {"source": tokenizer.names(source), "target": tokenizer.names(target), **weights._asdict()}
        for name, values in arrays.items():
            if values is not None:
                with self._file.open(f"{number}/{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(values), allow_pickle=False)

    def __enter__(self) -> "AttentionFile":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

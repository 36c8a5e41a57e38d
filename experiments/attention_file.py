"""Writes the attention weights of many translated lines into one .npz file."""

import zipfile
from pathlib import Path

import numpy as np

from experiments.trained_model import Trained
from transformer.config import EOS
from transformer.evaluation.attention import AttentionWeights, attention_weights


class AttentionFile:
    """An .npz file with the attention weights of many lines, written line by line.

    The name of an array begins with the number n of the line, counted from 1. The arrays `n/source` and
    `n/target` contain the tokens as text. `n/encoder` [layers, h, s, s], `n/decoder` [layers, h, t, t] and
    `n/cross` [layers, h, t, s] contain the fields of `AttentionWeights`; recurrent models have
    `n/cross` only. The decoder reads the target shifted by one token: query i reads target token i - 1 and
    predicts target token i. Key j of `n/decoder` stands for target token j - 1.
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

    def add(self, number: int, text: str, translation: str, ended: bool = True) -> None:
        """Writes the attention weights of the model for `text` and `translation`; skips a blank line."""
        tokenizer = self._trained.tokenizer
        source = tokenizer.encode(text)
        if len(source) == 1 or text.isspace():
            return
        target, weights = translation_attention(self._trained, source, translation, ended)
        arrays = {"source": tokenizer.names(source), "target": tokenizer.names(target), **weights._asdict()}
        for name, values in arrays.items():
            if values is not None:
                with self._file.open(f"{number}/{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(values), allow_pickle=False)

    def __enter__(self) -> "AttentionFile":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()


def translation_attention(
    trained: Trained, source: list[int], translation: str, ended: bool = True
) -> tuple[list[int], AttentionWeights]:
    """Returns the tokens of a translation, and the attention weights with which they are predicted.

    A translation that did not end, because it was cut off at a limit, has no EOS.
    """
    target = trained.tokenizer.encode(translation)
    target = target if ended or len(target) == 1 else target[:-1]
    target = target[: trained.model.max_lengths.target]
    return target, attention_weights(trained.model, trained.params, source, target)

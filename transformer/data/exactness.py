"""Documents that their tokens do not restore: their number, and the lost characters."""

from collections.abc import Iterable, Mapping
from typing import Any

from transformer.data.splits import Split
from transformer.data.tokenizer import WORD_START, Tokenizer

MAX_NAMED = 5  # lost characters that a message names


def compare(split: Split, texts: Iterable[str], tokenizer: Tokenizer) -> dict[str, Any]:
    """Compares documents with the texts that their tokens decode to.

    Returns values for a manifest: `inexact`, the number of documents that differ; `first_inexact`, the number
    of the first of them, from 1, or None; `lost`, the characters that decoding does not restore there.

    Args:
      split: the tokens of the documents.
      texts: the documents.
      tokenizer: the vocabulary.
    """
    inexact, first, lost = 0, None, ""
    for number, text in enumerate(texts):
        if tokenizer.decode(split.target[number]) != text:
            inexact += 1
            if first is None:
                first, lost = number + 1, tokenizer.lost(text)
    return {"inexact": inexact, "first_inexact": first, "lost": lost}


def describe(split: str, num_documents: int, values: Mapping[str, Any]) -> str:
    """Returns one line about the documents that differ.

    Args:
      split: name of the split.
      num_documents: number of all documents in the split.
      values: the result of `compare`.
    """
    names = [
        f"U+{ord(character):04X}" + (" (read as a space)" if character == WORD_START else " (no token)")
        for character in values["lost"]
    ]
    more = f" and {len(names) - MAX_NAMED:,} more characters" if len(names) > MAX_NAMED else ""
    return (
        f"{values['inexact']:,} of {num_documents:,} documents of split {split!r} are not restored by their "
        f"tokens; document {values['first_inexact']:,} loses {', '.join(names[:MAX_NAMED])}{more}"
    )

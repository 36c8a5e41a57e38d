"""What `translate` writes for lines of text: translations, their scores, or the scores of given ones."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

from experiments.lines import as_text
from transformer.config import UserError
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.translator import Hypothesis, Translator

# (texts, how many came before them) -> the lines to write.
Answer = Callable[[Sequence[str], int], Iterable[str]]


class Form(NamedTuple):
    """How the translations of a line are written.

    Attributes:
      n_best: most translations of a line; more than one are written as number, score, translation.
      scores: whether a single one is written as score, translation. Tabs stand between them.
    """

    n_best: int = 1
    scores: bool = False

    def lines(self, number: int, hypotheses: Sequence[Hypothesis]) -> Iterator[str]:
        """Those of line `number`, which are at most `n_best`."""
        for one in hypotheses:
            before = f"{number}\t" if self.n_best > 1 else ""
            score = f"{one.score:.4f}\t" if self.n_best > 1 or self.scores else ""
            yield before + score + one.text


def answer_lines(answer: Answer, blocks: Iterable[Sequence[bytes]], out: BinaryIO) -> None:
    """Answers the lines of one block after another, and lets no answer wait for the next block."""
    before = 0
    for block in blocks:
        for line in answer([as_text(line) for line in block], before):
            out.write(line.encode() + b"\n")
        out.flush()
        before += len(block)


def translations(
    translator: Translator,
    form: Form,
    prefixes: Sequence[str] | None = None,
    seen: Callable[[int, str, str], None] | None = None,
) -> Answer:
    """Answers with translations.

    Args:
      translator: finds as many for a text as `form` wants.
      form: how they are written.
      prefixes: of all lines.
      seen: is given each line's number, text and best translation. Lines in parts are then refused.
    """

    def answer(texts: Sequence[str], before: int) -> Iterator[str]:
        def in_parts(text: int, pieces: int, parts: int) -> None:
            told = f"line {before + text + 1} has {pieces:,} pieces"
            if seen is not None:
                raise UserError(
                    f"{told}; the attention of at most {translator.max_source:,} is shown: "
                    "cut the line or leave out --attention"
                )
            parted = f"translated in {parts:,} parts of at most {translator.max_source:,}"
            print(f"{told}: {parted}", file=sys.stderr)

        own = None if prefixes is None else prefixes[before : before + len(texts)]
        found = translator.hypotheses(texts, own, before, in_parts=in_parts)
        for number, (text, hypotheses) in enumerate(zip(texts, found, strict=True), start=before + 1):
            if seen is not None:
                seen(number, text, hypotheses[0].text)
            yield from form.lines(number, hypotheses)

    return answer


def scored(translator: Translator, tokenizer: Tokenizer, targets: Sequence[str]) -> Answer:
    """Answers with the log-probabilities of given translations, in nats: a JSON object a line."""

    def answer(texts: Sequence[str], before: int) -> Iterator[str]:
        own = targets[before : before + len(texts)]
        pieces = tokenizer.encode_all(own)
        for target, found in zip(pieces, translator.log_probs(texts, own, before), strict=True):
            values = {
                "log_prob": round(float(found.sum()), 6),
                "pieces": tokenizer.names(target),
                "log_probs": [round(float(one), 6) for one in found],
            }
            yield json.dumps(values, ensure_ascii=False)

    return answer

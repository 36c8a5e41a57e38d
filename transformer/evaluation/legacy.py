"""The paper's own BLEU (table 2, EN-DE), for comparison with that table alone."""

import functools

import regex
from sacrebleu.metrics import BLEU

# In the order in which they are applied.
_RULES = (
    (regex.compile(r"\s+"), " "),
    (regex.compile(r"[\x00-\x1f]"), ""),
    (regex.compile(r"([^\p{Alphabetic}\p{Nd} .'`,\-])"), r" \1 "),  # a sign is a token ...
    (regex.compile(r"\.{2,}"), r" \g<0> "),  # ... and so are several periods in a row
    (regex.compile(r"(?<=\P{N}),|,(?=\P{N}|$)"), " , "),  # but 5,300 is one
    (regex.compile(r"'"), " ' "),
)
# Letters, ordinals, what has a period inside, and some of Moses's list for German.
_ABBREVIATION = regex.compile(
    r"\p{L}|[1-9]\d?|[IVX]+|.*\..*\p{Alphabetic}.*|.*\p{Alphabetic}.*\..*|"
    "Dr|Prof|Mr|Mrs|Ms|St|Nr|Co|Corp|Ltd|Mio|Mrd|bzw|ca|etc|evtl|ggf|jun|sen|sog|usw|vgl|vs"
)
_COMPOUND = regex.compile(r"(\S)-(\S)")


def moses_german(text: str) -> str:
    """Tokenises as Moses's tokenizer.perl does for German, at a space between two tokens.

    Signs, commas outside numbers and apostrophes are tokens; a hyphen is not. A period ends a word and is a
    token, except after an abbreviation and before a small letter; at the end of the text it always is.

    Differs from Moses: it knows the more frequent of Moses's abbreviations, not the whole list; and signs are
    not escaped, which changes no score.
    """
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    words = text.split()
    for number, word in enumerate(words):
        stem = word[:-1]
        if not word.endswith(".") or not stem.strip("."):
            continue
        following = words[number + 1][0] if number + 1 < len(words) else None
        if following is None or not (following.islower() or _ABBREVIATION.fullmatch(stem)):
            words[number] = f"{stem} ."
    return " ".join(words)


def split_compounds(text: str) -> str:
    """Splits "rich-text" into "rich ##AT##-##AT## text", on tokenised text.

    Of "a-b-c" the first hyphen alone: tensor2tensor's pattern takes the "b" with it.
    """
    return _COMPOUND.sub(r"\1 ##AT##-##AT## \2", text)


class LegacyBLEU(BLEU):
    """BLEU as tensor2tensor's get_ende_bleu.sh computes it.

    Both sides are tokenised (`moses_german`), compounds are split at hyphens (`split_compounds`), and the
    score is multi-bleu.perl's: case-sensitive, no smoothing, 0 if there is no match of some n-gram length.
    On one checkpoint it gave 29.02 where sacreBLEU's BLEU was 27.52 (tensor2tensor issue #317), so it
    compares with the paper's table 2, EN-DE, and with nothing else. Other languages are treated as German.

    Differs from the paper: that script takes references that were tokenised beforehand; here they are raw.
    """

    def __init__(self, references=None):
        # Not through `tokenize`: sacreBLEU's list of tokenisers is closed.
        super().__init__(tokenize="none", force=True, smooth_method="none")
        self.tokenizer = functools.lru_cache(maxsize=2**16)(lambda text: split_compounds(moses_german(text)))
        self.tokenizer_signature = "moses-de+atat"
        if references is not None:
            self._ref_cache = self._cache_references(references)

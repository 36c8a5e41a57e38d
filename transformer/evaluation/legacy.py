"""The paper's BLEU (Table 2, EN-DE), for comparison with that table only."""

import functools

import regex
from sacrebleu.metrics import BLEU

# Rules of the tokenizer, in the order in which they are applied.
_RULES = (
    (regex.compile(r"\s+"), " "),
    (regex.compile(r"[\x00-\x1f]"), ""),
    (regex.compile(r"([^\p{Alphabetic}\p{Nd} .'`,\-])"), r" \1 "),  # a punctuation mark is a token
    (regex.compile(r"\.{2,}"), r" \g<0> "),  # so are several periods in a row
    (regex.compile(r"(?<=\P{N}),|,(?=\P{N}|$)"), " , "),  # but 5,300 is one token
    (regex.compile(r"'"), " ' "),
)
# Words whose period is not a separate token: letters, ordinals, words with a period inside, and some of the
# abbreviations in Moses's list for German.
_ABBREVIATION = regex.compile(
    r"\p{L}|[1-9]\d?|[IVX]+|.*\..*\p{Alphabetic}.*|.*\p{Alphabetic}.*\..*|"
    "Dr|Prof|Mr|Mrs|Ms|St|Nr|Co|Corp|Ltd|Mio|Mrd|bzw|ca|etc|evtl|ggf|jun|sen|sog|usw|vgl|vs"
)
_COMPOUND = regex.compile(r"(\S)-(\S)")


def moses_german(text: str) -> str:
    """Tokenizes like Moses's tokenizer.perl for German, and joins the tokens with spaces.

    Punctuation marks, commas outside numbers and apostrophes are tokens; a hyphen is not. A period at the
    end of a word is a token, except after an abbreviation or before a lower-case letter. A period at the end
    of the text is always a token.

    Differs from Moses: the list of abbreviations has only the most frequent ones. Punctuation is not escaped,
    which changes no score.
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
    """Splits "rich-text" into "rich ##AT##-##AT## text"; the text must be tokenized.

    Splits only the first hyphen of "a-b-c": the pattern of tensor2tensor consumes the "b".
    """
    return _COMPOUND.sub(r"\1 ##AT##-##AT## \2", text)


class LegacyBLEU(BLEU):
    """BLEU as computed by tensor2tensor's get_ende_bleu.sh.

    Hypotheses and references are tokenized (`moses_german`), compounds are split at hyphens
    (`split_compounds`), and the score is that of multi-bleu.perl: case-sensitive, without smoothing, 0 if no
    n-gram of some length matches. Compare the score only with EN-DE in Table 2 of the paper; it is higher
    than sacreBLEU's BLEU (tensor2tensor issue #317). Other languages are tokenized as German.

    Differs from the paper: the script reads tokenized references; this class tokenizes raw references.
    """

    def __init__(self, references=None):
        # `tokenize` accepts only sacreBLEU's own tokenizers, so the tokenizer is replaced after construction.
        super().__init__(tokenize="none", force=True, smooth_method="none")
        self.tokenizer = functools.lru_cache(maxsize=2**16)(lambda text: split_compounds(moses_german(text)))
        self.tokenizer_signature = "moses-de+atat"
        if references is not None:
            self._ref_cache = self._cache_references(references)

"""The script of a language, and how BLEU splits a text of this language into tokens."""

import re

from sacrebleu.metrics import BLEU

# sacreBLEU's tokenizers for scripts that its default, 13a, does not split into words. Japanese and Korean use
# `char`: sacreBLEU's own tokenizers for them need extra packages, and a score must not depend on the
# installation.
TOKENIZERS = {"Hani": "zh"} | dict.fromkeys(("Jpan", "Kore", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"), "char")
UNSPACED = TOKENIZERS.keys() - {"Kore"}  # scripts without spaces between words
# The script (ISO 15924) of a language code (ISO 639-1 or 639-3) that does not name its script.
SCRIPTS = {
    language: script
    for script, languages in {
        "Hani": "zh zho chi cmn yue wuu lzh gan hak hsn nan",
        "Jpan": "ja jpn",
        "Kore": "ko kor",
        "Thai": "th tha",
        "Laoo": "lo lao",
        "Khmr": "km khm",
        "Mymr": "my mya bur",
        "Tibt": "bo bod tib dz dzo",
    }.items()
    for language in languages.split()
}
SCRIPT_ALIASES = {"Hans": "Hani", "Hant": "Hani", "Hira": "Jpan", "Kana": "Jpan", "Hang": "Kore"}


def script(language: str) -> str | None:
    """Returns the script of a language code: "Hani" for "zh_TW", "cmn" and "zho_Hans"; None if unknown."""
    base, *subtags = re.split("[-_]", language)
    for subtag in subtags:
        if len(subtag) == 4 and subtag.isalpha():
            return SCRIPT_ALIASES.get(subtag.title(), subtag.title())
    return SCRIPTS.get(base.lower())


def bleu_tokenizer(language: str) -> str:
    """Returns the name of sacreBLEU's tokenizer for a language; its default if the language is unknown."""
    return TOKENIZERS.get(script(language), BLEU.TOKENIZER_DEFAULT)


def has_spaces(language: str) -> bool:
    """Returns whether a language has spaces between words; true for an unknown language."""
    return script(language) not in UNSPACED

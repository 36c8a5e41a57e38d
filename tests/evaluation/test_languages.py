"""The scripts of languages, which decide how BLEU splits their texts."""

import pytest

from transformer.evaluation.languages import bleu_tokenizer, has_spaces


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [
        ("zho_Hans", "zh"),
        ("zh-TW", "zh"),
        ("cmn", "zh"),
        ("lzh", "zh"),
        ("nan", "zh"),
        ("nan_Latn", "13a"),
        ("jpn_Jpan", "char"),
        ("kor", "char"),
        ("kor_Hang", "char"),
        ("tha_Thai", "char"),
        ("shn_Mymr", "char"),
        ("de", "13a"),
        ("deu_Latn", "13a"),
        ("ru-Cyrl", "13a"),
    ],
)
def test_bleu_splits_texts_by_the_script_of_the_language(language, tokenizer):
    assert bleu_tokenizer(language) == tokenizer
    assert has_spaces(language) == (tokenizer == "13a" or language.startswith("kor"))

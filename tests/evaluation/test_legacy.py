"""The paper's BLEU: tokenized as German by the rules of Moses, with compounds split, and scored like
multi-bleu.perl.
"""

import pytest
from sacrebleu.metrics import BLEU

from transformer.evaluation.legacy import LegacyBLEU, moses_german, split_compounds


@pytest.mark.parametrize(
    ("text", "tokens"),
    [  # tokens are the output of tokenizer.perl -l de -no-escape, Moses 34452895f
        ("Am 3. Mai 2014 sagte Dr. Müller: „Ja.“", "Am 3. Mai 2014 sagte Dr. Müller : „ Ja . “"),
        ("Das geht's nicht...", "Das geht ' s nicht ..."),
        ("die 19-jährige US-Amerikanerin, 5,300 Euro", "die 19-jährige US-Amerikanerin , 5,300 Euro"),
        ("Er kam z.B. um 12.30 Uhr. Dann ging er.", "Er kam z.B. um 12.30 Uhr . Dann ging er ."),
        ("mit Hut bzw. Mütze.  Ende.", "mit Hut bzw. Mütze . Ende ."),
        ("Er kam. und ging. Dann", "Er kam. und ging . Dann"),
        ("100%-ig & <b> [x] |", "100 % -ig & < b > [ x ] |"),
        ("99. Das 100. Das", "99. Das 100 . Das"),
        ("Seite 3.", "Seite 3 ."),
        ("a,b,,c ,5 5, end,", "a , b , , c , 5 5 , end ,"),
        (" x\ty\xa0z  ", "x y z"),
        ("हिन्दी 中文。", "हिन ् दी 中文 。"),
        (". .. ....", ". .. ...."),
        ("", ""),
    ],
)
def test_tokens_are_those_of_moses(text, tokens):
    assert moses_german(text) == tokens


def test_compounds_are_split_as_in_tensor2tensor():
    assert split_compounds("rich-text format - a-b-c") == (
        "rich ##AT##-##AT## text format - a ##AT##-##AT## b-c"
    )


def test_the_score_equals_sacrebleus_score_of_the_tokenized_text():
    hypotheses = ["Das „rich-text“ Format, bzw. das andere.", "Noch ein Satz mit sechs Wörtern."]
    references = ["Das „plain-text“ Format, bzw. das andere.", "Noch ein Satz mit sieben Wörtern."]
    ours = LegacyBLEU([references]).corpus_score(hypotheses, None)
    by_hand = [
        ["Das „ rich ##AT##-##AT## text “ Format , bzw. das andere .", "Noch ein Satz mit sechs Wörtern ."],
        ["Das „ plain ##AT##-##AT## text “ Format , bzw. das andere .", "Noch ein Satz mit sieben Wörtern ."],
    ]
    plain = BLEU(tokenize="none", force=True, smooth_method="none")
    assert ours.score == plain.corpus_score(by_hand[0], [by_hand[1]]).score
    assert (ours.sys_len, ours.ref_len) == (19, 19)
    assert ours.counts[0] == 17
    assert ours.score > BLEU().corpus_score(hypotheses, [references]).score


def test_case_matters_and_nothing_is_smoothed():
    assert LegacyBLEU([["a b c d"]]).corpus_score(["A b c d"], None).score == 0
    assert BLEU().corpus_score(["A b c d"], [["a b c d"]]).score > 0


def test_references_may_be_given_to_the_constructor_or_with_the_hypotheses():
    cached, uncached = LegacyBLEU([["a-b c d"]]), LegacyBLEU()
    counts = cached.corpus_score(["a-b c x"], None).counts
    assert uncached.corpus_score(["a-b c x"], [["a-b c d"]]).counts == counts == [4, 3, 2, 1]

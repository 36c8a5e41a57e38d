"""Data sets made from a user's text: pairs for training, held-out pairs, dropped pairs, and the report."""

import logging
import shutil

import numpy as np
import pytest

from tests.support.text_files import PAIRS, parallel_text, write_pairs
from transformer.config import UserError
from transformer.data.builders import BUILDERS, prepare
from transformer.data.corpus import Corpus
from transformer.data.parallel_text import (
    Fate,
    ParallelTextOptions,
    count_repeated,
    decide_fates,
    summarize,
)

HELD_OUT = [Fate.VALIDATION, Fate.TEST]
NO_RULES = ParallelTextOptions()


def divide(pairs, splits=HELD_OUT, held_out=2_000, **rules):
    """Maps each fate (a split, or a reason to drop a pair) to the pairs that have it."""
    fates = decide_fates(pairs, ParallelTextOptions(held_out=held_out, **rules), splits)
    return {fate: [pairs[number] for number in np.flatnonzero(fates == fate)] for fate in Fate}


@pytest.mark.parametrize(
    ("pair", "fate"),
    [
        (("a", "b"), Fate.TRAIN),
        (("", "b"), Fate.SHORT),
        (("a", " \u3000"), Fate.SHORT),
        (("a" * 10, "b" * 10), Fate.TRAIN),
        (("a" * 11, "b" * 10), Fate.LONG),
        (("aaaaaa  ", "bb"), Fate.TRAIN),
        (("bb", "aaaaaaa"), Fate.UNEVEN),
        (("\u4eba" * 3, "a" * 9), Fate.TRAIN),
    ],
)
def test_rules_count_characters(pair, fate):
    rules = ParallelTextOptions(min_characters=1, max_characters=10, max_ratio=3.0)
    assert list(decide_fates([pair], rules, [])) == [fate]
    assert list(decide_fates([pair], NO_RULES, [])) == [Fate.TRAIN]


def test_the_first_of_equal_pairs_is_kept():
    pairs = [("a", "b"), ("b", "a"), ("a", "b"), ("a", "c"), ("", "x"), ("", "x"), ("a", "b")]
    fates = decide_fates(pairs, ParallelTextOptions(deduplicate=True, min_characters=1), [])
    train, duplicate, short = Fate.TRAIN, Fate.DUPLICATE, Fate.SHORT
    assert list(fates) == [train, train, duplicate, train, short, short, duplicate]


@pytest.mark.parametrize(("held_out", "size"), [(2_000, 5), (3, 3)])
def test_the_given_number_of_pairs_is_held_out_but_at_most_a_twentieth(held_out, size):
    splits = divide(PAIRS, held_out=held_out)
    assert len(splits[Fate.VALIDATION]) == len(splits[Fate.TEST]) == size
    assert len(splits[Fate.TRAIN]) == len(PAIRS) - 2 * size
    assert len(divide(PAIRS, [Fate.TEST], held_out)[Fate.TEST]) == size


@pytest.mark.parametrize("deduplicate", [False, True])
def test_no_sentence_of_either_language_is_in_two_splits(deduplicate):
    """The text repeats some pairs, and has several translations of some sentences."""
    pairs = [(f"s{number % 2_000}", f"t{number % 2_500}") for number in range(3_000)]
    splits = divide([*pairs, *pairs[:500]], held_out=20, deduplicate=deduplicate)
    assert len(splits[Fate.TRAIN]) > 500
    for fate in (Fate.TRAIN, *HELD_OUT):
        for different in {Fate.TRAIN, *HELD_OUT} - {fate}:
            for side in (0, 1):
                sentences = {pair[side] for pair in splits[fate]}
                assert not sentences & {pair[side] for pair in splits[different]}
    for fate in HELD_OUT:
        assert len(set(splits[fate])) == len(splits[fate]) == 20


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("change", ["{} ", " {}", "{}  "])
def test_sentences_that_differ_only_in_spaces_are_the_same_sentence(side, change):
    """The tokenizer reads both variants alike. If one is held out, the other must not be trained on."""
    copies = [
        tuple(change.format(text) if side == i else text + "!" for i, text in enumerate(pair))
        for pair in PAIRS
    ]
    splits = divide([*PAIRS, *copies], held_out=5)
    held_out = {pair[side].strip() for fate in HELD_OUT for pair in splits[fate]}
    assert len(held_out) >= 4
    assert not held_out & {pair[side].strip() for pair in splits[Fate.TRAIN]}
    spaced = [(f"{source} ", target) for source, target in PAIRS]
    assert len(divide([*PAIRS, *spaced], deduplicate=True)[Fate.DUPLICATE]) == len(PAIRS)


def test_a_frequent_sentence_is_not_held_out():
    """200 pairs share a source, 200 pairs share a target, and 20 pairs share neither."""
    frequent = [("yes", f"ja {n}") for n in range(200)] + [(f"no {n}", "nein") for n in range(200)]
    splits = divide([*frequent, *PAIRS[:20]], held_out=10)
    assert {*splits[Fate.VALIDATION], *splits[Fate.TEST]} == {*PAIRS[:20]}
    assert len(splits[Fate.TRAIN]) == 400


def test_at_most_a_twentieth_is_dropped_because_of_held_out_pairs():
    pairs = [(f"s{n // 10}", f"t{n}") for n in range(1_000)]
    splits = divide(pairs, held_out=50)
    assert 0 < len(splits[Fate.SHARED]) <= 50
    assert len(splits[Fate.VALIDATION]) == len(splits[Fate.TEST]) < 50
    fates = decide_fates(pairs, ParallelTextOptions(held_out=50), HELD_OUT)
    assert f"held out {len(splits[Fate.TEST])} of 50 requested for validation" in summarize(
        fates, ParallelTextOptions(held_out=50)
    )


def test_pairs_of_given_splits_that_are_also_training_pairs_are_counted():
    others = {"test": [("a ", "b"), ("c", "d"), ("a", "x")], "validation": [("e", "f")]}
    assert count_repeated([("a", "b"), ("a", "b"), ("c", "D")], others) == {"test": 1}


def test_held_out_pairs_do_not_depend_on_order_repetitions_or_direction():
    splits = divide(PAIRS)
    for changed in (PAIRS[::-1], [*PAIRS, *PAIRS[:30]]):
        assert set(divide(changed, deduplicate=True)[Fate.TEST]) == set(splits[Fate.TEST])
    reverse = divide([pair[::-1] for pair in PAIRS])
    assert {pair[::-1] for pair in reverse[Fate.TEST]} == set(splits[Fate.TEST])
    assert splits[Fate.TEST] not in (PAIRS[:5], PAIRS[-5:])


def test_pairs_with_equal_sides_are_held_out_as_often_as_other_pairs():
    copies = [(f"c{number}", f"c{number}") for number in range(100)]
    assert 0 < len(set(divide([*copies, *PAIRS])[Fate.TEST]) & set(copies)) < 10


def test_the_report_is_a_single_line():
    rules = ParallelTextOptions(
        min_characters=1, max_characters=40, max_ratio=9.0, deduplicate=True, held_out=2
    )
    pairs = [*PAIRS, *PAIRS[:7], ("", "x"), ("a" * 50, "b" * 50), ("a", "b" * 20)]
    assert summarize(decide_fates(pairs, rules, HELD_OUT), rules) == (
        "110 pairs read; dropped 1 empty, 1 longer than 40 characters, 1 with a ratio above 9, 7 duplicates; "
        "held out 2 for validation, 2 for test; 96 to train on"
    )
    assert summarize(np.zeros(12_345, np.uint8), NO_RULES) == "12,345 pairs read; 12,345 to train on"


def config(folder, pairs=PAIRS, **options):
    """The config of one file of pairs, from which validation and test pairs are held out."""
    train = write_pairs(folder / "pairs.tsv", pairs)
    return parallel_text(folder, **{"train": train, "held_out": 2_000, "deduplicate": True, **options})


def pairs_of(corpus, split):
    return list(zip(*corpus.texts(split), strict=True))


def test_a_corpus_of_one_file_has_three_splits(tmp_path, caplog):
    caplog.set_level(logging.INFO, "transformer")
    splits = divide(PAIRS)
    for _ in range(2):  # the second corpus finds prepared data, and logs the same report
        corpus = Corpus(config(tmp_path))
        assert pairs_of(corpus, "train") == splits[Fate.TRAIN]
        assert pairs_of(corpus, "validation") == splits[Fate.VALIDATION]
        assert pairs_of(corpus, "test") == splits[Fate.TEST]
    first, second = (line for line in caplog.messages if "pairs read" in line)
    assert first == second
    assert first.startswith(
        f"{tmp_path}/pairs.tsv: 100 pairs read; dropped 0 duplicates; held out 5 of 2,000 requested for validation"
    )


def test_given_splits_are_used_as_they_are(tmp_path):
    pairs = [("", "x"), ("a", "b"), ("a", "b"), ("c" * 50, "d")]
    given = write_pairs(tmp_path / "given.tsv", pairs)
    rules = {"min_characters": 1, "max_characters": 40, "max_ratio": 9.0}
    corpus = Corpus(config(tmp_path, [*PAIRS, ("", "x")], validation=given, test=given, **rules))
    assert pairs_of(corpus, "validation") == pairs_of(corpus, "test") == pairs
    assert pairs_of(corpus, "train") == PAIRS


def test_without_rules_every_pair_is_trained_on_and_none_is_held_out(tmp_path):
    pairs = [*PAIRS, ("", "x"), *PAIRS[:3]]
    validation = str(tmp_path / "pairs.tsv")
    corpus = Corpus(config(tmp_path, pairs, held_out=0, deduplicate=False, validation=validation))
    assert pairs_of(corpus, "train") == pairs_of(corpus, "validation") == pairs
    assert set(corpus.splits) == {"train", "validation"}


def test_different_texts_and_options_give_different_names(tmp_path):
    path = str(tmp_path / "pairs.tsv")
    changes = [
        {}, {"held_out": 3}, {"deduplicate": False}, {"min_characters": 1}, {"max_characters": 20},
        {"max_characters": 21}, {"max_ratio": 9.0}, {"validation": path}, {"test": path},
        {"validation": path, "test": path}, {"validation": f"{path},{path}"},
        {"held_out": 0, "validation": path}, {"held_out": 0, "deduplicate": False, "validation": path},
    ]  # fmt: skip
    names = {BUILDERS["parallel_text"](config(tmp_path, **change)).variant() for change in changes}
    assert len(names) == len(changes)
    assert BUILDERS["parallel_text"](config(tmp_path, PAIRS[1:])).variant() not in names


def test_the_name_of_a_text_does_not_change_between_versions(tmp_path):
    """With a new name, data of earlier runs would be prepared again, and those runs could not be resumed."""
    pairs = [*PAIRS, ("", "x"), *PAIRS[:3]]
    path = str(tmp_path / "pairs.tsv")
    plain = config(tmp_path, pairs, held_out=0, deduplicate=False, validation=path)
    assert BUILDERS["parallel_text"](plain).variant() == "en-de.bf56bb918190"


@pytest.mark.parametrize(
    ("pairs", "changes", "message"),
    [
        ([], {}, "data.options.train: .*pairs.tsv has no pairs"),
        (PAIRS, {"max_characters": 4}, "data.options.train: no pair is left for train: 100 pairs read; dropped 100 longer than 4 char"),
        (PAIRS[:1], {}, "data.options.train: no pair is left for validation: 1 pairs read; .*; 1 to train on"),
        (PAIRS, {"validation": "empty.tsv"}, "data.options.validation: empty.tsv has no pairs"),
        (PAIRS, {"held_out": 0}, r"data.options.validation is not set; set it to a file of pairs \(such as pairs.tsv\) or two files \(such as source.txt,target.txt\), or set data.options.held_out to take pairs from the training text"),
        (PAIRS, {"train": None}, r"data.options.train is not set; set it to a file of pairs \(such as pairs.tsv\) or two files \(such as source.txt,target.txt\)"),
        (PAIRS, {"train": "a,b,c"}, r"data.options.train is 'a,b,c'; it must be a file of pairs \(such as pairs.tsv\) or two files \(such as source.txt,target.txt\)"),
        (PAIRS, {"test": "/dev/null"}, "data.options.test: /dev/null .* is not a file"),
    ],
)  # fmt: skip
def test_a_text_that_cannot_be_used_is_refused(tmp_path, monkeypatch, pairs, changes, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.tsv").touch()
    with pytest.raises(UserError, match=message):
        prepare(config(tmp_path, pairs, **changes))
    assert not list((tmp_path / "data").rglob("incomplete*"))


def test_leftovers_of_a_killed_process_are_deleted(tmp_path):
    folder = tmp_path / "data" / "parallel_text"
    before = pairs_of(Corpus(config(tmp_path)), "train")
    (variant,) = folder.iterdir()
    incomplete = variant / "incomplete.ABCDEF_2.0.0"
    incomplete.mkdir()
    (incomplete / "half").write_text("half")
    shutil.rmtree(variant / "2.0.0")  # the process was killed before it was done
    assert pairs_of(Corpus(config(tmp_path)), "train") == before
    assert not incomplete.exists()


def test_a_changed_file_is_prepared_again(tmp_path):
    Corpus(config(tmp_path))
    changed = [("a new sentence", "ein neuer Satz"), *PAIRS[1:]]
    corpus = Corpus(config(tmp_path, changed, held_out=0, validation=str(tmp_path / "pairs.tsv")))
    assert pairs_of(corpus, "train") == changed

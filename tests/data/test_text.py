"""Your own text: what is trained on, what is held out, what is left out, and that it is said."""

import logging
import shutil

import numpy as np
import pytest

from transformer.config import DataConfig, UserError
from transformer.data.corpus import Corpus
from transformer.data.text import Fate, decide, report

PAIRS = [(f"a man and {number} dogs", f"ein Mann und {number} Hunde") for number in range(100)]
BOTH = [Fate.VALIDATION, Fate.TEST]


def pairs_of(fates, fate, pairs):
    return [pair for pair, one in zip(pairs, fates, strict=True) if one == fate]


def split_up(pairs, missing=BOTH, held_out=2_000, **rules):
    fates = decide(pairs, DataConfig(held_out=held_out, **rules), missing)
    return {fate: pairs_of(fates, fate, pairs) for fate in Fate}


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
    rules = DataConfig(min_characters=1, max_characters=10, max_ratio=3.0)
    assert list(decide([pair], rules, [])) == [fate]
    assert list(decide([pair], DataConfig(), [])) == [Fate.TRAIN]


def test_only_the_first_of_equal_pairs_is_kept():
    pairs = [("a", "b"), ("b", "a"), ("a", "b"), ("a", "c"), ("", "x"), ("", "x"), ("a", "b")]
    fates = decide(pairs, DataConfig(deduplicate=True, min_characters=1), [])
    kept, again, short = Fate.TRAIN, Fate.REPEATED, Fate.SHORT
    assert list(fates) == [kept, kept, again, kept, short, short, again]


@pytest.mark.parametrize(("held_out", "size"), [(2_000, 5), (3, 3)])
def test_a_twentieth_is_held_out_or_what_was_asked_for(held_out, size):
    splits = split_up(PAIRS, held_out=held_out)
    assert len(splits[Fate.VALIDATION]) == len(splits[Fate.TEST]) == size
    assert len(splits[Fate.TRAIN]) == len(PAIRS) - 2 * size
    assert len(split_up(PAIRS, [Fate.TEST], held_out)[Fate.TEST]) == size


def test_no_sentence_is_in_two_splits():
    """Of either language, whether its pair came twice, or it was translated in two ways."""
    many = [(f"s{number % 400}", f"t{number % 700}") for number in range(3_000)]
    for deduplicate in (False, True):
        splits = split_up([*many, *many[:500]], held_out=20, deduplicate=deduplicate)
        assert len(splits[Fate.TRAIN]) > 500
        for one in (Fate.TRAIN, *BOTH):
            for other in {Fate.TRAIN, *BOTH} - {one}:
                for side in (0, 1):
                    assert not {pair[side] for pair in splits[one]} & {pair[side] for pair in splits[other]}
        for split in BOTH:
            assert len(set(splits[split])) == len(splits[split]) == 20


def test_the_text_alone_decides_what_is_held_out():
    splits = split_up(PAIRS)
    for changed in (PAIRS[::-1], [*PAIRS, *PAIRS[:30]]):
        assert set(split_up(changed, deduplicate=True)[Fate.TEST]) == set(splits[Fate.TEST])
    reverse = split_up([pair[::-1] for pair in PAIRS])
    assert {pair[::-1] for pair in reverse[Fate.TEST]} == set(splits[Fate.TEST])
    assert splits[Fate.TEST][0] in PAIRS[1:]
    assert splits[Fate.TEST] != PAIRS[-5:]


def test_copies_are_held_out_no_more_often_than_others():
    copies = [(f"c{number}", f"c{number}") for number in range(100)]
    assert 0 < len(set(split_up([*copies, *PAIRS])[Fate.TEST]) & set(copies)) < 10


def test_what_became_of_a_text_is_one_line():
    rules = DataConfig(min_characters=1, max_characters=40, max_ratio=9.0, deduplicate=True, held_out=2)
    pairs = [*PAIRS, *PAIRS[:7], ("", "x"), ("a" * 50, "b" * 50), ("a", "b" * 20)]
    assert report(decide(pairs, rules, BOTH), rules) == (
        "110 pairs read; dropped 1 empty, 1 longer than 40 characters, 1 with a ratio above 9, 7 duplicates; "
        "held out 2 for validation, 2 for test; 96 to train on"
    )
    assert report(np.zeros(12_345, np.uint8), DataConfig()) == "12,345 pairs read; 12,345 to train on"


def config(folder, pairs=PAIRS, **changes):
    path = folder / "pairs.tsv"
    path.write_text("".join(f"{source}\t{target}\n" for source, target in pairs))
    values = {"name": "parallel_text", "train": str(path), "data_dir": str(folder / "data"), "vocab_size": 50}
    return DataConfig(**{**values, "held_out": 2_000, "deduplicate": True, **changes})


def texts(corpus, split):
    return list(zip(*corpus.texts(split), strict=True))


def test_a_corpus_of_one_file_has_three_splits(tmp_path, caplog):
    caplog.set_level(logging.INFO, "transformer")
    splits = split_up(PAIRS)
    for _ in range(2):  # the second time everything is prepared, and it is said again
        corpus = Corpus(config(tmp_path))
        assert texts(corpus, "train") == splits[Fate.TRAIN]
        assert texts(corpus, "validation") == splits[Fate.VALIDATION]
        assert texts(corpus, "test") == splits[Fate.TEST]
    said = [line for line in caplog.messages if "pairs read" in line]
    assert len(said) == 2
    assert said[0] == said[1]
    assert said[0].startswith(f"{tmp_path}/pairs.tsv: 100 pairs read; dropped 0 duplicates; held out 5 for")


def test_given_splits_are_taken_as_they_are(tmp_path):
    given = tmp_path / "given.tsv"
    given.write_text("\tx\n" + "a\tb\n" * 2 + f"{'c' * 50}\td\n")
    rules = {"min_characters": 1, "max_characters": 40, "max_ratio": 9.0}
    corpus = Corpus(config(tmp_path, [*PAIRS, ("", "x")], validation=str(given), test=str(given), **rules))
    for split in ("validation", "test"):
        assert texts(corpus, split) == [("", "x"), ("a", "b"), ("a", "b"), ("c" * 50, "d")]
    assert texts(corpus, "train") == PAIRS


def test_without_rules_everything_is_trained_on_and_nothing_held_out(tmp_path):
    """What was done before there were any; the name is the one of then, so that old runs find their data."""
    pairs = [*PAIRS, ("", "x"), *PAIRS[:3]]
    old = config(tmp_path, pairs, held_out=0, deduplicate=False, validation=str(tmp_path / "pairs.tsv"))
    corpus = Corpus(old)
    assert texts(corpus, "train") == texts(corpus, "validation") == pairs
    assert set(corpus.splits) == {"train", "validation"}
    assert corpus.identity == f"parallel_text/en-de.{OLD}/1.0.0"


OLD = "bf56bb918190"  # as named before there were any rules


def test_different_contents_have_different_names(tmp_path):
    path = str(tmp_path / "pairs.tsv")
    changes = [
        {}, {"held_out": 3}, {"deduplicate": False}, {"min_characters": 1}, {"max_characters": 20},
        {"max_characters": 21}, {"max_ratio": 9.0}, {"validation": path}, {"test": path},
        {"validation": path, "test": path}, {"validation": f"{path},{path}"},
        {"held_out": 0, "validation": path}, {"held_out": 0, "deduplicate": False, "validation": path},
    ]  # fmt: skip
    names = {Corpus(config(tmp_path, **change)).identity for change in changes}
    assert len(names) == len(changes)


@pytest.mark.parametrize(
    ("pairs", "changes", "message"),
    [
        ([], {}, "data.train: .*pairs.tsv has no pairs"),
        (
            PAIRS,
            {"max_characters": 4},
            "no pair is left for train: 100 pairs read; dropped 100 longer than 4 char",
        ),
        (PAIRS[:1], {}, "data.train: no pair is left for train: 1 pairs read; .* 1 for validation"),
        (
            PAIRS,
            {"held_out": 0},
            "data.validation is not set; give pairs.tsv or source,target, or set data.held_out",
        ),
        (PAIRS, {"train": "a,b,c"}, "data.train is 'a,b,c'; it must be pairs.tsv or source,target"),
        (PAIRS, {"test": "/dev/null"}, "data.test: /dev/null .* is not a file"),
    ],
)
def test_what_leaves_nothing_to_train_on_is_refused(tmp_path, pairs, changes, message):
    with pytest.raises(UserError, match=message):
        Corpus(config(tmp_path, pairs, **changes))
    assert not list((tmp_path / "data").rglob("incomplete*"))


def test_an_empty_split_is_refused(tmp_path):
    (tmp_path / "empty.tsv").touch()
    with pytest.raises(UserError, match="data.validation: .*empty.tsv has no pairs"):
        Corpus(config(tmp_path, validation=str(tmp_path / "empty.tsv")))


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    folder = tmp_path / "data" / "parallel_text"
    corpus = Corpus(config(tmp_path))
    (variant,) = folder.iterdir()
    left_over = variant / "incomplete.ABCDEF_1.0.0"
    left_over.mkdir()
    (left_over / "half").write_text("half")
    before = texts(corpus, "train")
    shutil.rmtree(variant / "1.0.0")  # it was killed before it was done
    assert texts(Corpus(config(tmp_path)), "train") == before
    assert not left_over.exists()

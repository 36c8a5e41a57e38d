"""Lines in blocks as they come, and what is written for them."""

import io
import os
import threading
import time

import pytest

from experiments import lines
from experiments.lines import as_text, blocks
from experiments.translating import Form, answer_lines, translations
from transformer.config import UserError
from transformer.decoding.translator import Hypothesis


@pytest.fixture
def pipe():
    """The two ends of a pipe: a descriptor to read, a file to write."""
    read, write = os.pipe()
    with open(write, "wb", buffering=0) as end:
        yield read, end
    os.close(read)


def in_blocks(tmp_path, content):
    path = tmp_path / "lines"
    path.write_bytes(content)
    with open(path, "rb") as file:
        return list(blocks(file.fileno()))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"a", [b"a"]),
        (b"a\nb\n", [b"a", b"b"]),
        (b"a\nb", [b"a", b"b"]),
        (b"a\n\n", [b"a", b""]),
        (b"a\r\nb\rc\r\n", [b"a\r", b"b\rc\r"]),
        ("a\u2028b\x85\x0bc\n".encode(), ["a\u2028b\x85\x0bc".encode()]),
        (b"a" * 200_000 + b"\n" + b"b" * 200_000, [b"a" * 200_000, b"b" * 200_000]),
    ],
)
def test_only_a_line_feed_ends_a_line(tmp_path, content, expected):
    assert [line for block in in_blocks(tmp_path, content) for line in block] == expected


def test_a_carriage_return_before_the_end_and_what_is_no_text():
    assert as_text(b"one\rtwo\r") == "one\rtwo"
    assert as_text(b"\r\r") == "\r"
    assert as_text(b"\xffone\xc3") == "\ufffdone\ufffd"


def test_a_block_ends_with_what_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LINES", 3)
    monkeypatch.setattr(lines, "BYTES", 10)
    one, two, three = [b"a", b"b", b"c"], [b"d", b"e" * 20], [b"f"]
    assert in_blocks(tmp_path, b"\n".join(one + two + three)) == [one, two, three]


def test_a_line_does_not_wait_for_the_next(pipe):
    """Nor do two for a third whose end has not come."""
    read, write = pipe
    stream = blocks(read)
    write.write(b"one\n")
    assert next(stream) == [b"one"]
    write.write(b"two\nthree\nfo")
    assert next(stream) == [b"two", b"three"]
    write.write(b"ur\n")
    assert next(stream) == [b"four"]
    write.write(b"five")
    write.close()
    assert list(stream) == [[b"five"]]


def test_lines_that_trickle_do_not_wait_for_a_pause(pipe, monkeypatch):
    """One every 10 ms, which is less than a pause."""
    monkeypatch.setattr(lines, "PAUSE", 5.0)
    monkeypatch.setattr(lines, "PATIENCE", 0.2)
    read, write = pipe

    def trickle():
        with write:
            for _ in range(100):
                write.write(b"a\n")
                time.sleep(0.01)

    thread = threading.Thread(target=trickle)
    thread.start()
    sizes = [len(block) for block in blocks(read)]
    thread.join()
    assert sum(sizes) == 100
    assert len(sizes) > 2


def test_a_long_line_costs_what_it_holds(tmp_path, monkeypatch):
    """64 bytes at a time: joined once, not each time that more of it comes."""
    monkeypatch.setattr(lines, "READ", 64)
    line = bytes(range(11, 139)) * 50_000
    started = time.process_time()
    assert in_blocks(tmp_path, line) == [[line]]
    assert time.process_time() - started < 5  # seconds; some 0.2, and minutes if each read copied the line


class Shout:
    """In a translator's place."""

    max_source = 64

    def __init__(self, n_best=1):
        self.n_best = n_best

    def hypotheses(self, texts, prefixes, first, in_parts):
        for text, words in enumerate(texts):
            if words == "break":
                raise UserError("broken")
            if len(words) > self.max_source:
                in_parts(text, len(words), 2)
        prefixes = prefixes or [""] * len(texts)
        both = enumerate(zip(texts, prefixes, strict=True), start=first)
        return [
            [Hypothesis(prefix + text.upper() + str(number) * n, -n, True) for n in range(self.n_best)]
            for number, (text, prefix) in both
        ]


def shouted(stream, n_best=1, scores=False, prefixes=None, seen=None):
    out = io.BytesIO()
    answer_lines(translations(Shout(n_best), Form(n_best, scores), prefixes, seen), stream, out)
    return out.getvalue()


def test_no_lines_no_lines():
    assert shouted([]) == b""


def test_lines_are_counted_over_the_whole_input(capsys):
    stream = [[b"a"] * 3, [b"b" * 1_065]]
    assert shouted(stream) == b"A\n" * 3 + b"B" * 1_065 + b"\n"
    assert capsys.readouterr().err == "line 4 has 1,065 pieces: translated in 2 parts of at most 64\n"
    numbers = [line.split(b"\t") for line in shouted([[b"a"], [b"b", b"c"]], n_best=2).splitlines()]
    assert numbers == [
        [b"1", b"0.0000", b"A"],
        [b"1", b"-1.0000", b"A0"],
        [b"2", b"0.0000", b"B"],
        [b"2", b"-1.0000", b"B1"],
        [b"3", b"0.0000", b"C"],
        [b"3", b"-1.0000", b"C2"],
    ]
    assert shouted([[b"a"], [b"b", b"c"]], prefixes=["x", "y", "z"]) == b"xA\nyB\nzC\n"
    assert shouted([[b"a"]], scores=True) == b"0.0000\tA\n"


def test_what_was_translated_before_an_error_is_there():
    class Out(io.BytesIO):
        def flush(self):
            flushed.append(self.getvalue())

    flushed, out = [], Out()
    with pytest.raises(UserError):
        answer_lines(translations(Shout(), Form()), [[b"a"], [b"break"]], out)
    assert flushed == [b"A\n"]


def test_the_attention_of_a_line_in_parts_is_refused():
    seen = []
    assert shouted([[b"a"], [b"b"]], seen=lambda *one: seen.append(one)) == b"A\nB\n"
    assert seen == [(1, "a", "A"), (2, "b", "B")]
    message = (
        "^line 3 has 70 pieces; the attention of at most 64 is shown: cut the line or leave out --attention$"
    )
    with pytest.raises(UserError, match=message):
        shouted([[b"a", b"b"], [b"c" * 70]], seen=lambda *one: None)

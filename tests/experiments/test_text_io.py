"""Reading input lines as they arrive, and the output lines of `translate`."""

import io
import os
import threading
import time

import pytest

from experiments import text_io
from experiments.text_io import (
    TranslationAnswer,
    decode_line,
    read_blocks,
    report_unknown,
    write_answers,
)
from transformer.config import UserError
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.translator import Hypothesis


@pytest.fixture
def pipe():
    """The two ends of a pipe: a descriptor to read from, and a file to write to."""
    read, write = os.pipe()
    with open(write, "wb", buffering=0) as end:
        yield read, end
    os.close(read)


def blocks_of(tmp_path, content):
    path = tmp_path / "lines"
    path.write_bytes(content)
    with open(path, "rb") as file:
        return list(read_blocks(file.fileno()))


@pytest.mark.parametrize(
    ("content", "lines"),
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
def test_only_a_line_feed_ends_a_line(tmp_path, content, lines):
    assert [line for block in blocks_of(tmp_path, content) for line in block] == lines


def test_decode_line_drops_a_final_carriage_return_and_replaces_invalid_bytes():
    assert decode_line(b"one\rtwo\r") == "one\rtwo"
    assert decode_line(b"\r\r") == "\r"
    assert decode_line(b"\xffone\xc3") == "\ufffdone\ufffd"


def test_a_block_has_a_limited_number_of_lines_and_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(text_io, "BLOCK_LINES", 3)
    monkeypatch.setattr(text_io, "BLOCK_BYTES", 10)
    blocks = [[b"a", b"b", b"c"], [b"d", b"e" * 20], [b"f"]]
    content = b"\n".join(line for block in blocks for line in block)
    assert blocks_of(tmp_path, content) == blocks


def test_a_line_does_not_wait_for_the_next(pipe):
    """Complete lines are returned at once, even if the next line is missing or incomplete."""
    read, write = pipe
    blocks = read_blocks(read)
    write.write(b"one\n")
    assert next(blocks) == [b"one"]
    write.write(b"two\nthree\nfo")
    assert next(blocks) == [b"two", b"three"]
    write.write(b"ur\n")
    assert next(blocks) == [b"four"]
    write.write(b"five")
    write.close()
    assert list(blocks) == [[b"five"]]


def test_lines_that_trickle_do_not_wait_for_a_pause(pipe, monkeypatch):
    """A line arrives every 10 ms, which is shorter than `PAUSE`."""
    monkeypatch.setattr(text_io, "PAUSE", 5.0)
    monkeypatch.setattr(text_io, "MAX_WAIT", 0.2)
    read, write = pipe

    def trickle():
        with write:
            for _ in range(100):
                write.write(b"a\n")
                time.sleep(0.01)

    thread = threading.Thread(target=trickle)
    thread.start()
    sizes = [len(block) for block in read_blocks(read)]
    thread.join()
    assert sum(sizes) == 100
    assert len(sizes) > 2


def test_a_long_line_is_joined_once(tmp_path, monkeypatch):
    """Joining the line at each of its 100,000 reads would take minutes."""
    monkeypatch.setattr(text_io, "READ_BYTES", 10)
    line = bytes(range(11, 139)) * 8_000
    started = time.process_time()
    assert blocks_of(tmp_path, line) == [[line]]
    assert time.process_time() - started < 5  # seconds; usually 0.2


class ShoutingTranslator:
    """Translates a line into upper case. Hypothesis n ends with n copies of the line number."""

    max_source_length = 64

    def __init__(self, n_best=1):
        self.n_best = n_best

    def hypotheses(self, texts, prefixes, first, progress, on_split):
        for index, text in enumerate(texts):
            if text == "break":
                raise UserError("broken")
            if len(text) > self.max_source_length:
                on_split(index, len(text), 2)
            progress(index + 1)
        pairs = enumerate(zip(texts, prefixes or [""] * len(texts), strict=True), start=first)
        return [
            [Hypothesis(prefix + text.upper() + str(number) * n, -n, True) for n in range(self.n_best)]
            for number, (text, prefix) in pairs
        ]


# A vocabulary of all Latin-1 characters.
TOKENIZER = Tokenizer.train(["".join(map(chr, range(33, 256)))], "char", 230)


def shouted(blocks, n_best=1, **options):
    out = io.BytesIO()
    write_answers(TranslationAnswer(ShoutingTranslator(n_best), TOKENIZER, n_best, **options), blocks, out)
    return out.getvalue()


def test_characters_without_a_token_are_reported_with_their_line(capsys):
    shouted([[b"a", "漢b字漢".encode()], ["c\u2028".encode()]], prefixes=["", "", "한"])
    assert capsys.readouterr().err.splitlines() == [
        "input, line 2: no token for '漢', '字'; read as unknown",
        "input, line 3: no token for U+2028; read as unknown",
        "--prefix, line 3: no token for '한'; read as unknown",
    ]


def test_many_lines_with_unknown_characters_are_counted(capsys):
    report_unknown("source", ["漢" + chr(0x4E00 + n) * 3 for n in range(300)], TOKENIZER)
    *lines, last = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert last == "source: 295 more lines with unknown characters"
    report_unknown("source", ["".join(map(chr, range(0x4E00, 0x4F00)))], TOKENIZER)
    assert len(capsys.readouterr().err) < 120


def test_a_tab_in_a_translation_adds_no_column():
    assert shouted([[b"a\tb"]], n_best=2).splitlines() == [b"1\t0.0000\tA B", b"1\t-1.0000\tA B0"]
    assert shouted([[b"a\tb"]]) == b"A\tB\n"


def test_a_byte_order_mark_is_dropped(tmp_path):
    assert blocks_of(tmp_path, "\ufeffa\n\ufeffb".encode()) == [[b"a", "\ufeffb".encode()]]


def test_a_line_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(UserError, match="a line of the input has over 1,048,576 bytes; shorten it"):
        blocks_of(tmp_path, b"a" * (1 << 21))


def test_empty_input_gives_empty_output():
    assert shouted([]) == b""


def test_lines_are_counted_over_all_blocks(capsys):
    assert shouted([[b"a"] * 3, [b"b" * 1_065]]) == b"A\n" * 3 + b"B" * 1_065 + b"\n"
    assert (
        capsys.readouterr().err == "line 4 has 1,065 tokens; translating it in 2 parts of at most 64 tokens\n"
    )
    assert shouted([[b"a"], [b"b", b"c"]], prefixes=["x", "y", "z"]) == b"xA\nyB\nzC\n"


def test_progress_counts_the_lines_of_all_blocks():
    done = []
    shouted([[b"a", b"b"], [b"c"]], progress=done.append)
    assert done == [1, 2, 3]


def test_an_answer_has_columns_for_number_score_and_text():
    assert shouted([[b"a"]], scores=True) == b"0.0000\tA\n"
    rows = [line.split(b"\t") for line in shouted([[b"a"], [b"b", b"c"]], n_best=2).splitlines()]
    assert rows == [
        [b"1", b"0.0000", b"A"],
        [b"1", b"-1.0000", b"A0"],
        [b"2", b"0.0000", b"B"],
        [b"2", b"-1.0000", b"B1"],
        [b"3", b"0.0000", b"C"],
        [b"3", b"-1.0000", b"C2"],
    ]


def test_translations_before_an_error_are_written():
    class Out(io.BytesIO):
        def flush(self):
            flushed.append(self.getvalue())

    flushed, out = [], Out()
    with pytest.raises(UserError):
        write_answers(TranslationAnswer(ShoutingTranslator(), TOKENIZER), [[b"a"], [b"break"]], out)
    assert flushed == [b"A\n"]


class AttentionList:
    """Records calls of `add`."""

    def __init__(self):
        self.added = []

    def add(self, *arguments):
        self.added.append(arguments)


def test_attention_is_recorded_per_line_and_refused_for_a_line_that_is_split():
    attention = AttentionList()
    assert shouted([[b"a"], [b"b"]], attention=attention) == b"A\nB\n"
    assert attention.added == [(1, "a", "A", True), (2, "b", "B", True)]
    message = "^line 3 has 70 tokens, but --attention accepts at most 64; shorten the line or leave out --attention$"
    with pytest.raises(UserError, match=message):
        shouted([[b"a", b"b"], [b"c" * 70]], attention=AttentionList())


def test_an_idle_reader_always_waits_with_a_timeout(monkeypatch):
    """Python would not handle a Ctrl-C that arrives just before a wait without a timeout."""
    waits = []

    def idle(files, _, __, seconds):
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt
        return [], [], []

    monkeypatch.setattr(text_io.select, "select", idle)
    with pytest.raises(KeyboardInterrupt):
        list(text_io.read_blocks(0))
    assert all(0 < seconds <= 1 for seconds in waits)

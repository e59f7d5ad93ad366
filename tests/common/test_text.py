"""Words and numbers, and text that is safe to show."""

from __future__ import annotations

import pytest

from sft.common.text import (
    change_text,
    columns,
    counted,
    note_text,
    percent,
    printable,
    reveal,
    share_text,
    size,
    wrapped,
)

GIB = 2**30


def test_reveal_writes_out_hidden_characters():
    assert reveal("a\x1b\u202eb\n\t\ud800ä😀") == "a\\x1b\\u202eb\n\t\\ud800ä😀"
    assert reveal("👩\u200d💻\u2028\r") == "👩\u200d💻\\u2028\\x0d"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, naïve, 你好, 🙂", "plain, naïve, 你好, 🙂"),
        ("\x1b[31mred\x9b", "\\x1b[31mred\\x9b"),
        ("a\tb\r\nc\x00\x7f", "a\\tb\\r\\nc\\x00\\x7f"),
        ("\u200bzero\u2028line\u2066", "\\u200bzero\\u2028line\\u2066"),
        ("half \ud83d pair, tag \U000e0041", "half \\ud83d pair, tag \\U000e0041"),
    ],
)
def test_printable_writes_out_invisible_characters(text, shown):
    assert printable(text) == shown


def test_words_and_numbers():
    assert [counted(n, "row") for n in (0, 1, 2000)] == ["0 rows", "1 row", "2,000 rows"]
    assert counted(2, "process") == "2 processes"
    assert [size(n) for n in (0, 300 * 2**20, 3 * GIB // 2)] == ["0 MiB", "300 MiB", "1.5 GiB"]
    assert [columns(text) for text in ("abc", "你好", "e\u0301")] == [3, 4, 1]
    assert wrapped("a " * 60, first="  x ", rest="    ")[1].startswith("    a")
    assert note_text("of tomorrow", 1) == "of tomorrow: 1 row"


def test_shares_are_not_rounded_to_all_or_nothing():
    shares = (0, 0.00001, 0.0003, 0.5, 0.845, 0.9994, 0.9997, 0.99999, 1)
    assert [share_text(share) for share in shares] == [
        "0.0%",
        "<0.01%",
        "0.03%",
        "50.0%",
        "84.5%",
        "99.9%",
        "99.97%",
        ">99.99%",
        "100.0%",
    ]
    changes = (-1, -0.99999, -0.9997, -0.5, -0.0003, -0.00001, 0, 0.00001, 0.0003, 0.5, 0.9997, 1, 1.0003, 12)
    assert [change_text(change) for change in changes] == [
        "-100.0%",
        "<-99.99%",
        "-99.97%",
        "-50.0%",
        "-0.03%",
        ">-0.01%",
        "+0.0%",
        "<+0.01%",
        "+0.03%",
        "+50.0%",
        "+99.97%",
        "+100.0%",
        "+100.0%",
        "+1200.0%",
    ]
    assert share_text(float("nan")) == "nan%"
    assert [percent(9999, 10_000), percent(0, 0)] == ["99.99%", "0%"]

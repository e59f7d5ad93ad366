"""A row's text in the terminal."""

from __future__ import annotations

from sft.reporting.preflight.row_text import row_lines
from tests.support.preflight_records import segments


def test_row_lines_bracket_supervised_text_without_colour():
    assert row_lines(segments("user\nhi\n", "ok\nbye<end>", "\n"), width=80, colour=False) == [
        "user⏎",
        "hi⏎",
        "⟦ok⏎",
        "bye<end>⟧⏎",
    ]


def test_row_lines_colour_supervised_text_line_by_line():
    assert row_lines(segments("q ", "a\nb", "\n"), width=80, colour=True) == [
        "q \x1b[30;42ma⏎\x1b[0m",
        "\x1b[30;42mb\x1b[0m⏎",
    ]


def test_row_lines_close_the_bracket_before_the_line_breaks():
    assert row_lines(segments("", "a\n", "b"), width=80, colour=False) == ["⟦a⏎⟧", "b"]


def test_row_lines_escape_our_signs_in_the_data():
    assert row_lines(segments("⟦x⟧ ⏎ \x1b[1m"), width=80, colour=False) == ["\\u27e6x\\u27e7 \\u23ce \\x1b[1m"]


def test_row_lines_break_after_a_space_and_count_wide_characters_twice():
    assert row_lines(segments("aaaa bbbb cccc"), width=10, colour=False) == ["aaaa bbbb ", "cccc"]
    assert row_lines(segments("你好你好你"), width=4, colour=False) == ["你好", "你好", "你"]


def test_row_lines_keep_both_ends_of_a_long_segment():
    text = "".join(row_lines(segments("", "S" * 300 + "m" * 5000 + "E" * 195 + "<end>"), width=96, colour=False))
    assert text == "⟦" + "S" * 300 + " [... 5,000 characters ...] " + "E" * 195 + "<end>⟧"
    text = "".join(row_lines(segments("S" * 240 + "m" * 41 + "E" * 160), width=96, colour=False))
    assert text == "S" * 240 + " [... 41 characters ...] " + "E" * 160
    assert "".join(row_lines(segments("S" * 440), width=96, colour=False)) == "S" * 440


def test_row_lines_omit_the_middle_of_many_turns():
    text = "".join(row_lines(segments(*(f"<{n}>" for n in range(20))), width=500, colour=False))
    assert text == "<0>⟦<1>⟧<2>⟦<3>⟧ [... 12 segments ...] <16>⟦<17>⟧<18>⟦<19>⟧"

"""Curves as PNG files."""

from __future__ import annotations

import pytest

from sft.reporting.curves import draw_comparison, draw_curves

EVENTS = [{"step": step, "loss": 1 / step, "eval_loss": 2 / step} for step in (1, 2)]
NAMES = (
    "a$\\frac{$b",
    "$x$",
    "\\$",
    "$$",
    "100% {x} _y",
    "_hidden",
    "中文 \x1b[31m",
    "\udcff\ud800",
    "two\nlines\t",
    "\u202e\u0000",
    "long " * 1000,
    "",
)


def test_draw_curves_writes_a_png_even_without_data(tmp_path):
    draw_curves([], tmp_path / "empty.png", "empty")
    events = [{"step": s, "loss": 1 / s, "learning_rate": 0.1, "grad_norm": 1.0} for s in range(1, 20)]
    draw_curves([*events, {"step": 19, "eval_loss": 0.3}], tmp_path / "full.png", "full")
    for name in ("empty.png", "full.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", [NAMES[0], "中文 \x1b[31m", "\udcff", "long " * 1000])
def test_any_name_is_drawn_as_it_is_and_nothing_appears_on_the_terminal(tmp_path, name, capfd, caplog, recwarn):
    draw_curves(EVENTS, tmp_path / "a.png", name)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (list(recwarn), caplog.messages, capfd.readouterr()) == ([], [], ("", ""))


def test_any_names_can_be_compared(tmp_path, capfd, caplog, recwarn):
    runs = {f"{number}{name}": EVENTS for number, name in enumerate(NAMES)}
    draw_comparison(runs, tmp_path / "a.png", dict.fromkeys(runs))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (list(recwarn), caplog.messages, capfd.readouterr()) == ([], [], ("", ""))


def test_a_picture_is_not_written_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "a.png").symlink_to("precious")
    draw_curves([], tmp_path / "a.png", "a")
    assert (tmp_path / "precious").read_text() == "precious"

"""Curves as PNG files."""

from __future__ import annotations

from sft.reporting.curves import draw_curves


def test_draw_curves_writes_a_png_even_without_data(tmp_path):
    draw_curves([], tmp_path / "empty.png", "empty")
    events = [{"step": s, "loss": 1 / s, "learning_rate": 0.1, "grad_norm": 1.0} for s in range(1, 20)]
    draw_curves([*events, {"step": 19, "eval_loss": 0.3}], tmp_path / "full.png", "full")
    for name in ("empty.png", "full.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")

"""`training_curves.png`: loss, validation, learning rate and gradient norm over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sft.common.text import printable

TRAIN_COLOUR, EVAL_COLOUR = "#3465a4", "#cc4c02"


def draw_curves(events: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> None:
    """Draw the log events of a run (see `metrics.jsonl`) into a PNG file.

    Raises:
        ImportError: if matplotlib, which is optional, is not installed.
    """
    figure = _new_figure(width=11, height=7)
    figure.suptitle(title)
    panels = figure.subplots(2, 2)
    loss, accuracy, rate, norm = panels.ravel()
    _plot(loss, events, "loss", "training", TRAIN_COLOUR)
    _plot(loss, events, "eval_loss", "validation", EVAL_COLOUR, marker="o")
    _plot(accuracy, events, "token_accuracy", "tokens right, training", TRAIN_COLOUR)
    _plot(accuracy, events, "eval_token_accuracy", "tokens right, validation", EVAL_COLOUR, marker="o")
    _plot(accuracy, events, "eval_sequence_accuracy", "answers right, validation", EVAL_COLOUR, marker="s", style="--")
    _plot(rate, events, "learning_rate", None, TRAIN_COLOUR)
    _plot(norm, events, "grad_norm", None, TRAIN_COLOUR)
    accuracy.set_ylim(-0.02, 1.02)
    for panel, name in zip(
        panels.ravel(), ("loss (nats a token)", "accuracy", "learning rate", "gradient norm"), strict=True
    ):
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False)
        elif not panel.lines:
            panel.text(0.5, 0.5, "no data", ha="center", va="center", transform=panel.transAxes, color="grey")
    figure.savefig(path, dpi=110)


def _new_figure(*, width: float, height: float) -> Any:
    """An empty figure, in inches. The object interface: pyplot keeps global state and looks for a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # optional, and slow to import
    from matplotlib.figure import Figure  # optional

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plot(
    panel: Any,
    events: Sequence[Mapping[str, Any]],
    name: str,
    label: str | None,
    colour: str,
    marker: str | None = None,
    style: str = "-",
) -> None:
    points = [(event["step"], event[name]) for event in events if event.get(name) is not None]
    if points:
        steps, values = zip(*points, strict=True)
        marker = marker or ("." if len(points) < 3 else None)
        panel.plot(steps, values, label=label, color=colour, marker=marker, linestyle=style)


def draw_comparison(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path, rows_a_step: Mapping[str, int | None]
) -> None:
    """Draws the curves of several runs into one PNG file.

    Args:
        runs: name -> log events.
        path: of the picture.
        rows_a_step: name -> rows that a step trains on. Where they differ, the curves stand over rows, not steps, so
            that what stands one above the other has seen as much.

    Raises:
        ImportError: if matplotlib, which is optional, is not installed.
    """
    from matplotlib import colormaps  # optional, and slow to import

    known = [rows_a_step.get(name) for name in runs]
    by_rows = None not in known and len(set(known)) > 1
    figure = _new_figure(width=11, height=7.5)
    panels = figure.subplots(2, 2).ravel()
    kinds = (
        ("eval_loss", "validation loss (nats a token)", "o"),
        ("loss", "training loss (nats a token)", None),
        ("learning_rate", "learning rate", None),
        ("tokens_per_second", "tokens/s", None),
    )
    colours = colormaps["tab10" if len(runs) <= 10 else "turbo"]
    for panel, (field, title, marker) in zip(panels, kinds, strict=True):
        for place, (name, events) in enumerate(runs.items()):
            factor = rows_a_step[name] if by_rows else 1
            colour = colours(place if len(runs) <= 10 else place / (len(runs) - 1))
            scaled = [{**event, "step": event["step"] * factor} for event in events]
            _plot(panel, scaled, field, _label(name), colour, marker)
        values = [y for line in panel.lines for y in line.get_ydata()]
        if "loss" in field and values and min(values) > 0 and max(values) > 20 * min(values):
            panel.set_yscale("log")
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("rows trained" if by_rows else "step")
        panel.grid(alpha=0.3)
        if not panel.lines:
            panel.text(0.5, 0.5, "no data", ha="center", va="center", transform=panel.transAxes, color="grey")
    labelled = {text: line for panel in panels for line, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    names = [label for name in runs if (label := _label(name)) in labelled]
    if names:
        figure.legend([labelled[name] for name in names], names, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)


def _label(name: str) -> str:
    """A name in which matplotlib sees no formula, and which it does not hide for an underscore at its start."""
    return "\u200b" + printable(name).replace("$", r"\$")

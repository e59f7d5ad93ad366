"""Curves as PNG files: of a run (`training_curves.png`) and of several runs side by side. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.common.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN_COLOUR, EVAL_COLOUR = "#3465a4", "#cc4c02"
_LOG_FROM = 20
"""Ratio of the largest to the smallest loss from which a plot of several runs uses a log scale."""
_COMPARED = (
    ("eval_loss", "validation loss (nats/token)", "o"),
    ("loss", "training loss (nats/token)", None),
    ("learning_rate", "learning rate", None),
    ("tokens_per_second", "tokens/s", None),
)
"""Key in `metrics.jsonl`, title and marker of each plot."""

Events = Sequence[Mapping[str, Any]]


def draw_curves(events: Events, path: str | Path, title: str) -> None:
    """Draw the log events of a run (see `metrics.jsonl`) into a PNG file.

    Raises:
        ImportError: if matplotlib, which is optional, is not installed.
    """
    figure = _new_figure(height=7)
    figure.suptitle(title)
    panels = figure.subplots(2, 2)
    loss, accuracy, rate, norm = panels.ravel()
    _plot(loss, events, "loss", "training", TRAIN_COLOUR)
    _plot(loss, events, "eval_loss", "validation", EVAL_COLOUR, marker="o")
    _plot(accuracy, events, "token_accuracy", "tokens, training", TRAIN_COLOUR)
    _plot(accuracy, events, "eval_token_accuracy", "tokens, validation", EVAL_COLOUR, marker="o")
    _plot(accuracy, events, "eval_sequence_accuracy", "sequences, validation", EVAL_COLOUR, marker="s", style="--")
    _plot(rate, events, "learning_rate", None, TRAIN_COLOUR)
    _plot(norm, events, "grad_norm", None, TRAIN_COLOUR)
    accuracy.set_ylim(-0.02, 1.02)
    for panel, name in zip(
        panels.ravel(), ("loss (nats/token)", "accuracy", "learning rate", "gradient norm"), strict=True
    ):
        _finish_panel(panel, name, "step")
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False)
    figure.savefig(path, dpi=110)


def draw_comparison(runs: Mapping[str, Events], path: str | Path, rows_per_step: Mapping[str, int | None]) -> None:
    """Draw the curves of several runs into one PNG file.

    Args:
        runs: name -> log events.
        path: of the file.
        rows_per_step: name -> rows per step. If they differ, the x axis is in rows, so that points above each other
            have seen as much data.

    Raises:
        ImportError: if matplotlib, which is optional, is not installed.
    """
    from matplotlib import colormaps  # optional, and slow to import

    figure = _new_figure(height=7.5)
    known = [rows_per_step.get(name) for name in runs]
    by_rows = None not in known and len(set(known)) > 1
    panels = figure.subplots(2, 2).ravel()
    colours = colormaps["tab10" if len(runs) <= 10 else "turbo"]
    for panel, (field, title, marker) in zip(panels, _COMPARED, strict=True):
        for index, (name, events) in enumerate(runs.items()):
            factor = rows_per_step[name] if by_rows else 1
            colour = colours(index if len(runs) <= 10 else index / (len(runs) - 1))
            scaled = [{**event, "step": event["step"] * factor} for event in events]
            _plot(panel, scaled, field, _label(name), colour, marker)
        values = [y for line in panel.lines for y in line.get_ydata()]
        if "loss" in field and values and min(values) > 0 and max(values) > _LOG_FROM * min(values):
            panel.set_yscale("log")
        _finish_panel(panel, title, "rows trained" if by_rows else "step")
    lines = {text: line for panel in panels for line, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    names = [label for name in runs if (label := _label(name)) in lines]
    if names:
        figure.legend([lines[name] for name in names], names, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)


def _new_figure(height: float) -> "Figure":
    """A figure of matplotlib's object interface; pyplot has global state and needs a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # optional, and slow to import
    from matplotlib.figure import Figure  # optional

    figure = Figure(figsize=(11, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plot(
    panel: "Axes",
    events: Events,
    name: str,
    label: str | None,
    colour: Any,
    marker: str | None = None,
    style: str = "-",
) -> None:
    points = [(event["step"], event[name]) for event in events if event.get(name) is not None]
    if points:
        steps, values = zip(*points, strict=True)
        marker = marker or ("." if len(points) < 3 else None)
        panel.plot(steps, values, label=label, color=colour, marker=marker, linestyle=style)


def _finish_panel(panel: "Axes", title: str, x_label: str) -> None:
    panel.set_title(title, fontsize=10)
    panel.set_xlabel(x_label)
    panel.grid(alpha=0.3)
    if not panel.lines:
        panel.text(0.5, 0.5, "no data", ha="center", va="center", transform=panel.transAxes, color="grey")


def _label(name: str) -> str:
    """A label that matplotlib neither parses as a formula nor hides for a leading underscore."""
    return "\u200b" + printable(name).replace("$", r"\$")

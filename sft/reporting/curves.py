"""Curves as PNG files: of a run (`training_curves.png`) and of several runs side by side. Needs matplotlib."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.common.files import write_bytes
from sft.common.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN_COLOUR, EVAL_COLOUR = "#3465a4", "#cc4c02"
_LONGEST_LABEL = 100
"""Characters of a run's name that are drawn."""
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
    with _plain_text():
        write_bytes(path, _curves(events, title))


def _curves(events: Events, title: str) -> bytes:
    figure = _new_figure(height=7)
    figure.suptitle(_shortened(title))
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
    return _as_png(figure)


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
    with _plain_text() as matplotlib:
        write_bytes(
            path, _comparison(runs, rows_per_step, matplotlib.colormaps["tab10" if len(runs) <= 10 else "turbo"])
        )


def _comparison(runs: Mapping[str, Events], rows_per_step: Mapping[str, int | None], colours: Any) -> bytes:
    figure = _new_figure(height=7.5)
    known = [rows_per_step.get(name) for name in runs]
    by_rows = None not in known and len(set(known)) > 1
    panels = figure.subplots(2, 2).ravel()
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
    return _as_png(figure)


@contextmanager
def _plain_text() -> Iterator[Any]:
    """matplotlib; within the context text is drawn as it is (`$` begins no formula), and warnings are not shown."""
    import matplotlib  # optional, and slow to import

    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}):
            warnings.simplefilter("ignore")  # characters that the font lacks, for example
            yield matplotlib
    finally:
        logger.setLevel(level)


def _as_png(figure: "Figure") -> bytes:
    content = BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


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
    """A label that matplotlib does not hide for a leading underscore."""
    return "\u200b" + _shortened(name)


def _shortened(name: str) -> str:
    text = printable(name)
    return text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 4] + " ..."

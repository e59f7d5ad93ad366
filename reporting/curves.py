"""`training_curves.png`: loss, validation, learning rate and gradient norm over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TRAIN_COLOUR, EVAL_COLOUR = "#3465a4", "#cc4c02"


def draw_curves(events: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> None:
    """Draws the log events of a run (see `metrics.jsonl`) into a PNG file."""
    # The pure object interface: pyplot keeps global state and looks for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(2, 2)
    loss, accuracy, rate, norm = panels.ravel()
    _plot(loss, events, "loss", "training", TRAIN_COLOUR)
    _plot(loss, events, "eval_loss", "validation", EVAL_COLOUR, marker="o")
    _plot(accuracy, events, "eval_token_accuracy", "tokens right", EVAL_COLOUR, marker="o")
    _plot(accuracy, events, "eval_sequence_accuracy", "answers right", TRAIN_COLOUR, marker="s")
    _plot(rate, events, "learning_rate", None, TRAIN_COLOUR)
    _plot(norm, events, "grad_norm", None, TRAIN_COLOUR)
    accuracy.set_ylim(-0.02, 1.02)
    for panel, name in zip(
        panels.ravel(), ("loss (nats a token)", "validation accuracy", "learning rate", "gradient norm"), strict=True
    ):
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False)
        elif not panel.lines:
            panel.text(0.5, 0.5, "no data", ha="center", va="center", transform=panel.transAxes, color="grey")
    figure.savefig(path, dpi=110)


def _plot(
    panel: Any,
    events: Sequence[Mapping[str, Any]],
    name: str,
    label: str | None,
    colour: str,
    marker: str | None = None,
) -> None:
    points = [(event["step"], event[name]) for event in events if event.get(name) is not None]
    if points:
        steps, values = zip(*points, strict=True)
        panel.plot(steps, values, label=label, color=colour, marker=marker or ("." if len(points) < 3 else None))

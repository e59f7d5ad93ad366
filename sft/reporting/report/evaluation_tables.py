"""Tables of what evaluations found: of all validation rows, of each set, and of experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sft.common.run_records import EvaluationResult
from sft.common.text import change_text, share_text
from sft.reporting.report.records import ReportRecords, best_evaluation, is_number
from sft.reporting.report.tables import Table


def scores_table(records: ReportRecords) -> Table | None:
    """The evaluations side by side: before training, the best, and the last."""
    evaluations = [event for event in records.evaluations if is_number(event["eval_loss"])]
    columns: list[tuple[str, Mapping[str, Any]]] = []
    result = records.result
    if result is not None and result.eval_before is not None:
        columns.append(("before", _as_event(result.eval_before)))
    elif evaluations and evaluations[0]["step"] == 0:
        columns.append(("before", evaluations[0]))
    best = best_evaluation(evaluations)
    if best is not None and 0 < best["step"] < evaluations[-1]["step"]:
        columns.append((f"best (step {best['step']:,})", best))
    if result is not None and result.eval_after is not None:
        columns.append(("after", _as_event(result.eval_after)))
    elif evaluations and evaluations[-1]["step"] > 0:
        columns.append((f"last (step {evaluations[-1]['step']:,})", evaluations[-1]))
    if not columns:
        return None
    kinds = (
        ("validation loss", "eval_loss", "{:.4f}".format),
        ("validation loss, unweighted", "eval_loss_unweighted", "{:.4f}".format),
        ("perplexity", "eval_perplexity", "{:,.2f}".format),
        ("token accuracy", "eval_token_accuracy", share_text),
        ("sequence accuracy", "eval_sequence_accuracy", share_text),
    )
    present = [kind for kind in kinds if kind[1] != "eval_loss_unweighted" or any(kind[1] in e for _, e in columns)]
    rows = tuple((name, *(_figure(event.get(key), form) for _, event in columns)) for name, key, form in present)
    return Table(header=("", *(name for name, _ in columns)), rows=rows)


def experts_table(records: ReportRecords) -> Table | None:
    """How often experts were chosen in the last evaluation, by layer."""
    layers: Sequence[Mapping[str, Any]] = next(
        (event["eval_expert_load"] for event in reversed(records.evaluations) if event.get("eval_expert_load")), ()
    )
    if not layers:
        return None
    rows = (
        (
            str(layer["layer"]),
            share_text(layer["max_share"]),
            share_text(layer["min_share"]),
            share_text(1 / layer["experts"]),
            f"{layer['dead']:,} of {layer['experts']:,}",
        )
        for layer in layers
    )
    return Table(header=("layer", "most chosen", "least chosen", "if even", "never chosen"), rows=tuple(rows))


def _as_event(result: EvaluationResult) -> dict[str, float]:
    return {f"eval_{name}": value for name, value in result.scores().items()}


def _figure(value: Any, form: Callable[[float], str]) -> str:
    if not is_number(value):
        return "NaN or inf"
    return form(value) if abs(value) < 1e8 else f"{value:.1e}"


def sets_table(records: ReportRecords) -> Table | None:
    """Each named validation set, the test sets and the forgetting check, before and after; None without any."""
    result = records.result
    if result is None:
        return None
    pairs = [("validation", result.eval_before, result.eval_after)]
    pairs += [
        (kind, result.at_ends.get(f"{kind}_before"), result.at_ends.get(f"{kind}_after"))
        for kind in ("test", "forgetting")
    ]
    rows = [row for kind, before, after in pairs if after is not None for row in _set_rows(kind, before, after)]
    rows += [row for kind, before, after in pairs if after is not None for row in _answer_rows(kind, before, after)]
    return Table(header=("set", "rows", "figure", "before", "after", "change"), rows=tuple(rows)) if rows else None


def _set_rows(kind: str, before: EvaluationResult | None, after: EvaluationResult) -> Iterator[tuple[str, ...]]:
    kinds: tuple[tuple[str, str, Callable[[float], str], Callable[[float], str]], ...] = (
        ("loss", "loss", "{:.4f}".format, "{:+.4f}".format),
        ("perplexity", "perplexity", "{:,.2f}".format, "{:+,.2f}".format),
        ("token accuracy", "token_accuracy", share_text, change_text),
        ("sequence accuracy", "sequence_accuracy", share_text, change_text),
    )
    for name, one in after.sets.items():
        if name == "validation":
            continue
        earlier = before.sets.get(name) if before is not None else None
        title = name if name == kind else f"{kind}: {name}"
        for label, key, form, form_of_change in kinds:
            new, old = getattr(one, key), getattr(earlier, key, None)
            has_both = is_number(new) and is_number(old)
            change = form_of_change(new - old) if has_both and abs(new - old) < 1e8 else ""
            first = label == "loss"
            rows = f"{one.rows:,}" if first and one.rows is not None else ""
            yield (
                title if first else "",
                rows,
                label,
                "" if old is None else _figure(old, form),
                _figure(new, form),
                change,
            )


def _answer_rows(kind: str, before: EvaluationResult | None, after: EvaluationResult) -> Iterator[tuple[str, ...]]:
    """The scores of generated answers, with their intervals after training."""
    for name, found in after.answers.items():
        earlier = before.answers.get(name, {}) if before is not None else {}
        title = f"answers, {name}" if name == kind else f"answers, {kind}: {name}"
        for number, (metric, own) in enumerate((found.get("intervals") or {}).items()):
            new, old = found[metric], earlier.get(metric)
            yield (
                "" if number else title,
                "" if number else f"{found['rows']:,}",
                metric,
                "" if old is None else f"{old:.3f}",
                f"{new:.3f} ({own['low']:.3f} to {own['high']:.3f}, {own['by']})",
                "" if old is None else f"{new - old:+.3f}",
            )

"""The facts of a report, computed from a run's records; `report.html` and `report.md` both render them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sft.common.data_records import DataReport, LengthReport, SplitReport
from sft.common.text import counted, percent, size
from sft.reporting.log_lines import batch_text, weights_text
from sft.reporting.report.curves import Curve, find_curves
from sft.reporting.report.evaluation_tables import experts_table, scores_table, sets_table
from sft.reporting.report.records import (
    COMPLETED,
    FAILED,
    INTERRUPTED,
    RUNNING,
    AnsweredPrompt,
    ReportRecords,
    is_number,
)
from sft.reporting.report.tables import Table
from sft.reporting.report.usage import reproduce_commands, use_note, use_program
from sft.reporting.report.verdicts.find import find_verdicts
from sft.reporting.report.verdicts.verdict import BAD, GOOD, UNKNOWN, WARN, Verdict

SHOWN_PROMPTS = 12
STATUS_WORDS = {RUNNING: "running", COMPLETED: "completed", INTERRUPTED: "stopped", FAILED: "failed"}
STATUS_STATES = {RUNNING: UNKNOWN, COMPLETED: GOOD, INTERRUPTED: WARN, FAILED: BAD}


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """The row lengths of a split, and the length at which rows are truncated."""

    split: str
    lengths: LengthReport
    max_seq_length: int | None

    @property
    def caption(self) -> str:
        lengths = self.lengths
        return f"median {lengths.median:,}, 99% up to {lengths.p99:,}, longest {lengths.longest:,} tokens"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportFacts:
    """Everything a report shows."""

    title: str
    subtitle: str
    status: str
    status_state: str
    """The status as a verdict's state."""
    is_running: bool
    written_at: str
    headline: str
    verdicts: tuple[Verdict, ...]
    scores: Table | None
    """Evaluations side by side; None where there is none."""
    sets: Table | None
    """Single evaluation sets before and after training; None where there are none with a name."""
    training: Table
    curves: tuple[Curve, ...]
    experts: Table | None
    """How often experts were chosen in the last evaluation, by layer; None for a model without figures of it."""
    prompts: tuple[AnsweredPrompt, ...]
    num_prompts: int
    """All of them; `prompts` holds the first ones."""
    rows: Table
    sources: Table
    dropped: Table | None
    histograms: tuple[Histogram, ...]
    supervised_shares: tuple[tuple[str, float], ...]
    """(split, share of its tokens that is supervised)."""
    given: Table
    """The settings that the user gave."""
    settings_yaml: str
    environment: Table
    reproduce: str
    """Commands for a shell."""
    digests: Table
    use: str
    """A Python program; empty where no model was saved."""
    use_note: str


def find_facts(records: ReportRecords) -> ReportFacts:
    """Everything the report shows, as plain text and numbers."""
    verdicts = find_verdicts(records)
    data = records.data
    limit = records.settings.get("max_seq_length")
    return ReportFacts(
        title=records.name,
        subtitle=_subtitle(records),
        status=STATUS_WORDS[records.status],
        status_state=STATUS_STATES[records.status],
        is_running=records.is_running,
        written_at=records.written_at,
        headline=_headline(records, verdicts),
        verdicts=verdicts,
        scores=scores_table(records),
        sets=sets_table(records),
        training=Table(header=("", "value"), rows=tuple(_training_rows(records))),
        curves=find_curves(records.events),
        experts=experts_table(records),
        prompts=records.prompts[:SHOWN_PROMPTS],
        num_prompts=len(records.prompts),
        rows=_rows_table(data),
        sources=_sources_table(data),
        dropped=_dropped_table(data),
        histograms=tuple(
            Histogram(split=name, lengths=split.lengths, max_seq_length=limit)
            for name, split in _named(data)
            if split.lengths is not None and split.lengths.bin_counts
        ),
        supervised_shares=tuple((name, split.supervised_share) for name, split in _named(data) if split.tokens),
        given=_given_table(records),
        settings_yaml=records.settings_yaml,
        environment=Table(header=("", "value"), rows=tuple(_environment_rows(records))),
        reproduce=reproduce_commands(records),
        digests=_digests_table(records),
        use=use_program(records),
        use_note=use_note(records),
    )


def _named(data: DataReport) -> Iterator[tuple[str, SplitReport]]:
    return (({"train": "training"}.get(name, name), split) for name, split in data.splits.items())


def _subtitle(records: ReportRecords) -> str:
    data = ", ".join(source.name for source in records.data.train.sources)
    how = "LoRA adapters" if records.settings.get("lora_config") else "full fine-tuning"
    if records.settings.get("quantization_config"):
        how = "LoRA adapters on a quantized base model (QLoRA)"
    at = f" at revision {revision}" if (revision := records.settings.get("model_revision")) else ""
    return f"{records.settings.get('model_name_or_path')}{at}, {how}, on {data}"


def _headline(records: ReportRecords, verdicts: tuple[Verdict, ...]) -> str:
    """One line: the status, whether it learned, and how many problems there are."""
    total = records.plan.total_steps
    words = {
        RUNNING: f"Running: step {records.step:,} of {total:,}.",
        COMPLETED: f"{counted(records.step, 'step')} trained.",
        INTERRUPTED: f"Stopped at step {records.step:,} of {total:,}.",
        FAILED: f"Failed at step {records.step:,} of {total:,}.",
    }
    first = verdicts[0]
    wrong = sum(verdict.state in (BAD, WARN) for verdict in verdicts)
    sentence, _, _ = first.sentence.partition(". ")
    learned = "It learned." if first.state == GOOD else f"Did it learn? {sentence.rstrip('.')}."
    rest = "No problems found." if not wrong else f"{counted(wrong, 'verdict')} to check."
    if records.is_running and not wrong:
        rest = "No problems so far."
    return f"{words[records.status]} {learned} {rest}"


def _training_rows(records: ReportRecords) -> Iterator[tuple[str, str]]:
    plan, result = records.plan, records.result
    yield "steps", f"{records.step:,} of {plan.total_steps:,}"
    epochs = result.epochs if result is not None else records.last_of("epoch")
    if epochs is not None:
        yield "epochs", f"{epochs:.2f}"
    yield "batch per step", batch_text(plan)
    if plan.packs is not None:
        yield "packs", f"{plan.packs.num_packs:,} of up to {plan.packs.capacity:,} tokens, {plan.packs.fill:.1%} full"
    footprint = records.footprint
    if footprint is not None:
        trainable, total = footprint.num_trainable_parameters, footprint.num_parameters
        share = percent(trainable, total)
        yield "model", f"{records.model_class}, {total:,} parameters, {trainable:,} trainable ({share})"
    if result is not None:
        yield "time", f"{_duration(result.seconds)}, excluding evaluation and saving"
    losses = [loss for _, loss in records.training_losses if is_number(loss)]
    if losses:
        yield "training loss", f"{losses[0]:.4f} first, {losses[-1]:.4f} last"
    plain = [event["loss_unweighted"] for event in records.events if is_number(event.get("loss_unweighted"))]
    if plain:
        yield "training loss, unweighted", f"{plain[0]:.4f} first, {plain[-1]:.4f} last"
    yield from _speed_rows(records)
    peak = records.figure("peak_memory_bytes")
    if peak:
        yield "peak memory", size(round(peak))
    yield "skipped steps", f"{records.bad_steps:,}"


def _speed_rows(records: ReportRecords) -> Iterator[tuple[str, str]]:
    names = (
        ("examples/s", "examples_per_second", "{:,.1f}"),
        ("tokens/s", "tokens_per_second", "{:,.0f}"),
        ("supervised tokens/s", "supervised_tokens_per_second", "{:,.0f}"),
    )
    for name, field, form in names:
        value = records.figure(field)
        if value is not None:
            yield name, form.format(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _rows_table(data: DataReport) -> Table:
    kinds = (
        ("rows read", lambda s: f"{s.rows_read:,}{f' ({s.rows_made:,} of them made)' if s.rows_made else ''}"),
        ("rows used", lambda s: f"{s.rows_used:,}"),
        ("rows dropped", lambda s: f"{s.num_dropped:,} ({percent(s.num_dropped, s.rows_read)})"),
        ("tokens", lambda s: f"{s.tokens:,}"),
        ("supervised tokens", lambda s: f"{s.supervised_tokens:,} ({percent(s.supervised_tokens, s.tokens)})"),
        ("longest row used", lambda s: f"{s.longest_row:,} tokens"),
        ("median length", lambda s: f"{s.lengths.median:,} tokens" if s.lengths else "none"),
        ("longer than max_seq_length", lambda s: f"{s.rows_too_long:,}"),
        ("truncated in supervised tokens", lambda s: f"{s.rows_that_lose_the_end:,}"),
        ("with a trained end token", lambda s: f"{s.rows_with_trained_end:,}"),
        ("duplicates", lambda s: f"{s.duplicates:,}"),
    )
    splits = list(_named(data))
    rows = [(name, *(value_of(split) for _, split in splits)) for name, value_of in kinds]
    if any(split.weights is not None for _, split in splits):
        texts = (weights_text(split.weights, split.rows_used) if split.weights else "all 1" for _, split in splits)
        rows.append(("weights in the loss", *texts))
    leaks = {"validation": data.leakage} | {one.title: one.leakage for one in data.sets if one.kind != "validation"}
    if len(splits) > 1:
        rows.append(("also in the training data", "", *(f"{leaks[name]:,}" for name, _ in splits[1:])))
    return Table(header=("", *(name for name, _ in splits)), rows=tuple(rows))


def _sources_table(data: DataReport) -> Table:
    rows = tuple(
        (name, source.name, source.format_name, f"{source.rows_read:,}", f"{source.rows_used:,}", source.share_figure)
        for name, split in _named(data)
        for source in split.sources
    )
    return Table(header=("split", "source", "format", "read", "used", "weight"), rows=rows)


def _dropped_table(data: DataReport) -> Table | None:
    rows = []
    for name, split in _named(data):
        for reason, count in split.rows_dropped.items():
            first = next((row for row in split.dropped_examples if row.problem.reason == reason), None)
            example = f"{first.source}: {first.problem.message}" if first is not None else ""
            rows.append((name, reason, f"{count:,}", example))
    return Table(header=("split", "reason", "rows", "first example"), rows=tuple(rows)) if rows else None


def _given_table(records: ReportRecords) -> Table:
    """The given keys, their values, and where they were given; nested keys by their path."""
    rows = []
    for key, where in records.given.items():
        value: Any = records.settings
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if not isinstance(value, Mapping):
            rows.append((key, "none" if value is None else str(value), str(where)))
    return Table(header=("key", "value", "given in"), rows=tuple(rows))


def _environment_rows(records: ReportRecords) -> Iterator[tuple[str, str]]:
    machine = records.machine
    yield "device", f"{machine.device} ({machine.device_name})"
    if machine.device_memory_bytes:
        yield "memory", f"{size(machine.device_memory_bytes)} per device"
    yield "CPU cores", f"{machine.num_cores:,}"
    here = f", {machine.processes_here} on this machine" if machine.processes_here < records.plan.world_size else ""
    yield "processes", f"{records.plan.world_size:,}{here}"
    yield "system", machine.system
    yield from machine.versions.items()


def _digests_table(records: ReportRecords) -> Table:
    rows = [("configuration", records.config_sha256)]
    rows += [
        (f"{name} rows", str(records.data_digests[name]))
        for name in ("train", "validation")
        if records.data_digests.get(name)
    ]
    return Table(header=("", "sha256"), rows=tuple(row for row in rows if row[1]))

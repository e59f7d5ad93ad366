"""The lines and tables of the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sft.common.data_records import DataReport, SplitReport
from sft.common.run_records import BatchPlan, EvaluationResult, ModelFootprint, Precision, SampleAnswer
from sft.common.text import change_text, counted, first_of, note_text, percent, printable, share_text
from sft.configuration.schema import QuantizationConfig
from sft.reporting.time_left import clock

SHOWN_PLACES = 3
LONGEST_SHOWN = 300


def data_lines(report: DataReport) -> list[str]:
    """What became of every row, in short; the preflight tells it in full."""
    lines: list[str] = []
    if not report.is_complete:
        lines.append("The training rows are streamed: their counts below are of the first ones, looked at beforehand.")
    for name, split in zip(("Train", "Validation"), report.splits, strict=False):
        lines += _split_lines(name, split)
    if report.leakage:
        pairs = [f"{row} is {original}" for row, original in report.leakage_examples[:SHOWN_PLACES]]
        lines.append(
            f"  leakage: {counted(report.leakage, 'validation row')} among the training rows too: "
            f"{first_of(pairs, report.leakage)}."
        )
    return [printable(line) for line in lines]


def _split_lines(name: str, split: SplitReport) -> list[str]:
    lines = [
        f"{name} rows: {split.rows_read:,} read = {split.rows_used:,} used + {split.num_dropped:,} dropped; "
        f"{counted(split.tokens, 'token')}, {percent(split.supervised_tokens, split.tokens)} trained, "
        f"longest row {split.longest_row:,}."
    ]
    if len(split.sources) > 1 or any(source.weight != 1 for source in split.sources):
        for source in split.sources:
            lines.append(
                f"  {source.name}: {source.rows_read:,} read, {source.rows_used:,} used, weight {source.weight:g}: "
                f"{counted(source.rows_an_epoch, 'row')} an epoch"
            )
    for reason, count in split.rows_dropped.items():
        places = [str(row.source) for row in split.dropped_examples if row.problem.reason == reason]
        lines.append(f"  dropped {count:,} {reason}: {first_of(places[:SHOWN_PLACES], count)}")
    if split.rows_too_long:
        lines.append(
            f"  longer than max_seq_length: {counted(split.rows_too_long, 'row')}; {split.rows_that_lose_the_answer:,} "
            f"lose all of the answer, {split.rows_that_lose_the_end:,} its end, "
            f"{split.rows_that_lose_only_prompt:,} only prompt."
        )
    without_end = split.rows_used - split.rows_with_trained_end
    if without_end:
        lines.append(f"  no end token is trained in {counted(without_end, 'row')}: they do not teach where to stop.")
    lines += [f"  {note_text(note, count)}." for note, count in split.notes.items()]
    if split.duplicates:
        pairs = [f"{row} repeats {original}" for row, original in split.duplicate_examples[:SHOWN_PLACES]]
        lines.append(f"  duplicates: {counted(split.duplicates, 'row')}: {first_of(pairs, split.duplicates)}.")
    return lines


def model_line(
    footprint: ModelFootprint, class_name: str, precision: Precision, quantization: QuantizationConfig | None
) -> str:
    """What is trained, in which types."""
    share = percent(footprint.num_trainable_parameters, footprint.num_parameters)
    autocast = {"no": "no mixed precision", "bf16": "mixed precision in bfloat16", "fp16": "mixed precision in float16"}
    weights = f"weights {precision.weights}"
    if quantization is not None:
        bits = f"4 bits ({quantization.bnb_4bit_quant_type})" if quantization.load_in_4bit else "8 bits"
        weights = f"base weights in {bits}, the rest of them {precision.weights}, adapters float32"
    return (
        f"Model: {class_name}, {footprint.num_parameters:,} parameters, {footprint.num_trainable_parameters:,} trained "
        f"({share}); {weights}, {autocast[precision.mixed]}."
    )


def plan_line(plan: BatchPlan, device: str) -> str:
    """How many rows a step sees, and how many steps there are."""
    packs = ""
    if plan.packs is not None:
        packs = f" {plan.packs.num_packs:,} packs of up to {plan.packs.capacity:,} tokens, {plan.packs.fill:.1%} full."
    return (
        f"Plan: {plan.per_device_train_batch_size} {plan.unit} x {plan.gradient_accumulation_steps} accumulated x "
        f"{plan.world_size} processes = {plan.global_batch_size} {plan.unit} a step; {plan.steps_per_epoch:,} steps an "
        f"epoch, {plan.total_steps:,} in all; on {device}.{packs}"
    )


def place_line(device_name: str, output_dir: str, logging_dir: str | None) -> str:
    """Where it is trained, where the result goes, and where its course can be watched."""
    watched = f"; its course: tensorboard --logdir {logging_dir}" if logging_dir else ""
    return f"Device: {device_name}. Output: {output_dir}{watched}."


def trial_line(what: str, size: int, unit: str, tried: Sequence[int], peak_bytes: int | None, budget_bytes: int) -> str:
    """A batch size that was found by trial."""
    return (
        f"{what}: {counted(size, unit)} at a time on each device, found by trial (of {', '.join(map(str, tried))}): "
        "at most "
        f"{(peak_bytes or 0) / 2**30:.2f} GiB with the longest, of a budget of {budget_bytes / 2**30:.2f} GiB."
    )


def progress_line(step: int, total_steps: int, logs: Mapping[str, float], seconds_left: float | None = None) -> str:
    """One logged step; with the time left where no line on a terminal shows it."""
    parts = [f"step {step:>{len(str(total_steps))}}/{total_steps}", f"loss {logs['loss']:.4f}"]
    if "learning_rate" in logs:
        parts.append(f"lr {logs['learning_rate']:.2e}")
    if "grad_norm" in logs:
        parts.append(f"grad {logs['grad_norm']:.2f}")
    if "tokens_per_second" in logs:
        parts.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
    if "peak_memory_bytes" in logs:
        parts.append(f"peak {logs['peak_memory_bytes'] / 2**30:.1f} GiB")
    if seconds_left is not None and step < total_steps:
        parts.append(f"{clock(seconds_left)} left")
    return "  ".join(parts)


def evaluation_line(step: int, logs: Mapping[str, float], before: Mapping[str, float] | None) -> str:
    """One evaluation, with the change of the loss since the last."""
    change = f" ({logs['eval_loss'] - before['eval_loss']:+.4f})" if before else ""
    tokens, answers = share_text(logs["eval_token_accuracy"]), share_text(logs["eval_sequence_accuracy"])
    return (
        f"  validation at step {step}: loss {logs['eval_loss']:.4f}{change}, perplexity {logs['eval_perplexity']:.2f}, "
        f"tokens right {tokens}, answers right {answers}"
    )


def live_parts(
    step: int, total_steps: int, doing: str, seconds_left: float | None, logs: Mapping[str, float]
) -> list[str]:
    """The line that a terminal shows while it runs, in parts, the most important first.

    Args:
        step, total_steps: how far training is.
        doing: what it waits for; empty while it trains.
        seconds_left: None where that is not known yet.
        logs: what the last logged step said.
    """
    parts = [f"step {step:>{len(str(total_steps))}}/{total_steps} {step / max(total_steps, 1):4.0%}"]
    if doing:
        parts.append(f"{doing} ...")
    if seconds_left is not None:
        parts.append(f"{clock(seconds_left)} left")
    if "loss" in logs:
        parts.append(f"loss {logs['loss']:.4f}")
    if "tokens_per_second" in logs:
        parts.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
    if "memory_allocated_bytes" in logs:
        parts.append(f"{logs['memory_allocated_bytes'] / 2**30:.1f} GiB")
    if "learning_rate" in logs:
        parts.append(f"lr {logs['learning_rate']:.2e}")
    return parts


def evaluation_table(step: int, logs: Mapping[str, float], before: Mapping[str, float] | None) -> list[str]:
    """One evaluation as a small table, with the change since the last."""
    lines = [f"validation at step {step:<8}{'':9}" + ("change" if before else "")]
    shown = (
        ("loss", "eval_loss", "{:.4f}".format, "{:+.4f}".format),
        ("perplexity", "eval_perplexity", "{:,.2f}".format, "{:+,.2f}".format),
        ("tokens right", "eval_token_accuracy", share_text, change_text),
        ("answers right", "eval_sequence_accuracy", share_text, change_text),
    )
    for name, key, form, form_of_change in shown:
        change = f"{form_of_change(logs[key] - before[key]):>14}" if before else ""
        lines.append(f"  {name:14}{form(logs[key]):>12}{change}".rstrip())
    return [line.rstrip() for line in lines]


def before_and_after_lines(before: EvaluationResult | None, after: EvaluationResult | None) -> list[str]:
    """The evaluations before and after training, side by side."""
    if before is None or after is None:
        return []
    rows = [
        ("validation loss", f"{before.loss:.4f}", f"{after.loss:.4f}"),
        ("perplexity", _perplexity(before), _perplexity(after)),
        ("tokens right", share_text(before.token_accuracy), share_text(after.token_accuracy)),
        ("answers right", share_text(before.sequence_accuracy), share_text(after.sequence_accuracy)),
    ]
    return [f"{'':16}{'before':>16}{'after':>16}"] + [f"{name:16}{old:>16}{new:>16}" for name, old, new in rows]


def _perplexity(result: EvaluationResult) -> str:
    return f"{result.perplexity:,.2f}" if result.perplexity < 1e8 else f"{result.perplexity:.1e}"


def sample_lines(samples: Sequence[SampleAnswer]) -> list[str]:
    """Prompts with their answers before and after training."""
    lines = []
    for sample in samples:
        lines += ["", f"prompt  {_shortened(sample.prompt)}", f"before  {_shortened(sample.before)}"]
        lines.append(f"after   {_shortened(sample.after)}")
        if sample.reference is not None:
            lines.append(f"data    {_shortened(sample.reference)}")
    return lines


def _shortened(text: str) -> str:
    """On one line, its middle left out where it is long; nothing in it acts on the terminal."""
    line = printable(text.strip().replace("\n", " / "))
    if len(line) <= LONGEST_SHOWN:
        return line
    return f"{line[: LONGEST_SHOWN * 2 // 3]} ... {line[-LONGEST_SHOWN // 3 :]}"

"""Lines and tables of the log."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from sft.common.data_records import DataReport, SplitReport
from sft.common.machine_records import ComputeEnvironment
from sft.common.run_records import BatchPlan, EvaluationResult, ModelFootprint, Precision, SampleAnswer
from sft.common.text import change_text, counted, first_of, note_text, percent, printable, share_text
from sft.common.weight_records import WeightReport
from sft.configuration.schema import QuantizationConfig
from sft.reporting.remarks import split_remark_lines
from sft.reporting.time_left import clock

SHOWN_ROWS = 3
"""Rows that a line names as examples."""
MIXED_NAMES = {"no": "no mixed precision", "bf16": "bfloat16 mixed precision", "fp16": "float16 mixed precision"}
"""`Precision.mixed` -> its name."""
MAX_CHARACTERS = 300
"""Of a prompt or an answer."""


def data_lines(report: DataReport) -> list[str]:
    """What happened to every row, in short; the preflight report has the details."""
    lines: list[str] = []
    if not report.is_complete:
        lines.append("The training data is streamed: the counts below cover only its first rows, read before training.")
    for name, split in report.splits.items():
        lines += _split_lines({"train": "Training"}.get(name, name.capitalize()), split)
    sets = [f"{one.name} {counted(one.split.rows_used, 'row')}" for one in report.sets if one.kind == "validation"]
    if sets:
        lines.append(f"  validation sets: {', '.join(sets)}; figures of all of them are means over their tokens")
    leaks = [("validation", report.leakage, report.leakage_examples)]
    leaks += [(one.title, one.leakage, one.leakage_examples) for one in report.sets if one.kind != "validation"]
    for name, leakage, examples in leaks:
        if leakage:
            pairs = [f"{row} is {original}" for row, original in examples[:SHOWN_ROWS]]
            verb = "is" if leakage == 1 else "are"
            lines.append(
                f"  leakage: {counted(leakage, f'{name} row')} {verb} also in the training data: "
                f"{first_of(pairs, leakage)}"
            )
    return [printable(line) for line in lines]


def _split_lines(name: str, split: SplitReport) -> list[str]:
    lines = [
        f"{name} data: {counted(split.rows_read, 'row')} = {split.rows_used:,} used + {split.num_dropped:,} dropped; "
        f"{counted(split.tokens, 'token')} ({percent(split.supervised_tokens, split.tokens)} supervised), longest row "
        f"{counted(split.longest_row, 'token')}."
    ]
    if len(split.sources) > 1 or any(source.weight != 1 for source in split.sources):
        for source in split.sources:
            lines.append(
                f"  {source.name}: {counted(source.rows_read, 'row')}, {source.rows_used:,} used, "
                f"{source.share}: {counted(source.rows_an_epoch, 'row')} per epoch."
            )
    for reason, count in split.rows_dropped.items():
        rows = [str(row.source) for row in split.dropped_examples if row.problem.reason == reason]
        lines.append(f"  dropped: {counted(count, 'row')} ({reason}): {first_of(rows[:SHOWN_ROWS], count)}")
    if split.rows_too_long:
        lines.append(
            f"  longer than max_seq_length: {counted(split.rows_too_long, 'row')}; truncation removes the entire "
            f"answer of {split.rows_that_lose_the_answer:,}, its end of {split.rows_that_lose_the_end:,}, only prompt "
            f"tokens of {split.rows_that_lose_only_prompt:,}."
        )
    if split.weights is not None:
        lines.append(f"  weights in the loss: {weights_text(split.weights, split.rows_used)}.")
    without_end = split.rows_used - split.rows_with_trained_end
    if without_end:
        lines.append(
            f"  no trained end token: {counted(without_end, 'row')}, which do not teach the model when to stop."
        )
    lines += [f"  {note_text(note, count)}." for note, count in split.notes.items()]
    lines += [f"  {text}." for _, text in split_remark_lines(split)]
    if split.duplicates:
        pairs = [f"{row} repeats {original}" for row, original in split.duplicate_examples[:SHOWN_ROWS]]
        lines.append(f"  duplicates: {counted(split.duplicates, 'row')}: {first_of(pairs, split.duplicates)}")
    return lines


def weights_text(weights: WeightReport, rows: int) -> str:
    """Which tokens of the used rows do not count once in the loss."""
    parts = []
    if weights.rows:
        parts.append(
            f"{weights.rows:,} of {counted(rows, 'row')} have supervised tokens ({weights.tokens:,}) whose weight is "
            f"not 1; weights are {weights.lowest:g} to {weights.highest:g}"
        )
    if weights.prompt_tokens:
        parts.append(f"{counted(weights.prompt_tokens, 'prompt token')} trained with prompt_loss_weight")
    return "; ".join(parts)


def model_line(
    footprint: ModelFootprint, class_name: str, precision: Precision, quantization: QuantizationConfig | None
) -> str:
    """The model, its parameters and data types."""
    share = percent(footprint.num_trainable_parameters, footprint.num_parameters)
    weights = f"{precision.weights} weights"
    if quantization is not None:
        kind = f"4-bit ({quantization.bnb_4bit_quant_type})" if quantization.load_in_4bit else "8-bit"
        weights = f"{kind} base weights ({precision.weights} where not quantized), float32 adapters"
    return (
        f"Model: {class_name}, {footprint.num_parameters:,} parameters, "
        f"{footprint.num_trainable_parameters:,} trainable ({share}); {weights}, {mixed_text(precision)}."
    )


def mixed_text(precision: Precision) -> str:
    """`bfloat16 mixed precision`, with the reason for it."""
    name = MIXED_NAMES[precision.mixed]
    return f"{name} ({precision.reason})" if precision.reason else name


def plan_line(plan: BatchPlan, device: str) -> str:
    """Rows per step, and the number of steps."""
    packs = ""
    if plan.packs is not None:
        fill = f"{plan.packs.fill:.1%} full"
        packs = f" Packing: {plan.packs.num_packs:,} packs of up to {plan.packs.capacity:,} tokens, {fill}."
    unit = plan.unit.removesuffix("s")
    return (
        f"Plan: {counted(plan.per_device_train_batch_size, unit)} per device x {plan.gradient_accumulation_steps:,} "
        f"accumulated x {counted(plan.world_size, 'process')} = {counted(plan.global_batch_size, unit)} per step; "
        f"{counted(plan.steps_per_epoch, 'step')} per epoch, {plan.total_steps:,} in total, on {device}.{packs}"
    )


def batch_text(plan: BatchPlan) -> str:
    """`8 rows = 2 per device x 4 accumulated x 1 process`."""
    rows = counted(plan.global_batch_size, plan.unit.removesuffix("s"))
    return (
        f"{rows} = {plan.per_device_train_batch_size:,} per device x {plan.gradient_accumulation_steps:,} accumulated "
        f"x {counted(plan.world_size, 'process')}"
    )


def output_line(environment: ComputeEnvironment, output_dir: str, logging_dir: str | None) -> str:
    """The device, the output folder, and how to watch the run."""
    device = environment.gpu or f"{environment.cpu}, {counted(environment.num_threads, 'thread')}"
    watch = f" Watch it with: tensorboard --logdir {logging_dir}" if logging_dir else ""
    return f"Device: {device}. Output: {output_dir}.{watch}"


def trial_line(what: str, size: int, unit: str, tried: Sequence[int], peak_bytes: int | None, budget_bytes: int) -> str:
    """A micro-batch size that was found by trial."""
    return (
        f"{what}: {counted(size, unit)} per device, found by trial (tried {', '.join(map(str, tried))}): peak memory "
        f"{(peak_bytes or 0) / 2**30:.2f} GiB with the longest rows, budget {budget_bytes / 2**30:.2f} GiB."
    )


def progress_line(step: int, total_steps: int, logs: Mapping[str, float], seconds_left: float | None = None) -> str:
    """One logged step; with the time left if no progress line on a terminal shows it."""
    parts = [f"step {step:>{len(str(total_steps))}}/{total_steps}", f"loss {logs['loss']:.4f}"]
    if "loss_unweighted" in logs:
        parts.append(f"unweighted {logs['loss_unweighted']:.4f}")
    if "router_aux_loss" in logs:
        parts.append(f"router loss {logs['router_aux_loss']:.4f}")
    if "learning_rate" in logs:
        parts.append(f"lr {logs['learning_rate']:.2e}")
    if "grad_norm" in logs:
        parts.append(f"grad norm {logs['grad_norm']:.2f}")
    if "tokens_per_second" in logs:
        parts.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
    if "peak_memory_bytes" in logs:
        parts.append(f"peak {logs['peak_memory_bytes'] / 2**30:.1f} GiB")
    if seconds_left is not None and step < total_steps:
        parts.append(f"{clock(seconds_left)} left")
    return "  ".join(parts)


def evaluation_line(step: int, logs: Mapping[str, float], before: Mapping[str, float] | None) -> str:
    """One evaluation, with the change of the loss since the previous one."""
    change = f" ({logs['eval_loss'] - before['eval_loss']:+.4f})" if before else ""
    if "eval_loss_unweighted" in logs:
        change += f", unweighted {logs['eval_loss_unweighted']:.4f}"
    tokens, answers = share_text(logs["eval_token_accuracy"]), share_text(logs["eval_sequence_accuracy"])
    return (
        f"  validation at step {step}: loss {logs['eval_loss']:.4f}{change}, perplexity {logs['eval_perplexity']:.2f}, "
        f"token accuracy {tokens}, sequence accuracy {answers}{_experts_text(logs)}{_sets_text(logs)}"
    )


def set_names_in(logs: Mapping[str, float]) -> list[str]:
    """Names of the validation sets that an evaluation logged."""
    return [name[len("eval_") : -len("_perplexity")] for name in logs if re.fullmatch("eval_.+_perplexity", name)]


def _sets_text(logs: Mapping[str, float]) -> str:
    """The loss of each named set; empty without any."""
    losses = [f"{name} {logs[f'eval_{name}_loss']:.4f}" for name in set_names_in(logs)]
    return f"; loss by set: {', '.join(losses)}" if losses else ""


def _experts_text(logs: Mapping[str, float]) -> str:
    """How evenly experts were chosen; empty for a model without them."""
    if "eval_expert_max_share" not in logs:
        return ""
    least, most = share_text(logs["eval_expert_min_share"]), share_text(logs["eval_expert_max_share"])
    return f", experts chosen {least} to {most} (never: {logs['eval_dead_experts']:,})"


def live_parts(
    step: int, total_steps: int, doing: str, seconds_left: float | None, logs: Mapping[str, float]
) -> list[str]:
    """The progress line of a terminal in parts, the most important first.

    Args:
        step, total_steps: the progress.
        doing: what training waits for; empty while it trains.
        seconds_left: None if not known yet.
        logs: of the last logged step.
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


def evaluation_rows(logs: Mapping[str, float], before: Mapping[str, float] | None) -> list[list[str]]:
    """One evaluation as rows of a table: name, value, and the change since the previous one if there is one."""
    shown = (
        ("loss", "eval_loss", "{:.4f}".format, "{:+.4f}".format),
        ("loss, unweighted", "eval_loss_unweighted", "{:.4f}".format, "{:+.4f}".format),
        ("perplexity", "eval_perplexity", "{:,.2f}".format, "{:+,.2f}".format),
        ("token accuracy", "eval_token_accuracy", share_text, change_text),
        ("sequence accuracy", "eval_sequence_accuracy", share_text, change_text),
    )
    loss = shown[0][2:]
    of_sets = [(f"loss of {name}", f"eval_{name}_loss", *loss) for name in set_names_in(logs)]
    return [
        [name, form(logs[key]), *([form_of_change(logs[key] - before[key])] if before else [])]
        for name, key, form, form_of_change in (*shown, *of_sets)
        if key in logs
    ]


def before_and_after_rows(
    before: EvaluationResult | None,
    after: EvaluationResult | None,
    at_ends: Mapping[str, EvaluationResult] | None = None,
) -> list[list[str]]:
    """The evaluations before and after training, side by side: a header and rows; empty if there are none.

    Args:
        before, after: of the validation data.
        at_ends: `TrainingResult.at_ends`.
    """
    rows = _validation_rows(before, after)
    for kind in ("test", "forgetting"):
        rows += _set_rows(kind, *((at_ends or {}).get(f"{kind}_{when}") for when in ("before", "after")))
    return [["", "before", "after"], *rows] if rows else []


def _set_rows(kind: str, before: EvaluationResult | None, after: EvaluationResult | None) -> list[list[str]]:
    """Loss and sequence accuracy of each set with a name, and of an only set that is not the validation data."""
    if before is None or after is None:
        return []
    rows = []
    for name, one in after.sets.items():
        if name == "validation" or name not in before.sets:
            continue
        title, earlier = name if name == kind else f"{kind} {name}", before.sets[name]
        rows.append([f"{title} loss", f"{earlier.loss:.4f}", f"{one.loss:.4f}"])
        rows.append(["  sequence accuracy", share_text(earlier.sequence_accuracy), share_text(one.sequence_accuracy)])
    return rows


def _validation_rows(before: EvaluationResult | None, after: EvaluationResult | None) -> list[list[str]]:
    if before is None or after is None:
        return []
    plain = [(before.loss_unweighted, after.loss_unweighted)] if after.loss_unweighted is not None else []
    return [
        ["validation loss", f"{before.loss:.4f}", f"{after.loss:.4f}"],
        *(["  unweighted", *("" if loss is None else f"{loss:.4f}" for loss in both)] for both in plain),
        ["perplexity", _perplexity(before), _perplexity(after)],
        ["token accuracy", share_text(before.token_accuracy), share_text(after.token_accuracy)],
        ["sequence accuracy", share_text(before.sequence_accuracy), share_text(after.sequence_accuracy)],
        *_set_rows("validation", before, after),
    ]


def before_and_after_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """The same as plain lines."""
    width = max(18, *(len(name) + 1 for name, _, _ in rows)) if rows else 0
    return [f"{name:{width}}{old:>14}{new:>14}" for name, old, new in rows]


def _perplexity(result: EvaluationResult) -> str:
    return f"{result.perplexity:,.2f}" if result.perplexity < 1e8 else f"{result.perplexity:.1e}"


def sample_lines(samples: Sequence[SampleAnswer]) -> list[str]:
    """Prompts with their answers before and after training."""
    lines = []
    for sample in samples:
        lines += ["", f"prompt     {_shortened(sample.prompt)}", f"before     {_shortened(sample.before)}"]
        lines.append(f"after      {_shortened(sample.after)}")
        if sample.reference is not None:
            lines.append(f"reference  {_shortened(sample.reference)}")
    return lines


def _shortened(text: str) -> str:
    """On one line, without the middle of a long text; nothing in it acts on the terminal."""
    line = printable(text.strip().replace("\n", " / "))
    if len(line) <= MAX_CHARACTERS:
        return line
    return f"{line[: MAX_CHARACTERS * 2 // 3]} ... {line[-MAX_CHARACTERS // 3 :]}"

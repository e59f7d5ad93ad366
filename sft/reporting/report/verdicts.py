"""What a run's records say in plain words. Each verdict comes with the figures and the rule that it follows from.

The rules are fixed numbers, not opinions: the same records always give the same words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sft.common.text import change_text, counted, percent, share_text, size
from sft.reporting.report.data_verdict import DATA_RULE, data_findings
from sft.reporting.report.records import COMPLETED, FAILED, RUNNING, ReportRecords, best_evaluation, is_number

GOOD, WARN, BAD, UNKNOWN = "good", "warn", "bad", "unknown"
CHANGE_SHARE = 0.02
"""A validation loss that moves by less than this share of itself has hardly moved."""
RISE_SHARE, RISE_NATS = 0.01, 0.01
"""A validation loss has risen from its best if it did by both: a share of it, and nats a token."""
DIVERGED_SHARE, DIVERGED_NATS = 0.2, 0.1
"""A training loss has run away if it ends above its start by both."""
TRAINING_FALL = 0.05
"""Without validation: a training loss that fell by this share has learned its rows."""
WINDOW = 5
"""Logged training losses that are averaged, since single ones jump."""
BUSY, IDLE = 0.6, 0.3
"""Shares of the time between which a device is partly used."""
ROOM = 0.5
"""A GPU of which less than this share is ever held has room for more rows at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """An answer to a question that a person has."""

    question: str
    state: str
    """`good`, `warn`, `bad`, or `unknown` where the records do not tell."""
    sentence: str
    figures: str
    rule: str


def find_verdicts(records: ReportRecords) -> tuple[Verdict, ...]:
    """All verdicts, the one that matters most first."""
    found = [
        learned_verdict(records),
        overfit_verdict(records),
        ending_verdict(records),
        length_verdict(records),
        data_verdict(records),
        steps_verdict(records),
        hardware_verdict(records),
        endings_verdict(records),
    ]
    return tuple(verdict for verdict in found if verdict is not None)


def learned_verdict(records: ReportRecords) -> Verdict:
    """Whether the validation loss fell; by the training loss alone where there is no validation."""
    question = "Did it learn?"
    runaway = _runaway(records)
    if runaway:
        return Verdict(question=question, state=BAD, **runaway)
    before, after = _losses_before_and_after(records)
    if before is None or after is None:
        return _learned_by_training_loss(question, records)
    change = (after - before) / before if before else 0.0
    figures = f"Validation loss {before:.4f} before, {after:.4f} {_when(records)} ({change_text(change)})."
    rule = (
        f"It learned where the validation loss fell by {CHANGE_SHARE:.0%} or more, and got worse where it rose by as "
        "much; nats a token, before training against the last."
    )
    if change <= -CHANGE_SHARE:
        state, sentence = GOOD, "Yes. It predicts rows that it was not trained on better than before."
    elif change < CHANGE_SHARE:
        state, sentence = WARN, "No. On rows that it was not trained on it is about as good as before."
    else:
        state, sentence = BAD, "No. On rows that it was not trained on it is worse than before."
    return Verdict(question=question, state=state, sentence=sentence, figures=figures, rule=rule)


def _losses_before_and_after(records: ReportRecords) -> tuple[float | None, float | None]:
    """Validation losses: before the first step, and of the model as it is."""
    evaluations = [event for event in records.evaluations if is_number(event["eval_loss"])]
    first = evaluations[0]["eval_loss"] if evaluations and evaluations[0]["step"] == 0 else None
    later = [event["eval_loss"] for event in evaluations if event["step"] > 0]
    last = later[-1] if later else None
    if records.result is not None:
        before, after = records.result.eval_before, records.result.eval_after
        first = before.loss if before is not None and is_number(before.loss) else first
        last = after.loss if after is not None and is_number(after.loss) else last
    return first, last


def _when(records: ReportRecords) -> str:
    """Which model the last validation loss is of: the one at the end, or one of an earlier step."""
    if records.result is not None and records.result.eval_after is not None:
        return "after"
    return f"at step {records.evaluations[-1]['step']:,}"


def _learned_by_training_loss(question: str, records: ReportRecords) -> Verdict:
    losses = [loss for _, loss in records.training_losses if is_number(loss)]
    rule = (
        f"Without an evaluation before and after, only the training loss is left: mean of the first {WINDOW} logged "
        f"losses against the last {WINDOW}; a fall of {TRAINING_FALL:.0%} or more counts."
    )
    no_validation = records.data.validation is None
    why = "there is no validation data" if no_validation else "no evaluation after the start is there yet"
    if len(losses) < 2:
        sentence = f"Not known yet: {why}, and too little was logged."
        return Verdict(question=question, state=UNKNOWN, sentence=sentence, figures="", rule=rule)
    width = min(WINDOW, len(losses) // 2)
    first, last = _mean(losses[:width]), _mean(losses[-width:])
    change = (last - first) / first if first else 0.0
    figures = f"Training loss {first:.4f} at first, {last:.4f} at last ({change_text(change)})."
    if change <= -TRAINING_FALL:
        state = UNKNOWN
        sentence = f"Its own training rows, yes. Whether that holds on others is not known: {why}."
    else:
        state, sentence = WARN, f"Hardly: the training loss did not fall. On other rows it is not known: {why}."
    if no_validation:
        sentence += " Give it validation_file or validation_split."
    return Verdict(question=question, state=state, sentence=sentence, figures=figures, rule=rule)


def _runaway(records: ReportRecords) -> dict[str, str] | None:
    """What there is to say of a run whose loss is no number, or ends far above its start."""
    losses = records.training_losses
    rule = (
        f"It diverged where a logged loss is no finite number, or the last {WINDOW} training losses are on average "
        f"{DIVERGED_SHARE:.0%} and {DIVERGED_NATS} nats above the first."
    )
    lost = next((step for step, loss in losses if not is_number(loss)), None)
    if lost is None:
        lost = next((e["step"] for e in records.evaluations if not is_number(e["eval_loss"])), None)
    if lost is not None:
        return {
            "sentence": "No. It diverged: its loss is no finite number. Lower learning_rate, or compute in bf16.",
            "figures": f"First seen at step {lost:,}.",
            "rule": rule,
        }
    if len(losses) < 2 * WINDOW:
        return None
    first, last = losses[0][1], _mean([loss for _, loss in losses[-WINDOW:]])
    if last < first * (1 + DIVERGED_SHARE) or last < first + DIVERGED_NATS:
        return None
    return {
        "sentence": "No. It diverged: the training loss ends far above its start. Lower learning_rate.",
        "figures": f"Training loss {first:.4f} at step {losses[0][0]:,}, {last:.4f} at last.",
        "rule": rule,
    }


def overfit_verdict(records: ReportRecords) -> Verdict | None:
    """Whether the validation loss rose from its best while the training loss went on falling."""
    question = "Does it overfit?"
    rule = (
        f"It overfits where the validation loss rose from its best by {RISE_SHARE:.0%} and {RISE_NATS} nats or more "
        f"while the training loss (mean of {WINDOW} logged) fell."
    )
    evaluations = records.evaluations
    best = best_evaluation(evaluations)
    if best is None or len(evaluations) < 2:
        why = "there is no validation data" if records.data.validation is None else "there is one evaluation at most"
        return Verdict(question=question, state=UNKNOWN, sentence=f"Not known: {why}.", figures="", rule=rule)
    last = evaluations[-1]
    if not is_number(last["eval_loss"]):
        return None  # it diverged, which is told already
    rise = last["eval_loss"] - best["eval_loss"]
    at_best, at_last = _training_loss_at(records, best["step"]), _training_loss_at(records, last["step"])
    figures = f"Validation loss {best['eval_loss']:.4f} at its best, step {best['step']:,}"
    if last is not best:
        figures += f", {last['eval_loss']:.4f} at step {last['step']:,}"
        if at_best is not None and at_last is not None:
            figures += f"; training loss {at_best:.4f} there, {at_last:.4f} here"
    state, sentence = _overfit_words(records, rise, best, at_best, at_last)
    return Verdict(question=question, state=state, sentence=sentence, figures=f"{figures}.", rule=rule)


def _overfit_words(
    records: ReportRecords, rise: float, best: dict, at_best: float | None, at_last: float | None
) -> tuple[str, str]:
    if not (rise >= RISE_NATS and rise >= RISE_SHARE * best["eval_loss"]):
        if sum(event["step"] > 0 for event in records.evaluations) < 2:
            return UNKNOWN, "No sign of it, but one evaluation does not show a rise: lower eval_steps to see more."
        return GOOD, "No. The validation loss ends at its best, or as near as makes no difference."
    if at_best is None or at_last is None:
        return WARN, "Perhaps: the validation loss rose from its best, and the training loss there is not known."
    if at_last >= at_best:
        return WARN, "Not that, but it got worse: validation and training loss rose together. Lower learning_rate."
    kept = records.result is not None and records.result.eval_after is not None
    if kept and records.settings.get("load_best_model_at_end") and best["step"] > 0:
        return GOOD, f"It did, but what is saved is the best model, of step {best['step']:,}."
    advice = "Train less, use more data, or write load_best_model_at_end: true"
    return BAD, f"Yes, since step {best['step']:,}: it goes on learning its rows, and others less. {advice}."


def _training_loss_at(records: ReportRecords, step: int) -> float | None:
    """Mean of the last logged training losses up to a step; of the first one for a step before it."""
    losses = [(at, loss) for at, loss in records.training_losses if is_number(loss)]
    if not losses:
        return None
    until = [loss for at, loss in losses if at <= step]
    return _mean(until[-WINDOW:]) if until else losses[0][1]


def ending_verdict(records: ReportRecords) -> Verdict:
    """Whether all planned steps were trained."""
    total = records.plan.total_steps
    figures = f"{records.step:,} of {counted(total, 'step')} ({percent(records.step, total)})."
    if records.status == RUNNING:
        state, sentence = UNKNOWN, "It is still running."
    elif records.status == FAILED:
        state, sentence = BAD, f"No. It ended with an error: {records.failure}"
    elif records.status != COMPLETED:
        saved = records.result.last_checkpoint if records.result is not None else None
        where = f" It is saved in {saved} and can go on." if saved else ""
        by = f" by {records.ended_by}" if records.ended_by else ""
        state, sentence = WARN, f"No. It was stopped{by} at step {records.step:,}.{where}"
    elif records.step < total:
        state, sentence = WARN, "No. It ended by itself before the last planned step."
    else:
        state, sentence = GOOD, "Yes. Every planned step was trained."
    return Verdict(
        question="Did it run to its end?", state=state, sentence=sentence, figures=figures,
        rule="Steps trained against steps planned (max_steps, or num_train_epochs times the steps of an epoch).",
    )  # fmt: skip


def length_verdict(records: ReportRecords) -> Verdict | None:
    """Whether the validation loss was still falling when a run ended."""
    evaluations = [event for event in records.evaluations if is_number(event["eval_loss"])]
    if records.status != COMPLETED or len([event for event in evaluations if event["step"] > 0]) < 2:
        return None
    before, last = evaluations[-2]["eval_loss"], evaluations[-1]["eval_loss"]
    falls = before - last >= RISE_NATS and before - last >= CHANGE_SHARE * before
    is_best = best_evaluation(evaluations) is evaluations[-1]
    state, sentence = GOOD, "Yes. The validation loss had stopped falling."
    if falls and is_best:
        state, sentence = WARN, "Perhaps not: it was still getting better at the end. More steps may help."
    return Verdict(
        question="Did it train long enough?", state=state, sentence=sentence,
        figures=f"Validation loss {before:.4f} at step {evaluations[-2]['step']:,}, {last:.4f} at step "
        f"{evaluations[-1]['step']:,}.",
        rule=f"Still getting better: the last evaluation is the best, by {CHANGE_SHARE:.0%} and {RISE_NATS} nats or "
        "more below the one before.",
    )  # fmt: skip


def data_verdict(records: ReportRecords) -> Verdict:
    """Whether the rows are what they should be."""
    dropped_by_stream = records.result.rows_dropped if records.result is not None else 0
    findings = data_findings(records.data, dropped_by_stream)
    serious = [finding.text for finding in findings if finding.is_serious]
    state = BAD if serious else WARN if findings else GOOD
    read = records.data.rows_read
    if not findings:
        sentence = f"Yes. All {read:,} rows are used whole, none repeats or leaks, and each teaches its end."
    elif serious:
        sentence = f"No: {'; '.join(serious)}."
    else:
        sentence = f"Mostly. {counted(len(findings), 'thing')} to know."
    others = [finding.text for finding in findings if not finding.is_serious]
    share = f"{share_text(records.data.train.supervised_share)} of the training tokens are trained"
    return Verdict(
        question="Is the data sound?", state=state, sentence=sentence,
        figures=_sentence([*others, share]), rule=DATA_RULE,
    )  # fmt: skip


def steps_verdict(records: ReportRecords) -> Verdict:
    """Whether updates were left out, and whether memory ran out."""
    bad, steps = records.bad_steps, records.step
    shortages = sum(records.result.memory_shortages.values()) if records.result is not None else 0
    state = GOOD if not bad else BAD if bad > 0.01 * max(steps, 1) else WARN
    sentence = "Yes."
    if bad:
        sentence = f"No. {counted(bad, 'step')} had a loss or gradient that is no finite number: left out."
    if shortages:
        sentence += f" Memory ran out {counted(shortages, 'time')}; the same was done again in smaller parts."
    return Verdict(
        question="Did every step count?", state=state, sentence=sentence,
        figures=f"{bad:,} of {counted(steps, 'step')} left out ({percent(bad, steps)}).",
        rule="A step whose loss or gradient is no finite number changes no weight. More than 1% of them is too many. "
        "What is done again in smaller parts has the same result.",
    )  # fmt: skip


def hardware_verdict(records: ReportRecords) -> Verdict:
    """Whether the devices were busy."""
    machine = records.machine
    device = "GPU" if machine.has_gpu else "CPU"
    share = records.mean_of("gpu_utilization" if machine.has_gpu else "cpu_utilization")
    rule = (
        f"Mean over the log lines of the share of time in which the {device} worked, {BUSY:.0%} or more is well used, "
        f"below {IDLE:.0%} is idle; of the first process"
    )
    if not machine.has_gpu:
        rule += ", times the processes on this machine, over all cores that they may use"
        share = share and min(share * machine.processes_here, 1.0)
    speed, peak = records.mean_of("tokens_per_second"), records.last_of("peak_memory_bytes")
    figures = [f"{device} busy {share:.0%} of the time"] if share is not None else []
    figures += [f"{speed:,.0f} tokens/s"] if speed else []
    held = peak / machine.device_memory_bytes if peak and machine.device_memory_bytes else None
    if held is not None:
        figures.append(f"at most {size(peak)} of {size(machine.device_memory_bytes)} memory held ({held:.0%})")
    mfu = records.mean_of("mfu")
    figures += [f"{mfu:.1%} of the device's arithmetic peak (MFU)"] if mfu is not None else []
    state, sentence = _hardware_words(device, share)
    if machine.has_gpu and held is not None and held < ROOM:
        sentence += " There is room for more rows at a time: per_device_train_batch_size: auto tries."
    return Verdict(
        question="Was the hardware used?", state=state, sentence=sentence, figures=_sentence(figures), rule=f"{rule}."
    )


def _hardware_words(device: str, share: float | None) -> tuple[str, str]:
    if share is None:
        return UNKNOWN, f"Not known: this machine does not tell how busy its {device} is, or nothing is logged yet."
    if share >= BUSY:
        return GOOD, f"Yes. The {device} was well used."
    cause = "more rows at a time, packing, or dataloader_num_workers may help" if device == "GPU" else (
        "other programs, a limit of threads, or very small batches may be why"
    )  # fmt: skip
    if share >= IDLE:
        return WARN, f"In part: {cause}."
    return BAD, f"No. The {device} was mostly idle: {cause}."


def endings_verdict(records: ReportRecords) -> Verdict | None:
    """Whether the latest answers end by themselves; nothing where nobody looked."""
    latest = [prompt.answers[-1].ended for prompt in records.prompts if prompt.answers]
    known = [ended for ended in latest if ended is not None]
    if not known:
        return None
    ended = sum(known)
    longest = records.settings.get("sample_max_new_tokens")
    state = GOOD if ended == len(known) else WARN if ended else BAD
    words = {GOOD: "Yes. Every sample answer ends.", WARN: "Not always.", BAD: "No. No sample answer ends."}
    return Verdict(
        question="Does it know where to stop?", state=state, sentence=words[state],
        figures=f"{ended} of {counted(len(known), 'sample answer')} ended by an end token.",
        rule=f"The latest answer to each sample prompt, up to an end token or sample_max_new_tokens ({longest}).",
    )  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _sentence(parts: Sequence[str]) -> str:
    """Parts joined by semicolons, with a capital letter and a full stop; nothing of nothing."""
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""

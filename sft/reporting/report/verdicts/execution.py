"""How the run went: completion, skipped steps, use of the hardware, and whether sample answers end."""

from __future__ import annotations

from sft.common.text import counted, percent, size
from sft.reporting.report.records import COMPLETED, FAILED, RUNNING, ReportRecords
from sft.reporting.report.verdicts.verdict import BAD, GOOD, UNKNOWN, WARN, Verdict, as_sentence

MANY_SKIPPED = 0.01
"""Share of the steps; more skipped ones than that are a problem of the run, but never a single one."""
BUSY, IDLE = 0.6, 0.3
"""Utilization at or above which a device is well used, and below which it is idle."""
FEWEST_SAMPLES = 3
"""Logged utilizations of a GPU that a verdict takes: each is a sample of about a second. Of a CPU each is a mean."""
LOW_MEMORY_USE = 0.5
"""Share of a GPU's memory; with a lower peak, a larger micro-batch fits."""


def completion_verdict(records: ReportRecords) -> Verdict:
    """Whether all planned steps were trained."""
    total = records.plan.total_steps
    if records.status == RUNNING:
        state, sentence = UNKNOWN, "The run is still active."
    elif records.status == FAILED:
        state, sentence = BAD, f"No. It failed with an error: {records.failure}"
    elif records.status != COMPLETED:
        saved = records.result.last_checkpoint if records.result is not None else None
        resume = f" It can be resumed from {saved}." if saved else ""
        by = f" by {records.ended_by}" if records.ended_by else ""
        state, sentence = WARN, f"No. It was stopped{by} at step {records.step:,}.{resume}"
    elif records.result is not None and records.result.early_stop is not None:
        state, sentence = GOOD, f"It was {records.result.early_stop}."
    elif records.step < total:
        state, sentence = WARN, "No. It ended before the last planned step."
    else:
        state, sentence = GOOD, "Yes. Every planned step was trained."
    return Verdict(
        question="Did it complete?",
        state=state,
        sentence=sentence,
        figures=f"{records.step:,} of {counted(total, 'step')} ({percent(records.step, total)}).",
        rule="Steps trained against steps planned (max_steps, or num_train_epochs times the steps per epoch).",
    )


def skipped_steps_verdict(records: ReportRecords) -> Verdict:
    """Whether steps were skipped, and whether memory ran out."""
    skipped, steps = records.bad_steps, records.step
    shortages = sum(records.result.memory_shortages.values()) if records.result is not None else 0
    state = GOOD if not skipped else BAD if skipped > max(MANY_SKIPPED * steps, 1) else WARN
    sentence = f"No. {counted(skipped, 'step')} skipped: loss or gradient was NaN or inf." if skipped else "Yes."
    if not skipped and records.settings.get("deepspeed"):
        state, sentence = UNKNOWN, "Not known: with deepspeed, steps with NaN or inf are not detected."
    elif not steps:
        state, sentence = UNKNOWN, "Not known: no step was trained yet."
    if shortages:
        sentence += f" Memory ran out {counted(shortages, 'time')}; the batch was computed again in smaller chunks."
    return Verdict(
        question="Did every step update the weights?",
        state=state,
        sentence=sentence,
        figures=f"{skipped:,} of {counted(steps, 'step')} skipped ({percent(skipped, steps)}).",
        rule="A step whose loss or gradient is NaN or inf does not update the weights. More than "
        f"{MANY_SKIPPED:.0%} of them, and more than one, is too many. Not counted: steps that the loss scaler of "
        "float16 skips. Computing a batch in smaller chunks gives the same result.",
    )


def hardware_verdict(records: ReportRecords) -> Verdict:
    """Whether the devices were busy."""
    machine = records.machine
    device = "GPU" if machine.has_gpu else "CPU"
    utilization = "gpu_utilization" if machine.has_gpu else "cpu_utilization"
    share = records.mean_of(utilization)
    rule = (
        f"Mean logged {device} utilization of the first process: {BUSY:.0%} or more is well used, below {IDLE:.0%} is "
        "idle"
    )
    if machine.has_gpu:
        rule += f"; fewer than {FEWEST_SAMPLES} samples of it decide nothing"
    else:
        rule += "; multiplied by the number of processes on this machine, relative to the cores they may use"
        share = share and min(share * machine.processes_here, 1.0)
    speed, peak = records.figure("tokens_per_second"), records.figure("peak_memory_bytes")
    figures = [f"{device} utilization {share:.0%}"] if share is not None else []
    figures += [f"{speed:,.0f} tokens/s"] if speed else []
    held = None
    if peak and machine.device_memory_bytes:
        held = peak / machine.device_memory_bytes
        figures.append(f"peak memory {size(round(peak))} of {size(machine.device_memory_bytes)} ({held:.0%})")
    mfu = records.figure("mfu")
    figures += [f"MFU {mfu:.1%}"] if mfu is not None else []
    state, sentence = _utilization_verdict(device, share)
    if machine.has_gpu and share is not None and records.num_of(utilization) < FEWEST_SAMPLES:
        state, sentence = (
            UNKNOWN,
            f"Not known: fewer than {FEWEST_SAMPLES} samples of GPU utilization were logged.",
        )
    if machine.has_gpu and held is not None and held < LOW_MEMORY_USE:
        sentence += " There is room for a larger micro-batch: set per_device_train_batch_size: auto."
    return Verdict(
        question="Was the hardware used well?",
        state=state,
        sentence=sentence,
        figures=as_sentence(figures),
        rule=f"{rule}.",
    )


def _utilization_verdict(device: str, share: float | None) -> tuple[str, str]:
    if share is None:
        return UNKNOWN, f"Unknown: no {device} utilization was logged."
    if share >= BUSY:
        return GOOD, f"Yes. The {device} was well used."
    advice = (
        "try a larger micro-batch, packing, or more dataloader_num_workers"
        if device == "GPU"
        else "possible causes are other programs, a thread limit, or very small batches"
    )
    if share >= IDLE:
        return WARN, f"Partly: {advice}."
    return BAD, f"No. The run left the {device} mostly idle: {advice}."


def answer_end_verdict(records: ReportRecords) -> Verdict | None:
    """Whether the latest sample answers end with an end token; None where none was recorded after training began."""
    latest = [prompt.answers[-1] for prompt in records.prompts if prompt.answers]
    known = [answer.ended for answer in latest if answer.ended is not None and answer.step > 0]
    if not known:
        return None
    ended = sum(known)
    max_new_tokens = records.settings.get("sample_max_new_tokens")
    state = GOOD if ended == len(known) else WARN if ended else BAD
    sentences = {GOOD: "Yes. Every sample answer ends.", WARN: "Not always.", BAD: "No. No sample answer ends."}
    train = records.data.train
    trained = train.supervised_tokens / train.rows_used if train.rows_used else 0.0
    if state != GOOD and max_new_tokens is not None and trained > max_new_tokens:
        state = UNKNOWN
        sentences[state] = (
            f"Not known: the data trains {trained:,.0f} tokens per row on average, and sample answers are cut at "
            f"{max_new_tokens}. Raise sample_max_new_tokens."
        )
    return Verdict(
        question="Does it know when to stop?",
        state=state,
        sentence=sentences[state],
        figures=f"{ended} of {counted(len(known), 'sample answer')} ended with an end token.",
        rule="The latest answer to each sample prompt after step 0 must end with an end token within "
        f"sample_max_new_tokens ({max_new_tokens}). Where rows train more tokens than that on average, an answer that "
        "is cut decides nothing.",
    )

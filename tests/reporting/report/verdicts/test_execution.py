"""Verdicts on how the run went: completion, skipped steps, hardware, ends of answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sft.common.run_records import SampleAnswer
from sft.reporting.report.records import answers_of
from sft.reporting.report.verdicts.verdict import BAD, GOOD, UNKNOWN, WARN
from tests.support import messages
from tests.support.report_records import GIB, data, machine, prompts, records, result, split, train_event
from tests.support.verdicts import COMPLETE, HARDWARE, STEPS, STOPS, verdict_on


def test_completion_of_a_stopped_run_names_the_signal_and_the_checkpoint():
    stopped = result(status="interrupted", steps=40, after=None, last_checkpoint="out/checkpoint-40")
    found = verdict_on(COMPLETE, status="interrupted", step=40, result=stopped, ended_by="SIGTERM")
    assert found.state == WARN
    assert messages.VERDICT_STOPPED.format(signal="SIGTERM", step=40) in found.sentence
    assert "out/checkpoint-40" in found.sentence
    assert found.figures == "40 of 100 steps (40.0%)."


@pytest.mark.parametrize(
    ("status", "step", "state", "words"),
    [
        ("running", 40, UNKNOWN, "still active"),
        ("failed", 40, BAD, "No space left"),
        ("completed", 90, WARN, "before the last planned step"),
        ("completed", 100, GOOD, "Every planned step"),
    ],
)
def test_completion_by_status(status, step, state, words):
    found = verdict_on(COMPLETE, status=status, step=step, failure="No space left." if status == "failed" else None)
    assert (found.state, words in found.sentence) == (state, True)


@pytest.mark.parametrize(
    ("bad", "step", "state"),
    [(0, 100, GOOD), (1, 100, WARN), (2, 100, BAD), (1, 5, WARN), (2, 5, BAD), (3, 400, WARN), (0, 0, UNKNOWN)],
)
def test_skipped_steps(bad, step, state):
    assert verdict_on(STEPS, bad_steps=bad, step=step).state == state


def test_skipped_steps_are_not_known_with_deepspeed():
    settings = {**records().settings, "deepspeed": "zero3.json"}
    assert verdict_on(STEPS, settings=settings).state == UNKNOWN


def test_skipped_steps_mention_that_memory_ran_out():
    found = verdict_on(STEPS, result=result(memory_shortages={"training": 1, "evaluation": 1}))
    assert (found.state, messages.VERDICT_SHORTAGES.format(count=2) in found.sentence) == (GOOD, True)


@pytest.mark.parametrize(("share", "state"), [(0.9, GOOD), (0.6, GOOD), (0.5, WARN), (0.3, WARN), (0.29, BAD)])
def test_hardware_by_gpu_utilization(share, state):
    events = [train_event(step, 1.0, gpu_utilization=share, cpu_utilization=0.01) for step in (1, 2, 3)]
    found = verdict_on(HARDWARE, events=events, machine=machine(device="cuda:0", device_memory_bytes=3 * GIB))
    assert found.state == state
    assert f"GPU utilization {share:.0%}" in found.figures
    assert messages.VERDICT_ROOM not in found.sentence


def test_hardware_mentions_unused_memory():
    events = [train_event(1, 1.0, gpu_utilization=0.9)]
    found = verdict_on(HARDWARE, events=events, machine=machine(device="cuda:0"))
    assert messages.VERDICT_ROOM in found.sentence


def test_hardware_by_few_samples_of_a_gpu_is_not_known():
    events = [train_event(step, 1.0, gpu_utilization=0.1) for step in (1, 2)]
    assert verdict_on(HARDWARE, events=events, machine=machine(device="cuda:0")).state == UNKNOWN


def test_hardware_counts_all_processes_of_a_cpu():
    events = [train_event(step, 1.0, cpu_utilization=0.24) for step in (1, 2)]
    assert verdict_on(HARDWARE, events=events).state == BAD
    assert verdict_on(HARDWARE, events=events, machine=machine(processes_here=4)).state == GOOD


def test_hardware_is_unknown_without_utilization():
    events = [{"step": 1, "loss": 1.0}]
    assert verdict_on(HARDWARE, events=events, machine=machine(device="cuda:0")).state == UNKNOWN


def test_answers_that_end_are_counted_by_the_latest():
    assert verdict_on(STOPS).figures == "1 of 1 sample answer ended with an end token."
    (prompt,) = prompts()
    cut = replace(prompt, answers=(*prompt.answers[:-1], replace(prompt.answers[-1], ended=False)))
    assert verdict_on(STOPS, prompts=(cut,)).state == BAD
    assert verdict_on(STOPS, prompts=(cut, prompt)).state == WARN
    unknown = answers_of([SampleAnswer(prompt="a", before="b", after="c")], 100)
    assert verdict_on(STOPS, prompts=unknown) is None


def test_answers_before_training_say_nothing_about_the_trained_model():
    (prompt,) = prompts()
    assert verdict_on(STOPS, prompts=(replace(prompt, answers=prompt.answers[:1]),), status="running") is None


@pytest.mark.parametrize(("supervised", "state"), [(800, BAD), (900, UNKNOWN)])
def test_an_answer_that_is_cut_decides_nothing_where_answers_are_longer_than_samples(supervised, state):
    """Of 100 rows, with samples of 8 tokens at most."""
    (prompt,) = prompts()
    cut = replace(prompt, answers=(*prompt.answers[:-1], replace(prompt.answers[-1], ended=False)))
    found = verdict_on(STOPS, prompts=(cut,), data=data(train=split(supervised_tokens=supervised)))
    assert (found.state, "sample_max_new_tokens" in found.sentence) == (state, state == UNKNOWN)

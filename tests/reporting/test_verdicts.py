"""Each verdict, case by case: the same records always give the same words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sft.common.data_records import DroppedRow, RowProblem, RowSource
from sft.common.run_records import SampleAnswer
from sft.reporting.report.records import answers_of
from sft.reporting.report.verdicts import BAD, GOOD, UNKNOWN, WARN, find_verdicts
from tests.support.report_records import (
    GIB,
    data,
    evaluation,
    falling,
    in_order,
    machine,
    prompts,
    records,
    result,
    split,
    train_event,
)

LEARN, OVERFIT, END = "Did it learn?", "Does it overfit?", "Did it run to its end?"
LONG, DATA, STEPS = "Did it train long enough?", "Is the data sound?", "Did every step count?"
HARDWARE, STOPS = "Was the hardware used?", "Does it know where to stop?"


def verdict(question, **changed):
    found = {each.question: each for each in find_verdicts(records(**changed))}
    return found.get(question)


def test_a_run_that_learned_has_nothing_to_mend():
    found = find_verdicts(records())
    assert [each.question for each in found] == [LEARN, OVERFIT, END, LONG, DATA, STEPS, HARDWARE, STOPS]
    assert {each.state for each in found} == {GOOD}
    assert all(each.figures and each.rule for each in found)


@pytest.mark.parametrize(
    ("after", "state"), [(1.0, GOOD), (2.94, GOOD), (2.95, WARN), (3.0, WARN), (3.05, WARN), (3.07, BAD)]
)
def test_learned_by_the_change_of_the_validation_loss(after, state):
    found = verdict(LEARN, result=result(before=3.0, after=after))
    assert found.state == state
    assert f"3.0000 before, {after:.4f} after" in found.figures


def test_learned_while_it_runs_is_judged_by_the_last_evaluation():
    events = in_order(falling()[:10], [evaluation(0, 3.0), evaluation(50, 1.5)])
    found = verdict(LEARN, status="running", step=50, result=None, events=events)
    assert (found.state, found.figures) == (GOOD, "Validation loss 3.0000 before, 1.5000 at step 50 (-50.0%).")


@pytest.mark.parametrize(("last", "state"), [(0.5, UNKNOWN), (2.95, WARN)])
def test_learned_without_validation_speaks_of_the_training_rows_alone(last, state):
    run = {
        "data": data(has_validation=False), "events": falling(last=last), "result": result(before=None, after=None),
    }  # fmt: skip
    found = verdict(LEARN, **run)
    assert found.state == state
    assert "there is no validation data" in found.sentence
    assert "validation_split" in found.sentence
    assert verdict(OVERFIT, **run).state == UNKNOWN
    assert verdict(LONG, **run) is None


def test_learned_is_not_known_before_anything_was_logged():
    found = verdict(LEARN, status="running", step=0, result=None, events=[])
    assert found.state == UNKNOWN


@pytest.mark.parametrize(
    "events",
    [
        [*falling()[:5], train_event(30, None)],
        [*falling(), evaluation(100, None)],
        [*falling(first=0.5, last=3.0)],
    ],
)
def test_learned_tells_a_run_that_diverged(events):
    found = verdict(LEARN, events=events, result=None, status="running")
    assert found.state == BAD
    assert "It diverged" in found.sentence
    assert found.figures


def overfitting(last=1.2, training_last=0.2):
    losses = falling(last=training_last)
    return in_order(losses, [evaluation(0, 3.0), evaluation(25, 1.5), evaluation(50, 1.0), evaluation(100, last)])


def test_overfits_where_validation_rises_while_training_falls():
    found = verdict(OVERFIT, events=overfitting(), result=result(after=1.2))
    assert found.state == BAD
    assert "since step 50" in found.sentence
    assert "1.0000 at its best, step 50, 1.2000 at step 100; training loss" in found.figures


@pytest.mark.parametrize("last", [1.0, 1.009, 0.9])
def test_overfits_not_where_validation_stays(last):
    assert verdict(OVERFIT, events=overfitting(last)).state == GOOD


def test_overfits_needs_nats_as_well_as_a_share():
    """0.002 to 0.003 is half as much again, and nothing."""
    events = in_order(falling(), [evaluation(0, 3.0), evaluation(50, 0.002), evaluation(100, 0.003)])
    assert verdict(OVERFIT, events=events).state == GOOD


def test_overfits_not_where_both_losses_rise():
    events = in_order(
        [train_event(step, 1.0 if step <= 50 else 1.1) for step in range(5, 101, 5)],
        [evaluation(0, 3.0), evaluation(50, 1.0), evaluation(100, 1.3)],
    )
    found = verdict(OVERFIT, events=events)
    assert (found.state, "rose together" in found.sentence) == (WARN, True)


def test_overfits_but_the_best_model_is_kept():
    settings = {**records().settings, "load_best_model_at_end": True}
    found = verdict(OVERFIT, events=overfitting(), settings=settings, result=result(after=1.0))
    assert (found.state, "of step 50" in found.sentence) == (GOOD, True)
    still_runs = verdict(OVERFIT, events=overfitting(), settings=settings, result=None, status="running")
    assert still_runs.state == BAD


def test_overfits_is_not_known_from_a_single_evaluation():
    events = in_order(falling(), [evaluation(0, 3.0), evaluation(100, 1.0)])
    assert verdict(OVERFIT, events=events).state == UNKNOWN
    assert verdict(OVERFIT, events=falling()).state == UNKNOWN


def test_ending_of_a_stopped_run_names_the_signal_and_the_checkpoint():
    stopped = result(status="interrupted", steps=40, after=None, last_checkpoint="out/checkpoint-40")
    found = verdict(END, status="interrupted", step=40, result=stopped, ended_by="SIGTERM")
    assert found.state == WARN
    assert "by SIGTERM at step 40" in found.sentence
    assert "out/checkpoint-40" in found.sentence
    assert found.figures == "40 of 100 steps (40.0%)."


@pytest.mark.parametrize(
    ("status", "step", "state", "words"),
    [
        ("running", 40, UNKNOWN, "still running"),
        ("failed", 40, BAD, "No space left"),
        ("completed", 90, WARN, "before the last planned step"),
        ("completed", 100, GOOD, "Every planned step"),
    ],
)
def test_ending_by_status(status, step, state, words):
    found = verdict(END, status=status, step=step, failure="No space left." if status == "failed" else None)
    assert (found.state, words in found.sentence) == (state, True)


def test_long_enough_unless_the_loss_still_falls():
    events = in_order(falling(), [evaluation(0, 3.0), evaluation(50, 2.0), evaluation(100, 1.0)])
    found = verdict(LONG, events=events)
    assert (found.state, "More steps may help" in found.sentence) == (WARN, True)
    assert verdict(LONG, events=events, status="interrupted") is None


EMPTY = RowProblem(reason="empty_answer", message="'answer' is empty")


def dropped(count):
    row = DroppedRow(source=RowSource(file="train.jsonl", line=3), problem=EMPTY)
    return split(rows_read=100 + count, rows_dropped={"empty_answer": count}, dropped_examples=(row,))


@pytest.mark.parametrize(
    ("changed", "state", "words"),
    [
        ({"train": dropped(5)}, WARN, "5 of 105 training rows left out (4.8%): 5 empty_answer"),
        ({"train": dropped(50)}, BAD, "50 of 150 training rows left out"),
        ({"leakage": 2}, BAD, "2 validation rows among the training rows too"),
        ({"train": split(duplicates=1)}, WARN, "1 training row that repeats an earlier one"),
        ({"train": split(rows_that_lose_the_end=3)}, WARN, "3 training rows cut in what is trained"),
        ({"train": split(rows_with_trained_end=98)}, WARN, "2 training rows without a trained end token"),
        ({"train": split(rows_with_trained_end=0)}, BAD, "no training row teaches where to stop"),
        ({"train": split(notes={"tools_left_out": 4})}, WARN, "the tools of 4 rows"),
        ({"is_complete": False}, WARN, "streamed"),
    ],
)
def test_data_that_is_not_as_it_should_be(changed, state, words):
    found = verdict(DATA, data=data(**changed))
    assert found.state == state
    assert words.lower() in f"{found.sentence} {found.figures}".lower()


@pytest.mark.parametrize(("bad", "state"), [(0, GOOD), (1, WARN), (2, BAD)])
def test_steps_that_were_left_out(bad, state):
    assert verdict(STEPS, bad_steps=bad).state == state


def test_steps_tell_that_memory_ran_out():
    found = verdict(STEPS, result=result(memory_shortages={"training": 1, "evaluation": 1}))
    assert (found.state, "ran out 2 times" in found.sentence) == (GOOD, True)


@pytest.mark.parametrize(("share", "state"), [(0.9, GOOD), (0.6, GOOD), (0.5, WARN), (0.3, WARN), (0.29, BAD)])
def test_hardware_by_how_busy_the_gpu_was(share, state):
    events = [train_event(step, 1.0, gpu_utilization=share, cpu_utilization=0.01) for step in (1, 2, 3)]
    found = verdict(HARDWARE, events=events, machine=machine(device="cuda:0", device_memory_bytes=3 * GIB))
    assert found.state == state
    assert f"GPU busy {share:.0%} of the time" in found.figures
    assert "room for more rows" not in found.sentence


def test_hardware_tells_of_memory_that_is_not_used():
    events = [train_event(1, 1.0, gpu_utilization=0.9)]
    found = verdict(HARDWARE, events=events, machine=machine(device="cuda:0"))
    assert "room for more rows" in found.sentence


def test_hardware_counts_all_processes_of_a_cpu():
    events = [train_event(step, 1.0, cpu_utilization=0.24) for step in (1, 2)]
    assert verdict(HARDWARE, events=events).state == BAD
    assert verdict(HARDWARE, events=events, machine=machine(processes_here=4)).state == GOOD


def test_hardware_is_not_known_where_nothing_tells():
    events = [{"step": 1, "loss": 1.0}]
    assert verdict(HARDWARE, events=events, machine=machine(device="cuda:0")).state == UNKNOWN


def test_answers_that_end_are_counted_by_the_latest():
    assert verdict(STOPS).figures == "1 of 1 sample answer ended by an end token."
    (prompt,) = prompts()
    cut = replace(prompt, answers=(*prompt.answers[:-1], replace(prompt.answers[-1], ended=False)))
    assert verdict(STOPS, prompts=(cut,)).state == BAD
    assert verdict(STOPS, prompts=(cut, prompt)).state == WARN
    unknown = answers_of([SampleAnswer(prompt="a", before="b", after="c")], 100)
    assert verdict(STOPS, prompts=unknown) is None

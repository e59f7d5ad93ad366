"""The records of a report: one source of each figure, and sample answers, from the file or from the result."""

from __future__ import annotations

import json

import pytest

from sft.common.run_records import SampleAnswer
from sft.reporting.report.facts import find_facts
from sft.reporting.report.records import StepAnswer, answers_of, read_answers
from tests.support.report_records import GIB, records, result, train_event


def test_read_answers_by_prompt_and_step(tmp_path):
    path = tmp_path / "samples.jsonl"
    assert read_answers(path) == ()
    lines = [
        {"step": 0, "prompt": "a", "answer": "1", "ended": False, "reference": "r"},
        {"step": 0, "prompt": "b", "answer": "2", "ended": True, "reference": None},
        {"step": 5, "prompt": "a", "answer": "old", "ended": True, "reference": "r"},
        {"step": 5, "prompt": "a", "answer": "new\u2028line", "ended": True, "reference": "r"},
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text + '{"step": 9, "prom', encoding="utf-8")
    first, second = read_answers(path)
    assert (first.prompt, first.reference, second.reference) == ("a", "r", None)
    assert first.answers == (
        StepAnswer(step=0, text="1", ended=False),
        StepAnswer(step=5, text="new\u2028line", ended=True),
    )


def test_answers_of_a_result_without_a_file():
    (prompt,) = answers_of([SampleAnswer(prompt="p", before="x", after="y", reference="z")], 7)
    assert [(answer.step, answer.text, answer.ended) for answer in prompt.answers] == [(0, "x", None), (7, "y", None)]


FIGURES = {
    "tokens_per_second": (544.4, 396.0, "544 tokens/s", "396"),
    "supervised_tokens_per_second": (54_321.0, 99.0, "54,321", None),
    "examples_per_second": (77.7, 11.1, "77.7", "11.1"),
    "peak_memory_bytes": (round(2.4 * GIB), round(2.2 * GIB), "2.4 GiB", "2.2 GiB"),
    "mfu": (0.4321, 0.1234, "43.2%", "12.3%"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_of_the_run_has_one_source(name):
    """The log events cover parts of the run: once it has ended, no text may show their mean in place of the figure."""
    of_run, of_logs, shown, other = FIGURES[name]
    run = records(
        events=[train_event(step, 1.0, **{name: of_logs}) for step in (5, 10, 15)], result=result(**{name: of_run})
    )
    assert run.figure(name) == of_run
    facts = find_facts(run)
    texts = [verdict.figures for verdict in facts.verdicts] + [
        f"{label} {value}" for label, value in facts.training.rows
    ]
    assert any(shown in text for text in texts)
    assert other is None or not any(other in text for text in texts)
    running = records(events=run.events, result=None, status="running")
    assert running.figure(name) == pytest.approx(of_logs)


def test_tokens_at_a_step_are_in_proportion_between_log_events():
    events = [train_event(10, 1.0, supervised_tokens_seen=100), train_event(30, 1.0, supervised_tokens_seen=500)]
    run = records(events=events)
    assert [run.tokens_at(step) for step in (0, 5, 10, 20, 30, 40)] == [0, 50, 100, 300, 500, 700]
    assert records(events=[train_event(10, 1.0)]).tokens_at(7) == 7

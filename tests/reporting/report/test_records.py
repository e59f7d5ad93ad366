"""Sample answers, read back from the file or taken from the result."""

from __future__ import annotations

import json

from sft.common.run_records import SampleAnswer
from sft.reporting.report.records import StepAnswer, answers_of, read_answers


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

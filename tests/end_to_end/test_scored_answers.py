"""Scores of generated answers in whole runs: records, resume, two processes, and no trace in the weights."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

SETTINGS = {
    "sample_prompts": "[]",
    "validation_split": 0.4,
    "max_steps": 4,
    "eval_steps": 2,
    "save_steps": 2,
    "save_total_limit": "null",
    "answer_scores": "[exact_match, contains]",
    "answer_rows": 6,
    "answer_max_new_tokens": 6,
}


@pytest.fixture
def run(run_sft):
    def run(**settings):
        found = run_sft(**{**SETTINGS, **settings})
        assert found.status == 0, found.err
        return found

    return run


def answers(found):
    return [json.loads(line) for line in (found.output_dir / "answers.jsonl").read_text().splitlines()]


def test_records_of_scored_answers(run, tmp_path):
    (tmp_path / "scores.py").write_text(
        "def judge(messages, answer, reference, row):\n    return {'length': len(answer)}\n"
    )
    test_file = tmp_path / "test.jsonl"
    test_file.write_text('{"question": "Where?", "answer": "Here."}\n' * 1)
    found = run(
        answer_scores=f"[exact_match, contains, {tmp_path / 'scores.py'}:judge]",
        test_file=str(test_file),
        answers_at_evaluations=True,
    )
    summary = found.summary
    for when in ("eval_before", "eval_after"):
        own = summary[when]["answers"]["validation"]
        assert set(own) == {"exact_match", "contains", "judge_length", "rows", "ended", "intervals"}
        assert own["rows"] == 6
    assert summary["test_after"]["answers"]["test"]["rows"] == 1
    lines = answers(found)
    assert [(line["step"], line["set"]) for line in lines] == [
        *[(0, "validation")] * 6,
        (0, "test"),
        *[(step, "validation") for step in (2, 4) for _ in range(6)],
        (4, "test"),
    ]
    after = [line for line in lines if line["step"] == 4 and line["set"] == "validation"]
    mean = sum(line["scores"]["judge_length"] for line in after) / 6
    assert summary["eval_after"]["answers"]["validation"]["judge_length"] == mean
    assert [event["step"] for event in found.metrics if "eval_exact_match" in event] == [0, 2, 4]
    assert [event["step"] for event in found.metrics if "test_contains" in event] == [0, 4]
    report = (found.output_dir / "report.md").read_text()
    assert "Did it learn the job?" in report
    assert "answers, validation" in report


def test_scoring_leaves_no_trace_and_batches_do_not_matter(run, tmp_path):
    scored = run(answer_batch_size=7)
    for number, settings in enumerate(({"answer_batch_size": 1}, {"answer_scores": None, "answer_rows": None})):
        other = run(**settings, output_dir=str(tmp_path / str(number)))
        weights = load_file(other.output_dir / "model.safetensors")
        assert all(
            torch.equal(weight, weights[name])
            for name, weight in load_file(scored.output_dir / "model.safetensors").items()
        )
        if number == 0:
            assert answers(other) == answers(scored)


def test_a_resumed_run_scores_the_same(run, tmp_path):
    whole = run(answers_at_evaluations=True)
    half = tmp_path / "half"
    half.mkdir()
    shutil.copytree(whole.output_dir / "checkpoint-2", half / "checkpoint-2")
    shutil.copy(whole.output_dir / "answers.jsonl", half)
    resumed = run(answers_at_evaluations=True, output_dir=str(half), resume_from_checkpoint="auto")
    assert answers(resumed) == answers(whole)
    assert resumed.summary["eval_before"] == whole.summary["eval_before"]
    assert resumed.summary["eval_after"]["answers"] == whole.summary["eval_after"]["answers"]


@pytest.mark.slow
def test_two_processes_score_as_one(run, tmp_path):
    from tests.support import forked

    one = run()
    given = {**SETTINGS, "max_steps": 4, "per_device_train_batch_size": 2, "num_gpus": 2, "use_cpu": True}
    settings = {key: value for key, value in given.items() if value is not None}
    known = json.loads(json.dumps(one.summary))
    arguments = [f"--{key}={value}" for key, value in settings.items()]
    fixed = (one.output_dir / "resolved_config.yaml").read_text()
    lines = dict(
        line.split(": ", 1) for line in fixed.splitlines() if line.startswith(("model_name_or_path", "train_file"))
    )
    arguments += [f"--{key}={value}" for key, value in lines.items()]
    arguments += ["--max_seq_length=64", "--learning_rate=1e-2", "--report_to=none", f"--output_dir={tmp_path / 'two'}"]
    done = forked.run(tmp_path, *arguments)
    assert done.status == 0, done.err
    two = json.loads((tmp_path / "two" / "run_summary.json").read_text())
    assert two["eval_before"]["answers"] == known["eval_before"]["answers"]
    assert two["eval_after"]["answers"]["validation"]["rows"] == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"answer_scores": "[exact_mach]"}, "answer_scores: unknown score 'exact_mach'; choose exact_match | contains"),
        ({"answer_rows": None}, "answer_scores: requires answer_rows."),
        ({"answer_scores": None}, "answer_rows: requires answer_scores."),
        ({"validation_split": None, "eval_steps": None}, "answer_scores: requires validation or test data."),
        ({"answer_scores": "[none.py:judge]"}, "answer_scores: no such file: 'none.py'"),
    ],
)
def test_what_is_refused(run_sft, settings, message):
    found = run_sft(**{**SETTINGS, **settings})
    assert found.status == 2
    assert message in found.err


def test_a_score_that_fails_is_one_line(run_sft, tmp_path):
    (tmp_path / "scores.py").write_text("def judge(messages, answer, reference, row):\n    return row['nothing']\n")
    found = run_sft(**{**SETTINGS, "answer_scores": f"[{tmp_path / 'scores.py'}:judge]"})
    assert found.status == 2
    assert found.err.count("\n") == 1
    assert "raised KeyError for" in found.err


def test_texts_have_no_answers(run_sft, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"Text {number}"}) + "\n" for number in range(9)))
    found = run_sft(**SETTINGS, train_file=str(path))
    assert found.status == 2
    assert "have no answers to score" in found.err

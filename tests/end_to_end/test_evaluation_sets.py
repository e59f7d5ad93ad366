"""Named validation sets, test sets, the forgetting check, and early stopping, in whole runs."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

FIGURES = ("loss", "perplexity", "token_accuracy", "sequence_accuracy")
QUICK = {"sample_prompts": "[]", "max_steps": 4, "eval_steps": 2, "save_strategy": "no"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Rows to evaluate, none of which is trained: `a` has 5, `b` 3, `c` 2, and `texts` 3."""
    folder = tmp_path_factory.mktemp("sets")

    def write(name, rows):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def questions(name, count):
        words = [" ".join(f"{name}{i}" for i in range(number + 1)) for number in range(count)]
        return write(name, [{"question": f"What is {word}?", "answer": f"It is {word}."} for word in words])

    return {
        "a": questions("a", 5),
        "b": questions("b", 3),
        "c": questions("c", 2),
        "texts": write("texts", [{"text": f"Once upon a time there were {number} stories."} for number in range(3)]),
    }


def test_sets_have_the_figures_that_they_have_alone(run_sft, files, tmp_path):
    named = run_sft(
        **QUICK,
        validation_file=f"{{first: {files['a']}, second: {files['b']}}}",
        test_file=files["c"],
        forgetting_check=f"{{stories: {files['texts']}}}",
    )
    assert named.status == 0, named.err
    summary = named.summary
    sets = summary["eval_after"]["sets"]
    assert {name: one["rows"] for name, one in sets.items()} == {"first": 5, "second": 3}
    assert summary["test_before"]["sets"]["test"]["rows"] == 2
    assert set(summary["forgetting_after"]["sets"]) == {"stories"}
    # Alone, and with nothing else evaluated: neither the figures nor the weights differ in a bit.
    for name, key in (("a", "first"), ("b", "second"), ("c", None)):
        alone = run_sft(**QUICK, validation_file=files[name], output_dir=str(tmp_path / name))
        for when in ("before", "after"):
            of_set = summary[f"test_{when}"] if key is None else summary[f"eval_{when}"]["sets"][key]
            assert {figure: of_set[figure] for figure in FIGURES} == {
                figure: alone.summary[f"eval_{when}"][figure] for figure in FIGURES
            }
        weights = load_file(alone.output_dir / "model.safetensors")
        assert all(
            torch.equal(weight, weights[name_of])
            for name_of, weight in load_file(named.output_dir / "model.safetensors").items()
        )
    tokens = {one["name"]: one["supervised_tokens"] for one in summary["data"]["sets"] if one["kind"] == "validation"}
    mean = sum(sets[name]["loss"] * count for name, count in tokens.items()) / sum(tokens.values())
    assert summary["eval_after"]["loss"] == pytest.approx(mean, rel=1e-12)


def test_every_record_names_the_sets(run_sft, files):
    run = run_sft(
        **QUICK,
        validation_file=f"{{first: {files['a']}, second: {files['b']}}}",
        validation_split=0.2,
        test_file=f"{{x: {files['c']}}}",
        forgetting_check=files["texts"],
        report_to="tensorboard",
    )
    assert run.status == 0, run.err
    events = [event for event in run.metrics if "eval_loss" in event]
    assert {f"eval_{name}_loss" for name in ("first", "second", "held_out")} <= events[-1].keys()
    assert [event["step"] for event in run.metrics if "test_x_loss" in event] == [0, 4]
    assert [event["step"] for event in run.metrics if "forgetting_loss" in event] == [0, 4]
    report = (run.output_dir / "report.md").read_text()
    for text in ("validation: held_out", "test: x", "Did it forget what it could do before?"):
        assert text in report
    assert "; loss by set: first " in run.out
    data = run.summary["data"]
    assert {(one["kind"], one["name"]) for one in data["sets"]} == {
        *(("validation", name) for name in ("first", "second", "held_out")),
        ("test", "x"),
        ("forgetting", "forgetting"),
    }
    assert data["rows_read"] == data["rows_used"] == 24 + 5 + 3 + 2 + 3
    assert data["validation"]["rows_used"] == 5 + 3 + sum(
        one["rows_used"] for one in data["sets"] if one["name"] == "held_out"
    )


def test_test_rows_that_are_trained_stop_a_run(run_sft, question_file):
    run = run_sft(**QUICK | {"eval_steps": None}, test_file=question_file)
    assert run.status == 2
    assert "24 of 24 test rows are also in the training data" in run.err
    assert run_sft(**QUICK | {"eval_steps": None}, forgetting_check=question_file).status == 0  # only counted


def test_a_resumed_run_measures_nothing_twice(run_sft, files, tmp_path):
    settings = {"sample_prompts": "[]", "eval_steps": 2, "save_steps": 2, "max_steps": 4, "save_total_limit": "null"}
    settings |= {"validation_file": f"{{first: {files['a']}}}", "test_file": files["c"]}
    whole = run_sft(**settings)
    half = tmp_path / "half"
    shutil.copytree(whole.output_dir / "checkpoint-2", half / "checkpoint-2")
    resumed = run_sft(**settings, output_dir=str(half), resume_from_checkpoint="auto")
    assert resumed.status == 0, resumed.err
    for key in ("eval_before", "test_before", "eval_after", "test_after"):
        assert resumed.summary[key] == whole.summary[key]
    assert [event["step"] for event in resumed.metrics if "test_loss" in event] == [4]


EARLY = {
    "sample_prompts": "[]",
    "max_steps": 20,
    "eval_steps": 2,
    "save_steps": 2,
    "save_total_limit": "null",
    "learning_rate": 1e-9,  # nothing improves by more than the threshold
    "early_stopping_patience": 3,
    "early_stopping_threshold": 0.5,
}


def test_early_stopping_is_the_same_in_a_resumed_run(run_sft, files, tmp_path):
    settings = EARLY | {"validation_file": f"{{first: {files['a']}}}", "metric_for_best_model": "eval_first_loss"}
    whole = run_sft(**settings)
    assert whole.status == 0, whole.err
    assert whole.summary["train"]["steps"] == 8  # the first evaluation sets the best value
    assert whole.summary["status"] == "completed"
    assert whole.summary["stopped_early"].startswith(
        "stopped early at step 8 since eval_first_loss did not improve by more than 0.5 in 3 evaluations after"
    )
    assert "stopped early at step 8" in (whole.output_dir / "report.md").read_text()
    for step in (4, 8):
        folder = tmp_path / f"from-{step}"
        shutil.copytree(whole.output_dir / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        resumed = run_sft(**settings, output_dir=str(folder), resume_from_checkpoint="auto")
        assert resumed.status == 0, resumed.err
        assert resumed.summary["train"]["steps"] == 8
        assert resumed.summary["stopped_early"] == whole.summary["stopped_early"]
        weights = load_file(folder / "model.safetensors")
        assert all(
            torch.equal(weight, weights[name])
            for name, weight in load_file(whole.output_dir / "model.safetensors").items()
        )


def test_more_patience_continues_a_run_that_stopped_early(run_sft, files):
    whole = run_sft(**EARLY, validation_file=files["a"])
    assert whole.summary["train"]["steps"] == 8
    longer = run_sft(
        **EARLY | {"early_stopping_patience": 5}, validation_file=files["a"], resume_from_checkpoint="auto"
    )
    assert longer.status == 0, longer.err
    assert longer.summary["train"]["steps"] == 12

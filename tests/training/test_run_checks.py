"""The highest learning rate of a schedule, by building it; and notes of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import TrainingArguments

from sft.checkpointing.resume_point import ResumePoint
from sft.common.errors import ConfigError
from sft.training.arguments import check_schedule
from sft.training.dry_run import DryRun
from sft.training.run_checks import check_run, highest_share
from tests.support import messages


@pytest.mark.parametrize(
    ("settings", "total", "share"),
    [
        ({}, 10, 1.0),
        ({"warmup_steps": 5}, 10, 1.0),
        ({"warmup_steps": 9}, 10, 1.0),
        ({"warmup_steps": 10}, 10, 0.9),
        ({"warmup_steps": 100}, 10, 0.09),
        ({"lr_scheduler_type": "cosine", "warmup_steps": 5}, 10, 1.0),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 20}, 10, 0.45),
        ({"lr_scheduler_type": "inverse_sqrt", "warmup_steps": 20}, 10, 0.45),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"}, 10, 1.0),
        ({"lr_scheduler_type": "linear", "warmup_steps": 0.1}, 1_000_000, 1.0),
        (
            {
                "lr_scheduler_type": "warmup_stable_decay",
                "warmup_steps": 5,
                "lr_scheduler_kwargs": {"num_decay_steps": 2},
            },
            10,
            1.0,
        ),
    ],
)
def test_highest_learning_rate_of_a_schedule(tmp_path, settings, total, share):
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, **settings)
    assert highest_share(arguments, total) == pytest.approx(share, rel=0.01)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("polynomial", {"power": "x"}),
        ("polynomial", {"lr_end": 2.0}),
        ("cosine", {"num_cycles": "x"}),
        ("cosine", {"num_cycles": [1]}),
        ("inverse_sqrt", {"timescale": "x"}),
        ("linear", {"foo": 1}),
    ],
)
def test_options_that_a_schedule_cannot_compute_with_are_refused_in_one_line(tmp_path, name, options):
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        report_to="none",
        use_cpu=True,
        lr_scheduler_type=name,
        lr_scheduler_kwargs=options,
    )
    with pytest.raises(ConfigError, match=f"^lr_scheduler_kwargs: .* does not fit lr_scheduler_type {name}: "):
        check_schedule(arguments)


def test_a_problem_stops_a_new_run_is_listed_by_a_dry_run_and_is_a_note_of_a_resumed_one(prepare, caplog):
    prepared, _ = prepare(warmup_steps=90, max_bad_steps=100, max_steps=60)
    setup, arguments = prepared.trainer.setup, prepared.trainer.args
    setup = replace(setup, config=replace(setup.config, origins={"warmup_steps": "my.yaml:7"}))
    before = DryRun(
        config=setup.config, data=setup.data, problems=["bad rows"], context=setup.context, limits=setup.limits
    )
    with pytest.raises(ConfigError, match=rf"^my\.yaml:7: {messages.WARMUP_TOO_LONG.format(warmup=90, steps=60)}"):
        check_run(before, setup, arguments, is_dry_run=False)
    listed = check_run(before, setup, arguments, is_dry_run=True)
    assert [problem.partition(", and")[0] for problem in listed.problems] == ["bad rows", "my.yaml:7: warmup_steps: 90"]
    assert any(note.startswith("max_bad_steps: 100") for note in listed.notes)
    resumed = replace(setup, resume=ResumePoint(path=Path("checkpoint-2"), step=2, manifest={}))
    with caplog.at_level("INFO", logger="sft"):
        found = check_run(before, resumed, arguments, is_dry_run=False)
    assert found.problems == ["bad rows"]
    assert any(note.startswith("my.yaml:7: warmup_steps: 90") for note in found.notes)
    assert f"{messages.NOTE}my.yaml:7: warmup_steps: 90" in caplog.text


@pytest.mark.parametrize(("settings", "is_advised"), [({"per_device_train_batch_size": 1}, True), ({}, False)])
def test_a_dry_run_advises_more_rows_where_the_optimizer_takes_much_of_a_step(prepare, settings, is_advised, caplog):
    prepared, _ = prepare(**settings)
    setup, arguments = prepared.trainer.setup, prepared.trainer.args
    train = replace(setup.data.report.train, tokens_an_epoch=setup.plan.steps_per_epoch * (100 if is_advised else 2000))
    setup = replace(setup, data=replace(setup.data, report=replace(setup.data.report, train=train)))
    before = DryRun(config=setup.config, data=setup.data, problems=[], context=setup.context, limits=setup.limits)
    notes = check_run(before, setup, arguments, is_dry_run=True).notes
    assert any(messages.MORE_ROWS_A_STEP.format(tokens=100) in note for note in notes) == is_advised
    check_run(before, setup, arguments, is_dry_run=False)
    assert "times as many rows" not in caplog.text

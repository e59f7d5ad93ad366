"""The report's files while a run trains, at its end, and after a failure."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from config_manager import load_config
from sft.common.run_records import BatchPlan, DistributedContext
from sft.common.training_data import TrainingData
from sft.configuration.values import config_sha256, config_values
from sft.modeling.footprint import footprint
from sft.reporting.environment import compute_environment
from sft.training.decided_layout import LayoutFindings
from sft.training.run_identity import DataDigests, RunIdentity
from sft.training.run_report import RunReport
from sft.training.run_setup import RunSetup
from tests.support import messages
from tests.support.paths import REPOSITORY
from tests.support.report_records import data, result
from tests.support.setups import FLOAT32, NO_COPIES
from tests.support.small_models import build_model


@pytest.fixture(scope="module")
def tiny_model():
    model = build_model("llama")
    return SimpleNamespace(footprint=footprint(model), class_name=type(model).__name__)


def report_into(folder, prepared, *, rank=0):
    train_file = REPOSITORY / "examples/data/orders_train.jsonl"
    config = load_config(
        None, [f"--output_dir={folder}", "--model_name_or_path=examples/tiny-chat", f"--train_file={train_file}"]
    )
    plan = BatchPlan(
        per_device_train_batch_size=1, gradient_accumulation_steps=1, world_size=1, steps_per_epoch=10, total_steps=10
    )
    rows = TrainingData(train=None, validation=None, report=data(has_validation=False))
    identity = RunIdentity(
        configuration=config_values(config),
        configuration_sha256=config_sha256(config),
        data=DataDigests(train="", train_rows=0),
        wandb_run_id="",
        precision=FLOAT32,
        layout="padded",
        trials=LayoutFindings(
            is_padding_free=False, obstacle=None, shares_prefixes=False, uses_output_layer=True, attention="sdpa"
        ),
        environment=compute_environment("cpu", reuses_freed_memory=False),
    )
    setup = RunSetup(
        config=config,
        context=DistributedContext(rank=rank),
        data=rows,
        prepared=prepared,
        plan=plan,
        limits=NO_COPIES,
        identity=identity,
        command="python sft_main.py",
    )
    return RunReport(setup, plan=lambda: plan, bad_steps=lambda: 0)


def state(step):
    return SimpleNamespace(global_step=step)


def test_report_is_written_during_the_run_and_after_a_failure(tmp_path, tiny_model):
    report = report_into(tmp_path, tiny_model)
    report.on_train_begin(None, state(0), None)
    assert messages.RUNNING.format(step=0, total=10) in (tmp_path / "report.md").read_text()
    report.on_save(None, state(4), None)
    assert messages.RUNNING.format(step=4, total=10) in (tmp_path / "report.md").read_text()
    report.on_step_end(None, state(6), None)
    with pytest.raises(OSError, match="No space"), report.reporting_failure():
        raise OSError("No space left on device")
    text = (tmp_path / "report.html").read_text()
    assert messages.FAILED.format(step=6, total=10) in text
    assert "No space left on device" in text
    assert 'http-equiv="refresh"' not in text


def test_report_that_cannot_be_written_is_one_warning(tmp_path, tiny_model, caplog):
    report = report_into(tmp_path, tiny_model)
    (tmp_path / "report.html").mkdir()
    with caplog.at_level(logging.WARNING, logger="sft.train"):
        for step in (1, 2, 3):
            report.on_evaluate(None, state(step), None)
    (line,) = caplog.messages
    assert f"report.html {messages.CANNOT_BE_WRITTEN}" in line
    assert "\n" not in line


def test_a_failure_to_gather_the_facts_does_not_end_the_run(tmp_path, caplog):
    report = report_into(tmp_path, object())
    with caplog.at_level(logging.WARNING, logger="sft.train"):
        report.on_train_begin(None, state(0), None)
        report.finish(result())
    assert [messages.CANNOT_BE_WRITTEN in message for message in caplog.messages] == [True] * 2


def test_report_is_written_by_the_main_process_only(tmp_path, tiny_model):
    report = report_into(tmp_path, tiny_model, rank=1)
    report.on_train_begin(None, state(0), None)
    report.on_save(None, state(1), None)
    report.finish(result())
    assert list(tmp_path.iterdir()) == []

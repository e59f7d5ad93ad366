"""Whether a run may resume from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from sft.checkpointing.checkpoints import (
    check_same_run,
)
from sft.checkpointing.manifest import write_manifest
from sft.checkpointing.resume_point import ResumePoint
from sft.checkpointing.same_run import find_changes, find_other_environment
from tests.support import messages
from tests.support.checkpoints import make_checkpoint

SETTINGS = {
    "seed": 42,
    "max_seq_length": 64,
    "chat_template": None,
    "learning_rate": 1e-3,
    "num_train_epochs": 1.0,
    "logging_steps": 1,
    "save_steps": 2,
    "output_dir": "a",
    "optim": "adamw_torch",
    "packing": False,
    "lora_config": {"r": 4, "lora_dropout": 0.0},
    "model_name_or_path": "base",
    "lr_scheduler_type": "linear",
}
DATA = {"train": "digest", "train_rows": 24, "validation": "another"}
ENVIRONMENT = {
    "device": "cpu",
    "gpu": None,
    "cpu": "A",
    "instruction_set": "AVX512",
    "num_threads": 1,
    "versions": {"torch": "2.13.0", "peft": "0.21.2"},
    "variables": {},
    "reuses_freed_memory": True,
    "gpu_allocator": None,
}
PLAN = {"global_batch_size": 4, "packs": None}


def changes(*, data=None, plan=None, **settings):
    saved = {"configuration": SETTINGS, "data": DATA, "batch_plan": PLAN}
    now = {"configuration": SETTINGS | settings, "data": DATA | (data or {}), "batch_plan": PLAN | (plan or {})}
    return find_changes(Path("out/checkpoint-6"), saved, now)


def test_find_changes_is_empty_if_no_change_matters():
    assert changes() == ([], [])
    assert changes(output_dir="b") == ([], [])


def test_find_changes_refuses_another_on_too_long_of_a_stream_only():
    def found(streaming):
        saved, now = (
            {"configuration": {"streaming": streaming, "on_too_long": value}, "data": DATA, "batch_plan": PLAN}
            for value in ("truncate", "split")
        )
        return find_changes(Path("out/checkpoint-6"), saved, now)

    assert found(False) == ([], ["on_too_long truncate -> split"])
    ((refused,), _) = found(True)
    assert refused.startswith("on_too_long: checkpoint-6 was trained with truncate, and now it is split: each step")


def test_find_changes_refuses_other_probabilities_of_sources():
    def entries(*shares):
        return [{"path": "a", "probability": share} for share in shares]

    assert changes(datasets=[{"path": "a", "weight": 1.0}]) == ([], [])
    ((refused,), _) = changes(datasets=entries(0.5, 0.5))
    assert refused.startswith(
        "datasets[].probability: checkpoint-6 was trained with null, and now it is [0.5, 0.5]: each"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", 2e-3),
        ("num_train_epochs", 2.0),
        ("logging_steps", 5),
        ("save_steps", 5),
        ("lr_scheduler_type", "cosine"),
        ("lora_config", {"r": 4, "lora_dropout": 0.1}),
    ],
)
def test_find_changes_returns_allowed_changes(key, value):
    refused, allowed = changes(**{key: value})
    assert refused == []
    assert len(allowed) == 1
    assert allowed[0].startswith(key)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("max_seq_length", 32),
        ("chat_template", "plain"),
        ("optim", "sgd"),
        ("packing", True),
        ("lora_config", {"r": 8, "lora_dropout": 0.0}),
        ("lora_config", None),
        ("model_name_or_path", "other"),
        ("lr_scheduler_type", "greedy"),
    ],
)
def test_find_changes_refuses_what_would_corrupt_the_run(key, value):
    refused, _ = changes(**{key: value})
    assert len(refused) == 1
    assert refused[0].startswith(key)
    assert "\n" not in refused[0]


def test_find_changes_refuses_other_data_and_another_step_size():
    (line,), _ = changes(data={"train": "other", "train_rows": 25})
    assert messages.OTHER_ROWS.format(before=24, after=25) in line
    (line,), _ = changes(plan={"global_batch_size": 8})
    assert messages.OTHER_BATCH_SIZE.format(before=4, after=8) in line
    assert changes(data={"validation": "other"}) == ([], ["the validation data"])


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("num_threads", 2, "threads 1 -> 2"),
        ("cpu", "B", "CPU A -> B"),
        ("instruction_set", "AVX2", "CPU instructions AVX512 -> AVX2"),
        ("device", "cuda", "device cpu -> cuda"),
        ("gpu", "H100", "GPU null -> H100"),
        ("reuses_freed_memory", False, "reuse of freed memory True -> False"),
        ("gpu_allocator", "backend:native", "allocator of GPU memory null -> backend:native"),
        ("versions", {"torch": "2.11.0", "peft": "0.21.2"}, "torch 2.13.0 -> 2.11.0"),
        ("versions", {"torch": "2.13.0"}, "peft 0.21.2 -> unset"),
        ("versions", {"torch": "2.13.0", "peft": "0.21.2", "x": "1"}, "x unset -> 1"),
        ("variables", {"ONEDNN_MAX_CPU_ISA": "AVX2"}, "ONEDNN_MAX_CPU_ISA unset -> AVX2"),
    ],
)
def test_find_other_environment_names_each_difference(key, value, line):
    assert find_other_environment(ENVIRONMENT, ENVIRONMENT) == []
    assert find_other_environment(ENVIRONMENT, ENVIRONMENT | {key: value}) == [line]


def test_find_other_environment_sorts_and_ignores_entries_of_another_version():
    now = ENVIRONMENT | {"num_threads": 2, "cpu": "B", "new": 1}
    assert find_other_environment(ENVIRONMENT | {"old": 1}, now) == ["CPU A -> B", "threads 1 -> 2"]


@pytest.mark.parametrize(
    ("saved", "now", "expected"),
    [
        (ENVIRONMENT, ENVIRONMENT, None),
        (ENVIRONMENT, ENVIRONMENT | {"num_threads": 2, "cpu": "B"}, ": CPU A -> B; threads 1 -> 2."),
        (None, ENVIRONMENT, "checkpoint-6 does not record the threads"),
    ],
)
def test_check_same_run_logs_another_environment_in_one_line(tmp_path, caplog, saved, now, expected):
    manifest = {"configuration": SETTINGS, "data": DATA, "world_size": 1, "environment": saved}
    point = ResumePoint(path=tmp_path / "checkpoint-6", step=6, manifest=manifest)
    with caplog.at_level("INFO", "sft.train"):
        check_same_run(point, {"configuration": SETTINGS, "data": DATA, "environment": now}, PLAN, 1)
    assert len(caplog.messages) == (expected is not None)
    assert expected is None or expected in caplog.text


def test_check_same_run_logs_another_number_of_processes(tmp_path, caplog):
    checkpoint = make_checkpoint(tmp_path, 6)
    facts = {"configuration": SETTINGS, "data": DATA, "environment": ENVIRONMENT}
    write_manifest(checkpoint, {**facts, "batch_plan": PLAN, "world_size": 2})
    with caplog.at_level("INFO", "sft.train"):
        check_same_run(ResumePoint.read(checkpoint), facts, PLAN, 2)
        assert caplog.messages == []
        check_same_run(ResumePoint.read(checkpoint), facts, PLAN, 1)
    assert messages.OTHER_WORLD_SIZE.format(name="checkpoint-6", before=2, after=1) in caplog.text

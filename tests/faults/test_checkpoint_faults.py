"""Runs that end during a save, on one process and on two, and the runs that resume from them. Takes minutes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sft.checkpointing.checkpoints import list_checkpoints
from sft.checkpointing.manifest import find_damage
from tests.support import messages
from tests.support.checkpoints import as_if_killed, digests, evaluated, trained
from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.slow

KINDS = {
    "full": {},
    "dropout": {"architecture": "gpt2", "max_seq_length": 96},
    "adapters": {"lora_config.r": 4, "lora_config.lora_dropout": 0.2},
    "packed": {"packing": True, "per_device_train_batch_size": 1},
    "seldom logged": {"logging_steps": 4},
    "workers": {"architecture": "gpt2", "max_seq_length": 96, "dataloader_num_workers": 2},
}


@pytest.fixture
def start(model_folder, question_file, tmp_path):
    """Run the command in subprocesses: `start(name, processes=2, fail="kill:0:rename", key=value, ...)`."""

    def run(
        name: str, *, processes: int = 1, fail: str = "", record: Path | str = "", **settings
    ) -> subprocess.CompletedProcess:
        keys = {
            "model_name_or_path": model_folder(settings.pop("architecture", "llama")),
            "train_file": question_file,
            "max_seq_length": 64,
            "per_device_train_batch_size": 4 // processes,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "sample_prompts": "[]",
            "save_total_limit": "null",
            "output_dir": tmp_path / name,
            **settings,
        }
        arguments = [f"--{key}={value}" for key, value in keys.items()]
        program = [sys.executable, "tests/support/run_failing_save.py"]
        if processes > 1:
            launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
            program = [*launcher, "tests/support/run_failing_save.py"]
        return subprocess.run(
            [*program, *arguments],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env={
                **os.environ,
                "FAIL_SAVE": fail,
                "RECORD_ROWS": str(record),
                "PYTHONPATH": str(REPOSITORY),
                "OMP_NUM_THREADS": "1",
            },
        )

    return run


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumed_after_a_kill_is_identical(start, tmp_path, kind, processes):
    settings = {"validation_split": 0.25, "num_train_epochs": 2, "save_steps": 1, **KINDS[kind]}
    if kind == "packed":
        settings["gradient_accumulation_steps"] = 2 // processes
    done = start("reference", processes=processes, **settings)
    assert done.returncode == 0, done.stderr
    reference = tmp_path / "reference"
    plan = json.loads((reference / "run_summary.json").read_text())["batch_plan"]
    edge, last = plan["steps_per_epoch"], plan["total_steps"]
    for step in (edge - 1, edge) if edge > 1 else (edge,):
        folder = as_if_killed(reference, tmp_path / f"killed-{step}", step)
        again = start(folder.name, processes=processes, resume_from_checkpoint="auto", **settings)
        assert again.returncode == 0, again.stderr
        assert messages.RESUMING_FROM.format(path=folder / f"checkpoint-{step}") in again.stdout
        assert messages.CHANGED not in again.stdout
        assert trained(folder) == trained(reference)
        assert evaluated(folder) == evaluated(reference)
        assert digests(folder / f"checkpoint-{last}") == digests(reference / f"checkpoint-{last}")
        ours, theirs = (json.loads((run / "run_summary.json").read_text()) for run in (folder, reference))
        assert ours["eval_before"] == theirs["eval_before"]
        assert ours["eval_after"] == theirs["eval_after"]


@pytest.fixture
def uninterrupted(start, tmp_path):
    """A run of 6 steps with checkpoints at 2, 4 and 6, of which the newest is kept."""
    assert start("reference", **ENDED).returncode == 0
    return tmp_path / "reference"


ENDED = {"max_steps": 6, "save_steps": 2, "save_total_limit": 1}
PLACES = ("weights", "optimizer", "random", "manifest", "fsync", "rename", "published", "deleting")


def test_a_save_that_ends_at_any_point_leaves_a_checkpoint_to_resume_from(start, uninterrupted, tmp_path):
    for how in ("kill", "full"):
        for place in PLACES:
            if (how, place) in (("full", "published"), ("full", "deleting")):
                continue
            name = f"{how}-{place}"
            ended = start(name, fail=f"{how}:0:{place}", **ENDED)
            assert ended.returncode == (-signal.SIGKILL if how == "kill" else 2), (name, ended.stderr)
            left = list_checkpoints(tmp_path / name)
            assert left, name
            assert all(find_damage(path) == [] for path in left), name
            if how == "full":
                assert ended.stderr.count("\n") == 1
                assert messages.CHECKPOINT_NOT_WRITTEN.format(step=4) in ended.stderr
                assert "No space left on device" in ended.stderr
            again = start(name, resume_from_checkpoint="auto", **ENDED)
            assert again.returncode == 0, (name, again.stderr)
            assert messages.CANNOT_RESUME not in again.stdout, name
            assert trained(tmp_path / name) == trained(uninterrupted), name
            (checkpoint,) = list_checkpoints(tmp_path / name)
            assert digests(checkpoint) == digests(uninterrupted / "checkpoint-6"), name
            assert not (tmp_path / name / ".unfinished").exists()


FINAL_PLACES = ("final weights", "final tokenizer", "final fsync", "final move", "final last")


def test_a_final_save_that_ends_at_any_point_leaves_no_partial_model_and_the_run_can_be_finished(start, tmp_path):
    settings = {**ENDED, "max_steps": 5, "num_train_epochs": 3}  # 5 is in the middle of an epoch
    assert start("shorter", **settings).returncode == 0
    reference = (tmp_path / "shorter" / "model.safetensors").read_bytes()
    for how in ("kill", "full"):
        for place in FINAL_PLACES:
            name = f"{how}-{place}"
            ended = start(name, fail=f"{how}:0:{place}", **settings)
            assert ended.returncode == (-signal.SIGKILL if how == "kill" else 2), (name, ended.stderr)
            assert not (tmp_path / name / "config.json").exists(), name
            if how == "full":
                assert ended.stderr.count("\n") == 1
                assert "No space left on device" in ended.stderr
            again = start(name, resume_from_checkpoint="auto", **settings)
            assert again.returncode == 0, (name, again.stderr)
            assert (tmp_path / name / "model.safetensors").read_bytes() == reference, name
            assert trained(tmp_path / name) == trained(tmp_path / "shorter"), name
            assert not (tmp_path / name / ".unfinished").exists(), name


@pytest.mark.parametrize(("rank", "place"), [(0, "weights"), (0, "optimizer"), (1, "random"), (0, "rename")])
def test_a_disk_that_is_full_for_one_process_ends_both_with_one_line(start, tmp_path, rank, place):
    # A best checkpoint makes Trainer wait at its own barrier during a save.
    settings = {**ENDED, "validation_split": 0.25, "eval_steps": 2, "load_best_model_at_end": True}
    done = start("two", processes=2, fail=f"full:{rank}:{place}", **settings)
    assert done.returncode != 0
    assert done.stderr.count(messages.CHECKPOINT_NOT_WRITTEN.format(step=4)) == 1
    assert "OSError" not in done.stderr
    assert [path.name for path in list_checkpoints(tmp_path / "two")] == ["checkpoint-2"]
    again = start("two", processes=2, resume_from_checkpoint="auto", **settings)
    assert again.returncode == 0, again.stderr
    assert [step for step, *_ in trained(tmp_path / "two")] == [1, 2, 3, 4, 5, 6]


def rows_of_steps(folder):
    """Step -> numbers of the rows that all processes trained on."""
    steps = {}
    for path in folder.glob("rows-*.jsonl"):
        for line in path.read_text().splitlines():
            step, rows = json.loads(line)
            steps.setdefault(step, []).extend(rows)
    return {step: sorted(rows) for step, rows in sorted(steps.items())}


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_resumes_with_another_number_of_processes_in_the_same_order(start, tmp_path, before, after):
    settings = {
        "num_train_epochs": 2,
        "save_steps": 4,
        "global_batch_size": 4,
        "per_device_train_batch_size": 1,
        "learning_rate": 1e-3,
    }
    for name in ("reference-rows", "rows"):
        (tmp_path / name).mkdir()
    done = start("reference", processes=before, record=tmp_path / "reference-rows", **settings)
    assert done.returncode == 0, done.stderr
    reference = tmp_path / "reference"
    folder = as_if_killed(reference, tmp_path / "killed", 4)
    again = start("killed", processes=after, record=tmp_path / "rows", resume_from_checkpoint="auto", **settings)
    assert again.returncode == 0, again.stderr
    line = messages.OTHER_WORLD_SIZE.format(name="checkpoint-4", before=before, after=after)
    assert again.stdout.count(line) == 1
    rows, expected = rows_of_steps(tmp_path / "rows"), rows_of_steps(tmp_path / "reference-rows")
    assert list(expected) == list(range(1, 13))
    assert sorted(row for step in range(1, 7) for row in expected[step]) == list(range(24))
    assert rows == {step: expected[step] for step in range(5, 13)}
    ours, theirs = trained(folder), trained(reference)
    assert [step for step, *_ in ours] == [step for step, *_ in theirs]
    for (_, loss, *_), (_, expected_loss, *_) in zip(ours, theirs, strict=True):
        assert loss == pytest.approx(expected_loss, rel=1e-5)


def test_a_run_with_another_number_of_rows_per_step_is_not_resumed(start, tmp_path):
    settings = {"num_train_epochs": 1, "save_steps": 3}
    assert start("reference", **settings).returncode == 0
    as_if_killed(tmp_path / "reference", tmp_path / "back", 3)
    refused = start("back", resume_from_checkpoint="auto", **{**settings, "per_device_train_batch_size": 2})
    assert refused.returncode == 2
    assert messages.OTHER_BATCH_SIZE.format(before=4, after=2) in refused.stderr

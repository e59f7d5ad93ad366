"""Resuming from checkpoints in real runs: damage, changed settings, rotation, what they contain."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sft.checkpointing.manifest import find_damage, read_manifest
from tests.support import messages
from tests.support.checkpoints import as_if_killed, trained
from tests.support.paths import REPOSITORY


def test_a_damaged_checkpoint_is_moved_aside_and_the_previous_one_is_resumed(short_run):
    first = short_run()
    steps = trained(first.output_dir)
    for step, name in ((6, "optimizer.pt"), (4, "trainer_state.json")):
        path = first.output_dir / f"checkpoint-{step}" / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    # Files that the manifest does not name, some of which Trainer and we would read; and torn logs.
    for name in ("adapter_model.safetensors", "weights-1-of-1.safetensors", "scaler.pt", "pytorch_model.bin"):
        (first.output_dir / "checkpoint-2" / name).write_bytes(b"planted")
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (first.output_dir / name).open("ab") as log:
            log.write('{"step": 6, "prompt": "caf\u00e9'.encode()[:-1])
    again = short_run(resume_from_checkpoint="auto")
    assert again.status == 0, again.err
    planted = "adapter_model.safetensors, pytorch_model.bin, scaler.pt, weights-1-of-1"
    assert messages.NOT_READ.format(names=planted) in again.out
    assert again.out.count(messages.TORN_LINE) == 2
    assert f"checkpoint-6 {messages.CANNOT_RESUME}: optimizer.pt {messages.CHANGED_FILE}" in again.out
    assert f"checkpoint-4 {messages.CANNOT_RESUME}: trainer_state.json {messages.CHANGED_FILE}" in again.out
    assert (first.output_dir / "earlier-run-1" / "checkpoint-6").is_dir()
    assert trained(again.output_dir) == steps
    assert find_damage(first.output_dir / "checkpoint-6") == []


def test_a_log_of_several_steps_is_the_same_if_the_run_is_resumed_between_them(short_run, tmp_path):
    settings = {"logging_steps": 4}
    uninterrupted = short_run(**settings)
    assert [step for step, *_ in trained(uninterrupted.output_dir)] == [4, 6]
    folder = as_if_killed(uninterrupted.output_dir, tmp_path / "killed", 2)
    again = short_run(**settings, resume_from_checkpoint="auto", output_dir=folder)
    assert again.status == 0, again.err
    assert trained(folder) == trained(uninterrupted.output_dir)
    ends = [
        next(event["train_loss"] for event in run.metrics if "train_loss" in event) for run in (uninterrupted, again)
    ]
    every_step = short_run(logging_steps=1, output_dir=tmp_path / "every")
    steps = [event for event in every_step.metrics if "loss" in event]
    mean = sum(event["loss"] for event in steps) / 6
    assert ends == [pytest.approx(mean, rel=1e-6), ends[0]]
    seen = [0, *(event["supervised_tokens_seen"] for event in steps)]
    hits = [event["token_accuracy"] * (b - a) for event, a, b in zip(steps, seen, seen[1:], strict=False)]
    assert trained(folder)[0][2] == pytest.approx(sum(hits[:4]) / seen[4], rel=1e-9)
    assert uninterrupted.summary["train"]["loss"] == again.summary["train"]["loss"] == ends[0]


def test_checkpoints_after_the_selected_one_are_moved_aside(short_run):
    first = short_run()
    again = short_run(resume_from_checkpoint=str(first.output_dir / "checkpoint-2"), max_steps=4)
    assert again.status == 0, again.err
    assert sorted(path.name for path in (first.output_dir / "earlier-run-1").iterdir()) == [
        "checkpoint-4",
        "checkpoint-6",
    ]
    assert [step for step, *_ in trained(again.output_dir)] == [1, 2, 3, 4]


def test_changed_settings_are_logged_in_one_line_and_take_effect(short_run, run_sft):
    first = short_run()
    shutil.rmtree(first.output_dir / "checkpoint-6")
    again = short_run(
        resume_from_checkpoint="auto", learning_rate=5e-3, max_steps=8, logging_steps=2, weight_decay=0.5, save_steps=4
    )
    assert again.status == 0, again.err
    start = messages.CHANGED_SINCE.format(name="checkpoint-4")
    (line,) = [line for line in again.out.splitlines() if line.startswith(start)]
    for change in (
        "learning_rate 0.01 -> 0.005",
        "max_steps 6 -> 8",
        "logging_steps 1 -> 2",
        "weight_decay 0.0 -> 0.5",
        "save_steps 2 -> 4",
    ):
        assert change in line
    rates = {step: rate for step, *_, rate in trained(again.output_dir)}
    assert rates[6] == pytest.approx(5e-3 * 3 / 8)  # after 5 of 8 steps
    assert rates[8] == pytest.approx(5e-3 * 1 / 8)
    optimizer = torch.load(again.output_dir / "checkpoint-8" / "optimizer.pt", weights_only=True)
    assert max(group["weight_decay"] for group in optimizer["param_groups"]) == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1}, messages.OTHER_SETTING.format(key="seed", name="checkpoint-6", before="42, and now it is 1")),
        ({"per_device_train_batch_size": 2}, messages.OTHER_BATCH_SIZE.format(before=4, after=2)),
        ({"max_seq_length": 32}, messages.OTHER_SETTING.format(key="max_seq_length", name="checkpoint-6", before=64)),
        ({"train_on": "last", "train_file": None}, messages.OTHER_ROWS.format(before=24, after=23)),
    ],
)
def test_changes_that_would_corrupt_the_run_are_refused_in_one_line(
    short_run, question_file, tmp_path, settings, message
):
    short_run(num_train_epochs=4, max_steps=6)
    if "train_file" in settings:
        other = tmp_path / "other.jsonl"
        other.write_text("".join(Path(question_file).read_text().splitlines(keepends=True)[1:]))
        settings = {**settings, "train_file": str(other)}
    run = short_run(resume_from_checkpoint="auto", max_steps=8, **settings)
    assert run.status == 2
    assert message in run.err
    assert run.err.count("\n") == 1


def test_moved_data_is_recognized_as_the_same_data(short_run, question_file, tmp_path):
    short_run()
    moved = shutil.copy(question_file, tmp_path / "moved.jsonl")
    run = short_run(resume_from_checkpoint="auto", max_steps=8, train_file=str(moved))
    assert run.status == 0, run.err
    assert messages.CHANGED_SINCE.format(name="checkpoint-6") + "max_steps 6 -> 8; train_file " in run.out


def test_a_second_run_into_the_same_folder_is_refused(short_run, tmp_path):
    (tmp_path / "out").mkdir()
    code = (
        "import sys\nfrom sft.checkpointing.output_lock import OutputLock\nlock = OutputLock()\n"
        "lock.take(sys.argv[1])\n"
        "print('held', flush=True)\nsys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    holder.stdout.readline()
    run = short_run()
    holder.communicate("")
    assert run.status == 2
    assert messages.FOLDER_IN_USE.format(process=holder.pid) in run.err
    assert run.err.count("\n") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    assert short_run().status == 0


def finished_config(folder):
    entries = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert entries["tokenizer_class"] == "PreTrainedTokenizerFast"
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def test_no_file_holds_a_token_and_no_checkpoint_a_pickle_that_could_run(short_run):
    run = short_run(hub_token="hf_a_secret_of_mine", report_to="tensorboard")
    assert run.status == 0, run.err
    for path in run.output_dir.rglob("*"):
        if path.is_file():
            assert b"hf_a_secret_of_mine" not in path.read_bytes(), path
    for path in run.output_dir.glob("checkpoint-6/*.p*t*"):
        from transformers.trainer_pt_utils import safe_globals

        with safe_globals():
            torch.load(path, weights_only=True)
    assert not list(run.output_dir.rglob("*.bin"))
    # Every folder that another program may load is finished, before its digests were computed.
    for folder in (run.output_dir, *run.output_dir.glob("checkpoint-*")):
        assert finished_config(folder)["rope_theta"] == 10_000.0
        assert folder == run.output_dir or find_damage(folder) == []


def test_rotation_keeps_the_best_and_its_name_in_the_state(run_sft):
    run = run_sft(
        learning_rate=3e-2,
        lr_scheduler_type="constant",
        num_train_epochs=6,
        eval_steps=3,
        save_steps=3,
        save_total_limit=1,
        load_best_model_at_end=True,
        sample_prompts="[]",
        validation_split=0.25,
    )
    assert run.status == 0, run.err
    left = sorted(run.output_dir.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    state = json.loads((left[-1] / "trainer_state.json").read_text())
    best = run.output_dir / f"checkpoint-{state['best_global_step']}"
    assert state["best_model_checkpoint"] == str(best)
    assert left == sorted({best, left[-1]}, key=lambda path: int(path.name.rpartition("-")[2]))
    assert left[-1].name == f"checkpoint-{run.summary['train']['steps']}"


def test_trackers_continue_the_same_run(short_run, run_sft, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    trackers = {"report_to": "[tensorboard, wandb]"}
    first = short_run(**trackers, run_name="a-name")
    assert first.status == 0, first.err
    shutil.rmtree(first.output_dir / "checkpoint-6")
    for name in ("WANDB_RUN_ID", "WANDB_RESUME", "TENSORBOARD_LOGGING_DIR"):
        monkeypatch.delenv(name, raising=False)
    again = short_run(**trackers, resume_from_checkpoint="auto")
    assert again.status == 0, again.err
    assert messages.CHANGED not in again.out
    manifest = read_manifest(again.output_dir / "checkpoint-6")
    assert manifest["configuration"]["run_name"] == "a-name"
    records = {path.name.partition("-run-")[2].rpartition("-")[2] for path in (again.output_dir / "wandb").glob("off*")}
    assert records == {manifest["wandb_run_id"]}
    events = EventAccumulator(str(again.output_dir / "logs")).Reload().Scalars("train/loss")
    assert [event.step for event in events] == [1, 2, 3, 4, 5, 6]


def test_a_run_whose_last_save_was_lost_is_finished_from_the_last_checkpoint(short_run):
    uninterrupted = short_run()  # 6 steps end an epoch; 5 do not
    for steps in (6, 5):
        first = short_run(max_steps=steps)
        weights = (first.output_dir / "model.safetensors").read_bytes()
        measured = first.summary["train"]
        (first.output_dir / "config.json").unlink()
        again = short_run(max_steps=steps, resume_from_checkpoint="auto")
        assert again.status == 0, again.err
        assert [step for step, *_ in trained(again.output_dir)] == list(range(1, steps + 1))
        assert (again.output_dir / "model.safetensors").read_bytes() == weights
        assert (again.output_dir / "config.json").is_file()
        assert again.summary["train"] == measured  # nothing was left to train
    assert uninterrupted.status == 0


def test_a_damaged_best_checkpoint_is_logged_and_the_last_weights_are_kept(run_sft, monkeypatch):
    from sft.training import checkpointed_trainer

    settings = {
        "validation_split": 0.25,
        "sample_prompts": "[]",
        "save_total_limit": "null",
        "num_train_epochs": 3,
        "learning_rate": 3e-2,
        "lr_scheduler_type": "constant",
    }
    load_best_model = checkpointed_trainer.CheckpointedTrainer._load_best_model

    def damage_then_load(trainer):
        path = Path(trainer.state.best_model_checkpoint, "model.safetensors")
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        load_best_model(trainer)

    with monkeypatch.context() as patched:
        patched.setattr(checkpointed_trainer.CheckpointedTrainer, "_load_best_model", damage_then_load)
        run = run_sft(load_best_model_at_end=True, **settings)
    assert run.status == 0, run.err
    assert run.out.count(messages.BEST_DAMAGED.format(problem=f"model.safetensors {messages.CHANGED_FILE}")) == 1
    assert messages.BEST_LOADED not in run.out
    last = run.output_dir / f"checkpoint-{run.summary['train']['steps']}" / "model.safetensors"
    plain = run_sft(output_dir=str(run.output_dir) + "-plain", **settings)
    assert (run.output_dir / "model.safetensors").read_bytes() == (plain.output_dir / "model.safetensors").read_bytes()
    assert last.is_file()
    assert run.summary["eval_after"] == plain.summary["eval_after"]

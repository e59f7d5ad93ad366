"""State in an undamaged checkpoint that cannot be read: of another version, or of another shape."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from safetensors.torch import save_file
from transformers.trainer_callback import TrainerState

from sft.checkpointing.checkpoints import resolve_checkpoint
from sft.checkpointing.manifest import write_manifest
from sft.common.errors import ConfigError
from sft.training.saved_state import STATE_FILE, find_unreadable
from tests.support import messages


def make_readable(folder, step):
    """A checkpoint whose files can be read; returns its path."""
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    state = TrainerState(global_step=step, epoch=0.5, log_history=[{"step": 1, "loss": 2.0}])
    state.save_to_json(str(path / STATE_FILE))
    torch.save({"state": {}, "param_groups": [{"lr": 0.1}]}, path / "optimizer.pt")
    torch.save({"last_epoch": 1}, path / "scheduler.pt")
    torch.save({"python": (3, ()), "numpy": ("MT19937",), "cpu": torch.zeros(3)}, path / "rng_state.pth")
    save_file({"weight": torch.zeros(2)}, path / "model.safetensors")
    write_manifest(path, {"step": step})
    return path


def with_state(**changes):
    return lambda path: (path / STATE_FILE).write_text(
        json.dumps(json.loads((path / STATE_FILE).read_text()) | changes)
    )


def with_content(name, content):
    return lambda path: (path / name).write_bytes(content)


def with_object(name, value):
    return lambda path: torch.save(value, path / name)


UNREADABLE = {
    "settings of the model that are empty": ("config.json", with_content("config.json", b"")),
    "settings of the adapters that are cut": ("adapter_config.json", with_content("adapter_config.json", b"{")),
    "settings of generation that are a list": ("generation_config.json", with_content("generation_config.json", b"[]")),
    "field of a newer version": (STATE_FILE, with_state(field_of_a_newer_transformers=1)),
    "no step": (STATE_FILE, with_state(global_step=None)),
    "other step": (STATE_FILE, with_state(global_step=99)),
    "null where steps are counted": (STATE_FILE, with_state(logging_steps=None)),
    "null between evaluations": (STATE_FILE, with_state(eval_steps=None)),
    "step as text": (STATE_FILE, with_state(global_step="4")),
    "epoch as list": (STATE_FILE, with_state(epoch=[])),
    "history as mapping": (STATE_FILE, with_state(log_history={})),
    "event without step": (STATE_FILE, with_state(log_history=[{"loss": 1}])),
    "events that are texts": (STATE_FILE, with_state(log_history=["x"])),
    "callbacks as list": (STATE_FILE, with_state(stateful_callbacks=["x"])),
    "callback as number": (STATE_FILE, with_state(stateful_callbacks={"TrainerControl": 5})),
    "best metric as text": (STATE_FILE, with_state(best_metric="x")),
    "deep": (STATE_FILE, with_content(STATE_FILE, b"[" * 100_000)),
    "deep below a key": (STATE_FILE, with_state(trial_params=json.loads("[" * 90 + "]" * 90))),
    "list": (STATE_FILE, with_content(STATE_FILE, b"[]")),
    "empty": (STATE_FILE, with_content(STATE_FILE, b"")),
    "binary": (STATE_FILE, with_content(STATE_FILE, b"\xff\x00")),
    "missing": (STATE_FILE, lambda path: (path / STATE_FILE).unlink()),
    "scheduler is garbage": ("scheduler.pt", with_content("scheduler.pt", b"garbage")),
    "scheduler is a list": ("scheduler.pt", with_object("scheduler.pt", [1])),
    "optimizer is empty": ("optimizer.pt", with_content("optimizer.pt", b"")),
    "optimizer lacks its groups": ("optimizer.pt", with_object("optimizer.pt", {"state": {}})),
    "optimizer has code": ("optimizer.pt", with_object("optimizer.pt", {"state": TrainerState()})),
    "random state lacks a part": ("rng_state.pth", with_object("rng_state.pth", {"python": (3, ())})),
    "random state is a number": ("rng_state.pth", with_object("rng_state.pth", 5)),
    "weights are cut": ("model.safetensors", with_content("model.safetensors", b"\x08\x00\x00")),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_auto_takes_the_checkpoint_before_one_that_cannot_be_read(tmp_path, kind, caplog):
    name, change = UNREADABLE[kind]
    before, newest = make_readable(tmp_path, 2), make_readable(tmp_path, 4)
    assert resolve_checkpoint("auto", str(tmp_path), find_unreadable).path == newest
    change(newest)
    write_manifest(newest, {"step": 4})
    with caplog.at_level(logging.INFO, logger="sft.train"):
        assert resolve_checkpoint("auto", str(tmp_path), find_unreadable).path == before
    (line,) = caplog.messages
    assert line.startswith(f"{newest} {messages.CANNOT_RESUME}: {name}: ")
    with pytest.raises(ConfigError, match=f"checkpoint-4 {messages.CANNOT_RESUME}: ") as raised:
        resolve_checkpoint(str(newest), str(tmp_path), find_unreadable)
    (problem,) = raised.value.problems
    assert name in problem

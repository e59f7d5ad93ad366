"""The checkpoint to resume from, and earlier runs moved aside."""

from __future__ import annotations

import pytest

from sft.checkpointing.checkpoints import (
    check_steps_are_left,
    check_writable,
    list_checkpoints,
    resolve_checkpoint,
    set_aside_earlier_run,
    set_aside_later_checkpoints,
)
from sft.checkpointing.manifest import write_manifest
from sft.checkpointing.resume_point import ResumePoint
from sft.common.errors import ConfigError
from tests.support import messages
from tests.support.checkpoints import COMPLETE, make_checkpoint


def test_list_checkpoints_is_ordered_by_step(tmp_path):
    for step in (100, 9, 20):
        make_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-old").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]


@pytest.mark.parametrize("missing", COMPLETE)
def test_resolve_checkpoint_skips_an_incomplete_one(tmp_path, missing, caplog):
    make_checkpoint(tmp_path, 10)
    broken = make_checkpoint(tmp_path, 20, [name for name in COMPLETE if name != missing])
    with caplog.at_level("INFO", "sft.train"):
        assert resolve_checkpoint("auto", str(tmp_path)).path.name == "checkpoint-10"
    assert caplog.messages == [f"{broken} {messages.CANNOT_RESUME}: {messages.FILE_MISSING.format(name=missing)}."]
    assert resolve_checkpoint(True, str(tmp_path)).name == "checkpoint-10"
    with pytest.raises(ConfigError, match=messages.FILE_MISSING.format(name=missing)):
        resolve_checkpoint(str(broken), str(tmp_path))


def test_resolve_checkpoint_without_one(tmp_path):
    assert resolve_checkpoint(None, str(tmp_path)) is None
    assert resolve_checkpoint(False, str(tmp_path)) is None
    assert resolve_checkpoint("auto", str(tmp_path)) is None
    with pytest.raises(ConfigError, match=messages.WRITE_AUTO):
        resolve_checkpoint(True, str(tmp_path))


def test_set_aside_earlier_run_moves_only_what_a_run_wrote(tmp_path):
    assert set_aside_earlier_run(tmp_path) is None
    make_checkpoint(tmp_path, 5)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "notes.txt").write_text("mine")
    assert set_aside_earlier_run(tmp_path) == tmp_path / "earlier-run-1"
    assert (tmp_path / "earlier-run-1" / "checkpoint-5" / "optimizer.pt").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier-run-1", "notes.txt"]
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert set_aside_earlier_run(tmp_path) == tmp_path / "earlier-run-2"


@pytest.mark.parametrize(("step", "total", "is_fine"), [(3, 5, True), (4, 4, True), (5, 5, True), (8, 5, False)])
def test_check_steps_are_left_refuses_a_checkpoint_after_the_last_step(tmp_path, step, total, is_fine):
    checkpoint = ResumePoint.read(make_checkpoint(tmp_path, step))
    check_steps_are_left(None, total)
    if is_fine:
        check_steps_are_left(checkpoint, total)
    else:
        with pytest.raises(ConfigError, match=messages.NOTHING_LEFT):
            check_steps_are_left(checkpoint, total)


def test_check_writable_refuses_a_path_below_a_file_and_creates_nothing(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=messages.pattern(messages.IS_A_FILE, path="output_dir: .*file")):
        check_writable(tmp_path / "file" / "b")


def test_resolve_checkpoint_refuses_a_checkpoint_of_only_weights(tmp_path):
    path = make_checkpoint(tmp_path, 3)
    write_manifest(path, {"save_only_model": True})
    assert resolve_checkpoint("auto", str(tmp_path)) is None
    with pytest.raises(ConfigError, match=messages.ONLY_WEIGHTS):
        resolve_checkpoint(str(path), str(tmp_path))


def test_set_aside_later_checkpoints_leaves_the_earlier_ones(tmp_path):
    kept = make_checkpoint(tmp_path, 10)
    make_checkpoint(tmp_path, 5)
    make_checkpoint(tmp_path, 15)
    assert set_aside_later_checkpoints(tmp_path, ResumePoint.read(kept)) == tmp_path / "earlier-run-1"
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-10"]
    assert set_aside_later_checkpoints(tmp_path, ResumePoint.read(kept)) is None

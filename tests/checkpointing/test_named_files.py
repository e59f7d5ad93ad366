"""Files in a checkpoint that its manifest does not name."""

from __future__ import annotations

import logging
import os

import pytest

from sft.checkpointing.manifest import MANIFEST_FILE, find_damage
from sft.checkpointing.named_files import named_files_of
from tests.support.checkpoints import COMPLETE, make_checkpoint


def test_a_checkpoint_without_other_files_is_read_itself(tmp_path, caplog):
    path = make_checkpoint(tmp_path, 3)
    with caplog.at_level(logging.INFO, logger="sft.train"), named_files_of(path) as folder:
        assert folder == path
    assert not caplog.messages


@pytest.mark.parametrize(
    "planted",
    [
        ["adapter_model.safetensors"],
        ["pytorch_model.bin", "model.safetensors.index.json"],
        ["weights-1-of-1.safetensors"],
        ["sub/adapter_model.safetensors"],
        [f"file-{number}" for number in range(9)],
        [os.fsdecode(b"\xff")],
    ],
    ids=str,
)
def test_other_files_are_not_in_the_folder_that_is_read(tmp_path, monkeypatch, planted, caplog):
    path = make_checkpoint(tmp_path, 3)
    for name in planted:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("planted")
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO, logger="sft.train"), named_files_of(path.relative_to(tmp_path)) as folder:
        assert folder.name == path.name
        assert sorted(each.name for each in folder.rglob("*")) == sorted([*COMPLETE, MANIFEST_FILE])
        assert find_damage(folder) == []
    assert not folder.exists()
    (line,) = caplog.messages
    assert ("file-4, ..." if len(planted) > 5 else "are not read: ") in line
    assert all((path / name).exists() for name in planted)

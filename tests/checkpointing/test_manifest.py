"""Damage that the manifest reveals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sft.checkpointing.manifest import MANIFEST_FILE, find_damage, read_manifest, write_manifest
from tests.support import messages
from tests.support.checkpoints import COMPLETE, make_checkpoint


def damage(path: Path, how: str) -> None:
    """Harms a file: cut by half, one bit turned, emptied, or deleted."""
    content = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "bit":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        path.write_bytes(content[: len(content) // 2 if how == "cut" else 0])


@pytest.mark.parametrize("how", ["cut", "bit", "emptied", "deleted"])
@pytest.mark.parametrize("name", [*COMPLETE, MANIFEST_FILE])
def test_find_damage_names_the_file_whatever_happened_to_it(tmp_path, name, how):
    path = make_checkpoint(tmp_path, 7)
    assert find_damage(path) == []
    damage(path / name, how)
    (problem,) = find_damage(path)
    assert problem.startswith(name)


def test_find_damage_finds_every_single_bit_of_a_manifest(tmp_path):
    path = make_checkpoint(tmp_path, 7)
    content = (path / MANIFEST_FILE).read_bytes()
    written = json.loads(content)
    for place in range(len(content)):
        turned = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        (path / MANIFEST_FILE).write_bytes(turned)
        if not find_damage(path):
            assert json.loads(turned) == written  # a space more or less


def test_find_damage_reads_the_files_of_folders_too(tmp_path):
    path = tmp_path / "checkpoint-1"
    (path / "optimizer_0").mkdir(parents=True)
    (path / "optimizer_0" / "__0_0.distcp").write_text("shard")
    write_manifest(path, {})
    assert find_damage(path) == []
    damage(path / "optimizer_0" / "__0_0.distcp", "bit")
    assert find_damage(path) == [f"optimizer_0/__0_0.distcp {messages.CHANGED_FILE}"]


def test_find_damage_refuses_a_manifest_of_another_format(tmp_path):
    path = make_checkpoint(tmp_path, 1)
    write_manifest(path, read_manifest(path))
    assert find_damage(path) == []
    document = read_manifest(path) | {"format": 2}
    document["sha256"] = "0"
    (path / MANIFEST_FILE).write_text(json.dumps(document))
    assert find_damage(path) == ["manifest.json is damaged"]

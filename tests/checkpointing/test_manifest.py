"""Damage that the manifest reveals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sft.checkpointing.manifest import MANIFEST_FILE, find_damage, read_manifest, write_manifest
from tests.support import messages
from tests.support.checkpoints import COMPLETE, make_checkpoint, rewrite_manifest


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
    rewrite_manifest(path, format=[2])
    assert find_damage(path) == ["manifest.json has format [2], but this version reads format 1"]


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"a":' * 100_000, b"[]", b"5", b"null", b'"x"', b"", b"\xff\xfe{}", b"{}", b'{"sha256": {}}'],
)
def test_find_damage_survives_any_content_of_a_manifest(tmp_path, content):
    path = make_checkpoint(tmp_path, 7)
    (path / MANIFEST_FILE).write_bytes(content)
    (problem,) = find_damage(path)
    assert problem.startswith(MANIFEST_FILE)


TRIALS = {"is_padding_free": True, "shares_prefixes": True, "uses_output_layer": True, "attention": "sdpa"}


def _nested(levels: int) -> dict:
    return {"a": _nested(levels - 1)} if levels else {}


@pytest.mark.parametrize(
    "changes",
    [
        {"files": None},
        {"files": []},
        {"files": {"optimizer.pt": None}},
        {"files": {"optimizer.pt": {"bytes": "12", "sha256": "x"}}},
        {"files": {"optimizer.pt": {"bytes": 12}}},
        {"files": {"/dev/null": {"bytes": 0, "sha256": "x"}}},
        {"files": {"../checkpoint-7/optimizer.pt": {"bytes": 12, "sha256": "x"}}},
        {"files": {"a\0b": {"bytes": 0, "sha256": "x"}}},
        {"files": {"\ud800": {"bytes": 0, "sha256": "x"}}},
        {"configuration": []},
        {"configuration": {"run_name": 5}},
        {"configuration": {"lr_scheduler_type": ["x"]}},
        {"configuration": _nested(100)},
        {"data": "x"},
        {"data": {"train_rows": "x"}},
        {"batch_plan": [1]},
        {"batch_plan": {"global_batch_size": "8"}},
        {"world_size": "2"},
        {"trained_on": {}},
        {"means": {"first_step": 0}},
        {"eval_before": {"loss": "x"}},
        {"samples_before": {"prompt": "x"}},
        {"wandb_run_id": 5},
        {"save_only_model": "no"},
        {"chunks": [1]},
        {
            "chunks": dict.fromkeys(("micro_batch_size", "num_chunks", "chunks_that_fit", "attempts"), 1)
            | {"next_attempt": "2"}
        },
        {"chunks": {"micro_batch_size": 1, "num_chunks": 1}},
        {"trials": {**TRIALS, "skips_padding_mask": "no"}},
    ],
    ids=lambda changes: str(changes)[:50],
)
def test_find_damage_finds_entries_of_another_shape(tmp_path, changes):
    path = make_checkpoint(tmp_path, 7)
    rewrite_manifest(path, **changes)
    (problem,) = find_damage(path)
    assert MANIFEST_FILE in problem or problem.startswith(("a\0b", "\ud800"))


def test_find_damage_accepts_entries_of_a_newer_version(tmp_path):
    path = make_checkpoint(tmp_path, 7)
    rewrite_manifest(path, newer={"a": [[]]}, configuration={"newer_key": [1]}, batch_plan=None, trials=TRIALS)
    assert find_damage(path) == []

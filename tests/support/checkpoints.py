"""Helpers for tests of checkpoints: copies of runs as if killed, and what must be equal in two runs."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from sft.checkpointing.manifest import MANIFEST_FILE, read_manifest, write_manifest

COMPLETE = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "model.safetensors")


def as_if_killed(reference: Path, folder: Path, step: int) -> Path:
    """A copy of a run as if killed some steps after a checkpoint: without later checkpoints, but with their records."""
    shutil.copytree(reference, folder, ignore=shutil.ignore_patterns("*.safetensors", "run_summary.json", "logs"))
    for path in reference.glob("checkpoint-*"):
        shutil.rmtree(folder / path.name)
        if int(path.name.partition("-")[2]) <= step:
            shutil.copytree(path, folder / path.name)
    return folder


def digests(checkpoint: Path) -> dict[str, str]:
    """Checksums of weights, optimizer, schedule and random state."""
    files = read_manifest(checkpoint)["files"]
    found = {name: file["sha256"] for name, file in files.items() if name.endswith((".pt", ".pth", ".safetensors"))}
    assert len(found) >= 4
    return found


def trained(output_dir: Path) -> list[tuple[Any, ...]]:
    """What each step logged, except for what depends on the time."""
    names = ("step", "loss", "token_accuracy", "grad_norm", "learning_rate")
    return [tuple(event[name] for name in names) for event in _events(output_dir) if "loss" in event]


def evaluated(output_dir: Path) -> list[tuple[int, float]]:
    """Steps and losses of the evaluations."""
    return [(event["step"], event["eval_loss"]) for event in _events(output_dir) if "eval_loss" in event]


def _events(output_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def make_checkpoint(folder: Path, step: int, files: tuple[str, ...] | list[str] = COMPLETE) -> Path:
    """A folder like a checkpoint, with a manifest; files that are not in `files` are missing."""
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    for name in COMPLETE:
        (path / name).write_text(name)
    write_manifest(path, {"step": step})
    for name in set(COMPLETE) - set(files):
        (path / name).unlink()
    return path


def rewrite_manifest(checkpoint: Path, **changes: Any) -> None:
    """Change entries of a manifest, with a checksum that is correct: as another version might have written it."""
    path = checkpoint / MANIFEST_FILE
    document = json.loads(path.read_text()) | changes
    document.pop("sha256", None)
    document["sha256"] = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(document))

"""`manifest.json`: the files of a checkpoint with sizes and checksums, and the run that saved it.

A checkpoint without a manifest was not finished.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft.common.errors import CheckpointError, one_line
from sft.common.files import special_kind
from sft.common.outside_files import check_shape, read_json, reason
from sft.common.shapes import NUMBER, Each

MANIFEST_FILE = "manifest.json"
FORMAT = 1
"""Version of the manifest's format."""
_MEANS = dict.fromkeys(("loss!", "perplexity!", "token_accuracy!", "sequence_accuracy!", "loss_unweighted"), NUMBER)
_EVALUATION = {**_MEANS, "sets": Each({**_MEANS, "rows": int}), "answers": Each({"rows!": int, "ended!": int})}
_SHAPE = {
    "step": int,
    "files!": Each({"bytes!": int, "sha256!": str}),
    "configuration": {"run_name": str, "model_name_or_path": str, "lr_scheduler_type": str},
    "data": {"train": str, "train_rows": int, "validation": str},
    "batch_plan": {
        "per_device_train_batch_size": int,
        "per_device_eval_batch_size": int,
        "gradient_accumulation_steps": int,
        "world_size": int,
        "global_batch_size!": int,
        "parts": int,
        "packs": dict,
        "asked": dict,
    },
    "world_size": int,
    "wandb_run_id": str,
    "chunks": {
        **dict.fromkeys(("micro_batch_size!", "num_chunks!", "chunks_that_fit!", "attempts!"), int),
        "next_attempt": int,
    },
    "trained_on": [NUMBER],
    "means": {
        "first_step!": int,
        "logged_at!": int,
        "loss_until_log!": NUMBER,
        "losses_since_log!": [NUMBER],
        "tokens_since_log!": NUMBER,
        "hits_since_log!": int,
        "plain_loss": {
            "since_log!": [NUMBER],
            "steps_since_log!": int,
            **dict.fromkeys(("until_log!", "weighted_rows!"), NUMBER),
        },
    },
    "early_stopping": {
        "metric!": str,
        "best!": NUMBER,
        **dict.fromkeys(("best_step!", "without!", "last_step!"), int),
    },
    "eval_before": _EVALUATION,
    "test_before": _EVALUATION,
    "forgetting_before": _EVALUATION,
    "samples_before": Each({"text!": str, "ended!": bool}),
    "save_only_model": bool,
    "precision": {"weights!": str, "mixed!": str},
    "trials": {
        **dict.fromkeys(("is_padding_free!", "shares_prefixes!", "uses_output_layer!", "skips_padding_mask"), bool),
        **dict.fromkeys(("obstacle", "kernel_obstacle", "sharing_obstacle"), str),
        "attention!": str,
    },
    "environment": {"versions": dict, "variables": dict},
}
"""What is read of a manifest when a run resumes. Other versions may write more."""


def write_manifest(folder: Path, entries: Mapping[str, Any]) -> None:
    """Write the manifest of all files in a folder.

    Args:
        folder: a checkpoint that is complete except for the manifest.
        entries: what to store of the run; JSON-compatible.
    """
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST_FILE
    }
    document = {"format": FORMAT, **entries, "files": files}
    document["sha256"] = _own_digest(document)
    (folder / MANIFEST_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a checkpoint in which `find_damage` found nothing."""
    return _read(folder)


def find_damage(folder: Path) -> list[str]:
    """The damage of a checkpoint, file by file: `model.safetensors has 10 bytes instead of 20`; [] if there is none.

    Every byte is read of the files that the manifest names. Others are ignored here, and not read on resume (see
    `sft.checkpointing.named_files`).
    """
    if folder.is_symlink() and not folder.exists():
        return [f"it is a link to {os.readlink(folder)}, which does not exist"]
    if not os.path.lexists(folder / MANIFEST_FILE):
        return [f"{MANIFEST_FILE} is missing: the checkpoint was not finished"]
    try:
        files = _read(folder)["files"]
    except CheckpointError as error:
        return list(error.problems)
    found = (_damage_of(folder, name, written) for name, written in files.items())
    return [problem for problem in found if problem is not None]


def _read(folder: Path) -> dict[str, Any]:
    """Read and check a manifest.

    Raises:
        CheckpointError: if it cannot be read, was changed, or was written by a version whose manifests have another
            format or shape.
    """
    document = read_json(folder / MANIFEST_FILE, CheckpointError, name=MANIFEST_FILE)
    if document.get("sha256") != _own_digest(document):
        raise CheckpointError(f"{MANIFEST_FILE} is damaged")
    if document.get("format") != FORMAT:
        raise CheckpointError(
            f"{MANIFEST_FILE} has format {one_line(document.get('format'), 40)}, but this version reads format {FORMAT}"
        )
    check_shape(document, CheckpointError, _SHAPE, MANIFEST_FILE)
    return document


def _damage_of(folder: Path, name: str, written: Mapping[str, Any]) -> str | None:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return f"{MANIFEST_FILE} names {name}, which is not a file of the checkpoint"
    path = folder / name
    kind = special_kind(path)
    if kind is not None:
        return f"{name} is {kind}, not a regular file"
    try:
        size = path.stat().st_size
        if size != written["bytes"]:
            return f"{name} has {size:,} bytes instead of {written['bytes']:,}"
        if _digest(path) != written["sha256"]:
            return f"{name} does not match its checksum in {MANIFEST_FILE} (sha256)"
    except FileNotFoundError:
        return f"{name} is missing"
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return f"{name} cannot be read ({reason(error)})"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_digest(document: Mapping[str, Any]) -> str:
    """The checksum of the manifest itself, without the line that contains it."""
    content = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

"""Finding the checkpoint to go on from, and keeping an earlier run's files out of a new one's way."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from sft_errors import ConfigError

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_STATE_FILE = "trainer_state.json"
_NEEDED = (_STATE_FILE, "optimizer.pt", "scheduler.pt")
_OWN_FILES = ("metrics.jsonl", "run_summary.json", "training_curves.png", "resolved_config.yaml")


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoint folders of a run by step, complete or not."""
    folder = Path(output_dir)
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and _CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(checkpoint: str | Path) -> int:
    """The optimizer step after which a checkpoint was saved."""
    return int(Path(checkpoint).name.rpartition("-")[2])


def missing_files(checkpoint: str | Path) -> list[str]:
    """What a checkpoint lacks to be gone on from; empty if it is complete."""
    folder = Path(checkpoint)
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    weights = ("*.safetensors", "*.bin", "*.distcp")
    if not any(next(folder.glob(pattern), None) for pattern in weights):
        missing.append("the weights")
    return missing


def resolve_checkpoint(setting: bool | str | None, output_dir: str) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` means; None for a fresh start.

    Raises:
        ConfigError: if it means one and there is none that is complete.
    """
    if setting is None or setting is False:
        return None
    if isinstance(setting, str) and setting != "auto":
        missing = missing_files(setting)
        if missing or not _CHECKPOINT.fullmatch(Path(setting).name):
            what = f"lacks {', '.join(missing)}" if missing else "is not named checkpoint-STEP"
            raise ConfigError(f"resume_from_checkpoint: {setting} {what}. {_what_there_is(output_dir)}")
        return Path(setting)
    complete = [path for path in list_checkpoints(output_dir) if not missing_files(path)]
    if complete:
        return complete[-1]
    if setting == "auto":
        return None
    raise ConfigError(
        f"resume_from_checkpoint: no complete checkpoint in {output_dir}. "
        "Write auto to start afresh where there is none."
    )


def check_steps_are_left(checkpoint: Path | None, total_steps: int, steps_per_epoch: int) -> None:
    """Refuses to go on from a checkpoint at or behind the last step: Trainer would take one step too many.

    A checkpoint of the last step that ends an epoch is fine: no epoch is left, and the run closes as it should.

    Raises:
        ConfigError: if nothing is left to train.
    """
    step = checkpoint_step(checkpoint) if checkpoint else 0
    if step > total_steps or (checkpoint and step == total_steps and step % steps_per_epoch):
        raise ConfigError(
            f"resume_from_checkpoint: {checkpoint} is at step {step} and the run ends at step {total_steps}: nothing "
            "is left to train. Raise max_steps or num_train_epochs, or leave resume_from_checkpoint out."
        )


def saved_batch_plan(checkpoint: Path) -> dict[str, Any] | None:
    """The batch plan of a checkpoint's run, as `reporting.summary.plan_document` writes it; None if it has none."""
    return _state_of(checkpoint).get("plan")


def check_same_step_size(checkpoint: Path, rows_a_step: int) -> None:
    """Refuses to go on in a stream with steps of another size: its place there follows from steps times rows.

    Raises:
        ConfigError: naming both sizes.
    """
    before = _state_of(checkpoint).get("rows_a_step")
    if before != rows_a_step:
        raise ConfigError(
            f"resume_from_checkpoint: {checkpoint} was trained with {before} rows a step, and this run has "
            f"{rows_a_step}; a stream would go on in the wrong place. Choose per_device_train_batch_size x "
            f"gradient_accumulation_steps x processes = {before}."
        )


def _state_of(checkpoint: Path) -> dict[str, Any]:
    """What `training_callbacks.OrderCallback` left in a checkpoint."""
    state = json.loads((checkpoint / _STATE_FILE).read_text(encoding="utf-8"))
    return state.get("stateful_callbacks", {}).get("OrderCallback", {}).get("attributes", {})


def check_writable(output_dir: str | Path) -> None:
    """Refuses a place that cannot be written, before anything is loaded that takes long.

    Raises:
        ConfigError: naming `output_dir`.
    """
    folder = Path(output_dir).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"output_dir: {there} is a file; name a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"output_dir: {there} cannot be written by this user; name another folder.")


def set_aside_earlier_run(output_dir: str | Path) -> Path | None:
    """Moves an earlier run's checkpoints and records into a folder of their own; returns it, None if there were none.

    Left where they are, old checkpoints of a higher step would be what `auto` finds next time.
    """
    folder = Path(output_dir)
    earlier = [*list_checkpoints(folder), *(folder / name for name in _OWN_FILES if (folder / name).is_file())]
    if not earlier:
        return None
    number = 1 + len(list(folder.glob("earlier-run-*")))
    target = folder / f"earlier-run-{number}"
    target.mkdir()
    for path in earlier:
        path.rename(target / path.name)
    return target


def _what_there_is(output_dir: str) -> str:
    names = [path.name for path in list_checkpoints(output_dir)]
    return f"In {output_dir}: {', '.join(names) or 'no checkpoint'}."

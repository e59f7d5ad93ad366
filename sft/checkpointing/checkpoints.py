"""Finding the checkpoint to go on from, and keeping an earlier run's files out of a new one's way."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sft.checkpointing.manifest import find_damage, read_manifest
from sft.checkpointing.same_run import find_changes
from sft.common.errors import ConfigError

logger = logging.getLogger("sft.train")

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_OWN_FILES = (
    "metrics.jsonl", "samples.jsonl", "run_summary.json", "training_curves.png", "resolved_config.yaml", "report.html",
    "report.md", "hang-rank-*.txt",
)  # fmt: skip


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoint folders of a run by step, sound or not."""
    folder = Path(output_dir)
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and _CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(checkpoint: str | Path) -> int:
    """The optimizer step after which a checkpoint was saved."""
    return int(Path(checkpoint).name.rpartition("-")[2])


def resolve_checkpoint(setting: bool | str | None, output_dir: str) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` means; None for a fresh start. Changes nothing on disk.

    Newer ones that are damaged are passed over, and told in the log, a line each.

    Raises:
        ConfigError: if it means one and there is none that is sound.
    """
    if setting is None or setting is False:
        return None
    if isinstance(setting, str) and setting != "auto":
        damage = find_damage(Path(setting)) or _not_to_go_on_from(Path(setting))
        if damage or not _CHECKPOINT.fullmatch(Path(setting).name):
            what = f"cannot be gone on from: {'; '.join(damage)}" if damage else "is not named checkpoint-STEP"
            raise ConfigError(f"resume_from_checkpoint: {setting} {what}. {_what_there_is(output_dir)}")
        return Path(setting)
    for path in reversed(list_checkpoints(output_dir)):
        damage = find_damage(path) or _not_to_go_on_from(path)
        if not damage:
            return path
        for problem in damage:
            logger.info("%s cannot be gone on from: %s.", path, problem)
    if setting == "auto":
        return None
    raise ConfigError(
        f"resume_from_checkpoint: no complete checkpoint in {output_dir}. "
        "Write auto to start afresh where there is none."
    )


def _not_to_go_on_from(checkpoint: Path) -> list[str]:
    return ["it holds weights alone (save_only_model)"] if read_manifest(checkpoint).get("save_only_model") else []


def check_steps_are_left(checkpoint: Path | None, total_steps: int) -> None:
    """Refuses to go on from a checkpoint behind the last step; from one of the last step, a run closes as it should.

    Raises:
        ConfigError: if nothing is left to train.
    """
    step = checkpoint_step(checkpoint) if checkpoint else 0
    if step > total_steps:
        raise ConfigError(
            f"resume_from_checkpoint: {checkpoint} is at step {step} and the run ends at step {total_steps}: nothing "
            "is left to train. Raise max_steps or num_train_epochs, or leave resume_from_checkpoint out."
        )


def saved_batch_plan(checkpoint: Path) -> dict[str, Any] | None:
    """The batch plan of a checkpoint's run, as `sft.reporting.summary.plan_document` writes it; None if it has none."""
    return read_manifest(checkpoint).get("batch_plan")


def check_same_run(checkpoint: Path, facts: Mapping[str, Any], plan: Mapping[str, Any], world_size: int) -> None:
    """Compares this run with the one that a checkpoint is of; tells what has changed, in one line.

    Args:
        checkpoint: a sound one.
        facts: of this run: `configuration` and `data`, as in a manifest.
        plan: its batch plan, as in a manifest.
        world_size: its number of processes.

    Raises:
        ConfigError: where going on would corrupt, a line for each reason.
    """
    saved = read_manifest(checkpoint)
    refused, told = find_changes(checkpoint, saved, {**facts, "batch_plan": plan})
    if refused:
        raise ConfigError(*refused)
    if told:
        logger.info("Changed since %s: %s.", checkpoint.name, "; ".join(told))
    before = saved.get("world_size")
    if before != world_size:
        logger.info(
            "%s was made by %s processes and this run has %s: rows come in the same order, but sums are rounded "
            "otherwise, and random numbers (dropout) are others.",
            checkpoint.name, before, world_size,
        )  # fmt: skip


def check_writable(output_dir: str | Path) -> None:
    """Refuses a place that cannot be written, before anything is loaded that takes long.

    Raises:
        ConfigError: naming `output_dir`.
    """
    folder = Path(output_dir).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"output_dir: {there} is a file; name a folder.")
    try:
        with TemporaryDirectory(dir=there, prefix=".can-be-written-"):
            pass  # only trying tells: permissions say nothing of a read-only or a made-up file system
    except OSError as error:
        raise ConfigError(f"output_dir: {there} cannot be written ({error.strerror}); name another folder.") from None


def set_aside_earlier_run(output_dir: str | Path) -> Path | None:
    """Moves an earlier run's checkpoints and records into a folder of their own; returns it, None if there were none.

    Left where they are, old checkpoints of a higher step would be what `auto` finds next time.
    """
    folder = Path(output_dir)
    return _move_aside(
        folder, [*list_checkpoints(folder), *(path for name in _OWN_FILES for path in sorted(folder.glob(name)))]
    )


def set_aside_newer(output_dir: str | Path, checkpoint: Path) -> Path | None:
    """Moves aside the checkpoints behind the one to go on from: damaged ones, or a course that is left.

    Returns:
        Where they are now; None if there were none.
    """
    step = checkpoint_step(checkpoint)
    return _move_aside(Path(output_dir), [p for p in list_checkpoints(output_dir) if checkpoint_step(p) > step])


def _move_aside(folder: Path, paths: Sequence[Path]) -> Path | None:
    if not paths:
        return None
    number = 1 + len(list(folder.glob("earlier-run-*")))
    target = folder / f"earlier-run-{number}"
    target.mkdir()
    for path in paths:
        path.rename(target / path.name)
    return target


def _what_there_is(output_dir: str) -> str:
    names = [path.name for path in list_checkpoints(output_dir)]
    return f"In {output_dir}: {', '.join(names) or 'no checkpoint'}."

"""The checkpoint to resume from, and moving an earlier run's files aside."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sft.checkpointing.manifest import find_damage
from sft.checkpointing.resume_point import ResumePoint, checkpoint_step
from sft.checkpointing.same_run import find_changes, find_other_environment
from sft.common.errors import ConfigError

logger = logging.getLogger("sft.train")
FindUnreadable = Callable[[ResumePoint], list[str]]

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
OWN_FILES = (
    "metrics.jsonl",
    "samples.jsonl",
    "run_summary.json",
    "training_curves.png",
    "resolved_config.yaml",
    "report.html",
    "report.md",
    "hang-rank-*.txt",
)
"""Files of a run besides its checkpoints and the final model; patterns."""


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoint folders of a run in the order of steps, damaged ones and links included."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name)]
    return sorted((path for path in found if path.is_dir() or path.is_symlink()), key=checkpoint_step)


def resolve_checkpoint(
    setting: bool | str | None, output_dir: str, find_unreadable: FindUnreadable | None = None
) -> ResumePoint | None:
    """The checkpoint that `resume_from_checkpoint` selects; None for a fresh start. Changes nothing on disk.

    Newer checkpoints that are damaged are skipped, with a log line each.

    Args:
        setting: the value of `resume_from_checkpoint`.
        output_dir: where checkpoints are looked for.
        find_unreadable: what the libraries cannot read of an undamaged checkpoint, file by file.

    Raises:
        ConfigError: if one is required and there is none without damage.
    """
    if setting is None or setting is False:
        return None
    if isinstance(setting, str) and setting != "auto":
        point, problems = _inspect(_named_checkpoint(Path(setting)), find_unreadable)
        if point is None:
            what = f"cannot be resumed from: {'; '.join(problems)}" if problems else "is not named checkpoint-STEP"
            raise ConfigError(f"resume_from_checkpoint: {setting} {what}. {_existing(output_dir)}")
        return point
    for path in reversed(list_checkpoints(output_dir)):
        point, problems = _inspect(path, find_unreadable)
        if point is not None:
            return point
        for problem in problems:
            logger.info("%s cannot be resumed from: %s.", path, problem)
    if setting == "auto":
        return None
    raise ConfigError(
        f"resume_from_checkpoint: no complete checkpoint in {output_dir}. "
        "Write auto to start from the beginning if there is none."
    )


def _named_checkpoint(path: Path) -> Path:
    """The checkpoint itself where a link of another name, such as `latest`, points to it."""
    target = Path(os.path.realpath(path))
    return target if _CHECKPOINT.fullmatch(target.name) and not _CHECKPOINT.fullmatch(path.name) else path


def _inspect(checkpoint: Path, find_unreadable: FindUnreadable | None) -> tuple[ResumePoint | None, list[str]]:
    """A checkpoint with its manifest, or None and why it cannot be resumed from ([] if only its name is wrong)."""
    problems = find_damage(checkpoint)
    if problems or not _CHECKPOINT.fullmatch(checkpoint.name):
        return None, problems
    point = ResumePoint.read(checkpoint)
    saved_at = point.manifest.get("step", point.step)
    if saved_at != point.step:
        return None, [f"it was saved at step {saved_at}, so its name must be checkpoint-{saved_at}"]
    if point.manifest.get("save_only_model"):
        return None, ["it contains only weights (save_only_model)"]
    unreadable = find_unreadable(point) if find_unreadable is not None else []
    return (None, unreadable) if unreadable else (point, [])


def check_steps_are_left(resume_point: ResumePoint | None, total_steps: int) -> None:
    """Refuse a checkpoint after the last step. From one of the last step, only the end of the run is repeated.

    Raises:
        ConfigError: if nothing is left to train.
    """
    if resume_point is not None and resume_point.step > total_steps:
        raise ConfigError(
            f"resume_from_checkpoint: {resume_point.path} is at step {resume_point.step} and the run ends at step "
            f"{total_steps}: nothing is left to train. Raise max_steps or num_train_epochs, or omit "
            "resume_from_checkpoint."
        )


def check_same_run(
    resume_point: ResumePoint, entries: Mapping[str, Any], plan: Mapping[str, Any], world_size: int
) -> None:
    """Compare this run with the one that saved the checkpoint, and log in one line what changed.

    Args:
        resume_point: the checkpoint.
        entries: `configuration`, `data` and `environment` of this run, as in a manifest.
        plan: the batch plan of this run, as in a manifest.
        world_size: the number of processes of this run.

    Raises:
        ConfigError: if resuming would corrupt the run, a line for each reason.
    """
    refused, allowed = find_changes(resume_point.path, resume_point.manifest, {**entries, "batch_plan": plan})
    if refused:
        raise ConfigError(*refused)
    if allowed:
        logger.info("Changed since %s: %s.", resume_point.name, "; ".join(allowed))
    _log_other_environment(resume_point, entries.get("environment") or {})
    before = resume_point.manifest.get("world_size")
    if before != world_size:
        logger.info(
            "%s was saved by %s processes and this run has %s: the order of rows is the same, but sums are rounded "
            "differently, and random numbers (dropout) differ.",
            resume_point.name,
            "an unknown number of" if before is None else before,
            world_size,
        )


def _log_other_environment(resume_point: ResumePoint, environment: Mapping[str, Any]) -> None:
    """Logs in one line what computes this run and did not compute the one that saved the checkpoint."""
    saved = resume_point.manifest.get("environment")
    if saved is None:
        logger.info(
            "%s does not record the threads, CPU and library versions that it was computed with. If they differ now, "
            "sums are rounded differently.",
            resume_point.name,
        )
        return
    changes = find_other_environment(saved, environment)
    if changes:
        logger.info(
            "Environment changed since %s: %s. Sums may be rounded differently; random numbers (dropout) may differ.",
            resume_point.name,
            "; ".join(changes),
        )


def check_writable(output_dir: str | Path) -> None:
    """Refuse a folder that cannot be written, before anything is loaded that takes long.

    Raises:
        ConfigError: naming `output_dir`.
    """
    folder = Path(output_dir).absolute()
    dangling = next((path for path in (folder, *folder.parents) if path.is_symlink() and not path.exists()), None)
    if dangling is not None:
        raise ConfigError(
            f"output_dir: {dangling} is a link to {os.readlink(dangling)}, which does not exist. Create that folder, "
            "or remove the link."
        )
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"output_dir: {there} is a file; choose a folder.")
    try:
        with TemporaryDirectory(dir=there, prefix=".can-be-written-"):
            pass  # permissions are not enough: the file system may be read-only or virtual
    except OSError as error:
        raise ConfigError(f"output_dir: {there} cannot be written ({error.strerror}); choose another folder.") from None


def set_aside_earlier_run(output_dir: str | Path) -> Path | None:
    """Move an earlier run's checkpoints and records to a folder of their own; return it, None if there were none.

    Otherwise `auto` would select old checkpoints of a higher step the next time.
    """
    folder = Path(output_dir)
    return _move_aside(
        folder, [*list_checkpoints(folder), *(path for name in OWN_FILES for path in sorted(folder.glob(name)))]
    )


def set_aside_later_checkpoints(output_dir: str | Path, resume_point: ResumePoint) -> Path | None:
    """Move aside the checkpoints after the one to resume from: damaged ones, or those of steps to be repeated.

    Returns:
        Their folder now; None if there were none.
    """
    later = [path for path in list_checkpoints(output_dir) if checkpoint_step(path) > resume_point.step]
    return _move_aside(Path(output_dir), later)


def _move_aside(folder: Path, paths: Sequence[Path]) -> Path | None:
    if not paths:
        return None
    taken = (re.fullmatch(r"earlier-run-(\d+)", path.name) for path in folder.glob("earlier-run-*"))
    number = max((int(match.group(1)) for match in taken if match), default=0) + 1
    target = folder / f"earlier-run-{number}"
    target.mkdir()
    for path in paths:
        if path.is_symlink():
            # Moved, a relative link would point elsewhere.
            (target / path.name).symlink_to(Path(os.path.realpath(folder), os.readlink(path)))
            path.unlink()
        else:
            path.rename(target / path.name)
    return target


def _existing(output_dir: str) -> str:
    names = [path.name for path in list_checkpoints(output_dir)]
    return f"In {output_dir}: {', '.join(names) or 'no checkpoint'}."

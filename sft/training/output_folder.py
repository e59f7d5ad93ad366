"""The output folder of a run: claimed before anything slow, and prepared before the first step."""

from __future__ import annotations

import logging
from pathlib import Path

from sft.checkpointing.checkpoints import (
    check_writable,
    resolve_checkpoint,
    set_aside_earlier_run,
    set_aside_later_checkpoints,
)
from sft.checkpointing.output_lock import OutputLock
from sft.checkpointing.own_paths import check_own_paths
from sft.checkpointing.publish import clear_unfinished
from sft.checkpointing.resume_point import ResumePoint
from sft.common.errors import CheckpointError, ConfigError, one_line
from sft.common.files import write_text
from sft.common.outside_files import reason
from sft.common.run_records import DistributedContext
from sft.configuration.schema import SFTConfig
from sft.configuration.values import config_to_yaml
from sft.modeling.saving import make_adapters_portable
from sft.processes.environment import launch_id, num_restarts
from sft.training.dry_run import remove_earlier_report
from sft.training.run_identity import decision_lines
from sft.training.run_setup import RunSetup
from sft.training.saved_state import find_unreadable

logger = logging.getLogger("sft.train")
CONFIG_FILE = "resolved_config.yaml"


def claim_output(config: SFTConfig, context: DistributedContext, lock: OutputLock, *, is_dry_run: bool) -> None:
    """Checks that the output folder can be written, contains no links to write through, and that no other run uses it.

    Raises:
        ConfigError: if any of that does not hold.
    """
    check_writable(config.training.output_dir)
    if context.is_main_process:
        check_own_paths(config.training.output_dir, _folders_inside(config))
    if is_dry_run:
        remove_earlier_report(config, context)
    elif context.is_main_process:
        lock.take(config.training.output_dir)


def find_resume_point(config: SFTConfig) -> ResumePoint | None:
    """The checkpoint that `resume_from_checkpoint` names; after a restart, the newest that this launch saved.

    Raises:
        ConfigError: if a checkpoint is named and cannot be resumed from.
    """
    setting, output_dir = config.training.resume_from_checkpoint, config.training.output_dir
    if num_restarts():
        # Checkpoints of another launch are still here if this one died before it moved them.
        record = Path(output_dir, CONFIG_FILE)
        is_ours = record.is_file() and record.read_text(encoding="utf-8", errors="replace").startswith(_header())
        newest = resolve_checkpoint("auto", output_dir, find_unreadable) if is_ours else None
        logger.info(
            "A process died: restarted, %s.", f"resuming from {newest.path}" if newest else "from the beginning"
        )
        if newest is not None:
            return newest
    return resolve_checkpoint(setting, output_dir, find_unreadable)


def _folders_inside(config: SFTConfig) -> list[str]:
    """Names of the folders in the output folder that trackers and adapters of a GGUF file write."""
    logs, trackers = config.logging, config.logging.report_to
    folders = ["logs"] * ("tensorboard" in trackers and logs.logging_dir is None) + ["wandb"] * ("wandb" in trackers)
    return folders + ["base_model"] * (config.model.gguf_file is not None)


def prepare_output(setup: RunSetup) -> None:
    """Creates the output folder, moves an earlier run out of the way, and writes the resolved configuration.

    Raises:
        ConfigError: if the folder cannot be written.
    """
    config, resume = setup.config, setup.resume
    if not setup.context.is_main_process:
        return
    output = Path(config.training.output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
        if setup.lock is not None:
            setup.lock.take(output)
        clear_unfinished(output)
        resumed = resume if resume is not None and resume.is_in(output) else None
        moved_to = set_aside_earlier_run(output) if resumed is None else set_aside_later_checkpoints(output, resumed)
        _write_configuration(setup)
    except OSError as error:
        problem = error.strerror or one_line(error)
        raise ConfigError(f"output_dir: {output} cannot be written: {problem}.") from None
    if moved_to is not None and resumed is not None:
        logger.info("Checkpoints after %s were moved to %s.", resumed.name, moved_to)
    elif moved_to is not None:
        logger.info("%s holds an earlier run: its checkpoints and records were moved to %s.", output, moved_to)
    make_adapters_portable(
        setup.prepared.model,
        setup.prepared.tokenizer,
        config.training.output_dir,
        config.model,
    )


def confirm_output(setup: RunSetup) -> None:
    """Confirms in the main process that the run still has its folder (see `OutputLock.confirm`).

    Raises:
        CheckpointError: if nothing must be saved in it.
    """
    if setup.lock is None:
        return
    try:
        if setup.lock.confirm():
            _write_configuration(setup)
    except OSError as error:
        folder = setup.config.training.output_dir
        raise CheckpointError(f"output_dir: {folder} cannot be written: {reason(error)}.") from error


def _write_configuration(setup: RunSetup) -> None:
    """With what was decided, as comments; a checkpoint's manifest has it too, and a resumed run uses that."""
    decided = [f"# {line}\n" for line in decision_lines(setup.identity, setup.plan, setup.resume)]
    text = "".join([_header(), "# Decided, and kept in checkpoints:\n", *decided, config_to_yaml(setup.config)])
    write_text(Path(setup.config.training.output_dir, CONFIG_FILE), text)


def _header() -> str:
    launch = f" Launch {launch_id()}." if launch_id() else ""
    return f"# The resolved configuration of this run, every key. Runs again from the same folder.{launch}\n"

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
from sft.checkpointing.publish import clear_unfinished
from sft.checkpointing.resume_point import ResumePoint
from sft.common.errors import ConfigError
from sft.common.run_records import DistributedContext
from sft.configuration.schema import SFTConfig
from sft.configuration.values import config_to_yaml
from sft.modeling.saving import make_adapters_portable
from sft.processes.environment import launch_id, num_restarts
from sft.training.dry_run import remove_earlier_report
from sft.training.run_setup import RunSetup

logger = logging.getLogger("sft.train")
CONFIG_FILE = "resolved_config.yaml"


def claim_output(config: SFTConfig, context: DistributedContext, lock: OutputLock, *, is_dry_run: bool) -> None:
    """Checks that the output folder can be written and that no other run writes to it.

    Raises:
        ConfigError: if either does not hold.
    """
    check_writable(config.training.output_dir)
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
        is_ours = record.is_file() and record.read_text(encoding="utf-8").startswith(_header())
        newest = resolve_checkpoint("auto", output_dir) if is_ours else None
        logger.info(
            "A process died: restarted, %s.", f"resuming from {newest.path}" if newest else "from the beginning"
        )
        if newest is not None:
            return newest
    return resolve_checkpoint(setting, output_dir)


def prepare_output(setup: RunSetup, lock: OutputLock) -> None:
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
        lock.take(output)
        clear_unfinished(output)
        resumed = resume if resume is not None and resume.is_in(output) else None
        moved_to = set_aside_earlier_run(output) if resumed is None else set_aside_later_checkpoints(output, resumed)
        (output / CONFIG_FILE).write_text(_header() + config_to_yaml(config), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"output_dir: {output} cannot be written: {error.strerror}.") from None
    if moved_to is not None and resumed is not None:
        logger.info("Checkpoints after %s were moved to %s.", resumed.name, moved_to)
    elif moved_to is not None:
        logger.info("%s holds an earlier run: its checkpoints and records were moved to %s.", output, moved_to)
    make_adapters_portable(
        setup.prepared.model,
        setup.prepared.tokenizer,
        config.training.output_dir,
        gguf_file=config.model.gguf_file,
    )


def _header() -> str:
    launch = f" Launch {launch_id()}." if launch_id() else ""
    return f"# The resolved configuration of this run, every key. Runs again from the same folder.{launch}\n"

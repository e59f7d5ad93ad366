"""Before the first step: whether the data is sound, and what a run would be. A dry run ends here."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sft.batching.advice import advise
from sft.batching.kernels import kernel_bytes
from sft.batching.memory import MemoryFacts, estimate_memory
from sft.checkpointing.own_paths import DRY_RUN_FILE
from sft.common.errors import ConfigError, DataError
from sft.common.machine_records import Environment, MemoryAdvice, MemoryEstimate, MemoryLimits
from sft.common.run_records import BatchPlan, DistributedContext
from sft.common.training_data import TrainingData
from sft.configuration.checks.schedule import NEED_VALIDATION
from sft.configuration.command_line import DEFAULT_ROWS
from sft.configuration.schema import SFTConfig
from sft.data.checks import bad_row_lines, find_problems
from sft.processes.terminal import can_colour, log_drawn, open_live_line
from sft.reporting.environment import gather_environment
from sft.reporting.log_lines import data_lines
from sft.reporting.preflight.document import preflight_document, write_preflight
from sft.reporting.preflight.text import Preflight, preflight_lines
from sft.training.batch_size_trials import documents_of_a_batch
from sft.training.prepared_model import PreparedModel
from sft.training.row_layout import RowLayout

logger = logging.getLogger("sft.data")
EXIT_UNSOUND = 2


def check_data(config: SFTConfig, data: TrainingData, *, is_dry_run: bool) -> list[str]:
    """The reasons not to train on the data. A run stops at them; a dry run continues and lists them at its end.

    Raises:
        DataError: in a run, with the first bad rows and every reason.
        ConfigError: if settings need validation data and there is none.
    """
    problems = find_problems(data.report, config.data)
    if problems and not is_dry_run:
        raise DataError(*bad_row_lines(data.report, config.data), *problems)
    if not is_dry_run:
        for line in data_lines(data.report):
            logger.info(line)
    if data.validation is None:
        # Whether there is a validation split is known only now.
        training, passed = config.training, config.training.passed_through
        wanted = [
            key for key in ("load_best_model_at_end", "early_stopping_patience", "eval_steps") if getattr(training, key)
        ]
        wanted += ["save_strategy"] * passed.saves_best
        wanted += ["eval_strategy"] * passed.asks_for_evaluation
        wanted += ["lr_scheduler_type"] * (training.lr_scheduler_type in NEED_VALIDATION)
        if wanted:
            raise ConfigError(
                f"{wanted[0]}: the data has no validation split; give validation_file or validation_split."
            )
    return problems


def remove_earlier_report(config: SFTConfig, context: DistributedContext) -> None:
    """Deletes an earlier dry run's report: if this dry run ends early, its report must not be taken for this one's."""
    if context.is_main_process:
        Path(config.training.output_dir, DRY_RUN_FILE).unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRun:
    """What a dry run knows before the model is loaded."""

    config: SFTConfig
    data: TrainingData
    problems: Sequence[str]
    """Reasons not to train on the data."""
    context: DistributedContext
    """`world_size` processes are planned."""
    limits: MemoryLimits
    show_rows: Sequence[int] = ()
    """Numbers of the training rows to show."""
    notes: Sequence[str] = ()
    """What is odd, but possible."""


def show_preflight(dry_run: DryRun, prepared: PreparedModel | None = None, plan: BatchPlan | None = None) -> int:
    """Shows what a run would be, and writes it to `preflight.json`.

    Args:
        dry_run: the configuration, the data, and what is wrong with it.
        prepared: the model; None if there is no row to train on.
        plan: the batch plan; None if there is no row to train on.

    Returns:
        The exit status: 0 if a run would be sound, 2 if not.
    """
    shown = _gather_preflight(dry_run, prepared, plan)
    terminal, colour = open_live_line(sys.stdout), can_colour(sys.stdout)
    drawn = preflight_lines(shown, colour=colour, terminal=terminal) if terminal is not None else None
    log_drawn(logger, preflight_lines(shown, colour=False), drawn)
    data = dry_run.data
    rows_read = sum(source.rows_read - source.rows_made for source in data.report.train.sources)
    found = {preview.number for preview in data.previews}
    requested = () if tuple(dry_run.show_rows) == DEFAULT_ROWS else dry_run.show_rows
    for number in (number for number in requested if number not in found):
        logger.info("Row %d is not shown: there are %d training rows.", number, rows_read)
    if dry_run.context.is_main_process:
        path = Path(dry_run.config.training.output_dir, DRY_RUN_FILE)
        write_preflight(preflight_document(shown), path)
        logger.info("Wrote %s.", path)
    return EXIT_UNSOUND if dry_run.problems else 0


def memory_facts(
    config: SFTConfig,
    data: TrainingData,
    prepared: PreparedModel,
    plan: BatchPlan,
    *,
    device: str,
    process_bytes: int = 0,
) -> MemoryFacts:
    """What the predicted memory of a run depends on.

    Args:
        config: the whole configuration.
        data: the prepared rows.
        prepared: the model.
        plan: the batch plan.
        device: as torch spells it.
        process_bytes: of this process before there is a model.
    """
    training, train, layout = config.training, data.report.train, prepared.layout
    return MemoryFacts(
        footprint=prepared.footprint,
        # With `tokens_per_batch` the number of rows of a micro-batch is not a setting.
        per_device_train_batch_size=0 if training.tokens_per_batch else plan.per_device_train_batch_size,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        tokens=_tokens_of_a_batch(data, plan, layout),
        longest_row=train.longest_row,
        documents=documents_of_a_batch(layout, plan.packs, plan.per_device_train_batch_size, device),
        weights=prepared.precision.weights,
        mixed=prepared.precision.mixed,
        optimizer=training.optim,
        gradient_checkpointing=training.gradient_checkpointing,
        attention=config.model.attn_implementation or "sdpa",
        # Logits of a padded batch are computed for whole columns: hardly fewer than all.
        supervised_share=train.supervised_share if layout.is_padding_free or layout.output.chunk_bytes else 1.0,
        logits_chunk_bytes=layout.output.chunk_bytes,
        device=device,
        world_size=plan.world_size,
        sharded_over=plan.world_size if config.fsdp is not None else 1,
        reshard_after_forward=config.fsdp is None or config.fsdp.reshard_after_forward,
        process_bytes=process_bytes,
        kernel_bytes=_kernel_bytes(data, plan, prepared) if device == "cpu" else 0,
    )


def _kernel_bytes(data: TrainingData, plan: BatchPlan, prepared: PreparedModel) -> int:
    """What generated kernels take at the end of a run on CPU; packs count as the rows that they hold on average."""
    precision, footprint = prepared.precision, prepared.footprint
    if precision.mixed == "no" and precision.weights == "float32":
        return 0
    rows = plan.per_device_train_batch_size
    if plan.packs is not None:
        rows = max(rows * len(data.train.lengths) // plan.packs.num_packs, 1)
    return kernel_bytes(
        data.train.lengths,
        rows,
        plan.total_steps * plan.gradient_accumulation_steps,
        hidden_size=footprint.hidden_size,
        intermediate_size=footprint.intermediate_size or 4 * footprint.hidden_size,
    )


def planned_environment(
    dry_run: DryRun, prepared: PreparedModel, plan: BatchPlan, memory: MemoryEstimate
) -> Environment:
    """The machine, and what the run would write there."""
    return gather_environment(
        dry_run.context,
        prepared.footprint,
        output_dir=dry_run.config.training.output_dir,
        optimizer_bytes=memory.optimizer_bytes,
        checkpoints_kept=dry_run.config.training.save_total_limit,
        num_checkpoints=_num_checkpoints(dry_run.config, plan),
    )


def _gather_preflight(dry_run: DryRun, prepared: PreparedModel | None, plan: BatchPlan | None) -> Preflight:
    config, data, limits = dry_run.config, dry_run.data, dry_run.limits
    memory = environment = None
    advice: tuple[MemoryAdvice, ...] = ()
    if prepared is not None and plan is not None:
        device, process_bytes = dry_run.context.device, limits.process_bytes
        facts = memory_facts(config, data, prepared, plan, device=device, process_bytes=process_bytes)
        memory = estimate_memory(facts)
        environment = planned_environment(dry_run, prepared, plan, memory)
        if limits.budget_bytes is not None:
            advice = advise(facts, limits.budget_bytes)
    return Preflight(
        report=data.report,
        previews=data.previews,
        plan=plan,
        memory=memory,
        environment=environment,
        problems=list(dry_run.problems),
        notes=[*config.notices, *dry_run.notes],
        max_seq_length=config.data.max_seq_length,
        last_step_rows=_rows_of_last_step(config, data, plan) if plan is not None else None,
        memory_budget_bytes=limits.budget_bytes,
        advice=advice,
    )


def _tokens_of_a_batch(data: TrainingData, plan: BatchPlan, layout: RowLayout) -> int:
    """Tokens of the largest micro-batch that can occur, padding included."""
    rows, train = plan.per_device_train_batch_size, data.report.train
    if plan.packs is not None:
        return rows * plan.packs.capacity
    if not layout.is_padding_free or data.stream is not None:
        return rows * train.longest_row
    return int(np.sort(data.train.lengths)[-rows:].sum())


def _rows_of_last_step(config: SFTConfig, data: TrainingData, plan: BatchPlan) -> int | None:
    """Rows (packs) of the last step of an epoch, if it is not full; None for a stream too."""
    num_rows = data.num_train_rows if plan.packs is None else plan.packs.num_packs
    if num_rows is None:
        return None
    if config.training.passed_through.dataloader_drop_last:
        num_rows -= num_rows % (plan.per_device_train_batch_size * plan.world_size)
    return num_rows % plan.global_batch_size or None


def _num_checkpoints(config: SFTConfig, plan: BatchPlan) -> int:
    """How many checkpoints a run writes."""
    training = config.training
    strategy = training.passed_through.save_strategy or ("steps" if training.save_steps else "epoch")
    if strategy == "no":
        return 0
    if strategy == "steps" and training.save_steps:
        every = training.save_steps if training.save_steps >= 1 else math.ceil(training.save_steps * plan.total_steps)
        return max(math.ceil(plan.total_steps / every), 1)
    return math.ceil(plan.total_steps / plan.steps_per_epoch)

"""Before the first step: is the data sound, and what would a run be? A dry run ends here."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from sft.batching.advice import advise
from sft.batching.memory import MemoryFacts, estimate_memory
from sft.common.data_records import TrainingData
from sft.common.errors import ConfigError, DataError
from sft.common.machine_records import MemoryAdvice, MemoryLimits
from sft.common.run_records import BatchPlan, DistributedContext, ModelFootprint, Precision
from sft.configuration.checks.schedule import NEED_VALIDATION
from sft.configuration.schema import DataConfig, SFTConfig
from sft.data.checks import bad_row_lines, find_problems, stops_run
from sft.reporting.environment import gather_environment
from sft.reporting.log_lines import data_lines
from sft.reporting.preflight.document import preflight_document, write_preflight
from sft.reporting.preflight.text import Preflight, preflight_lines
from sft.training.callbacks import StreamDrops
from sft.training.row_layout import RowLayout

logger = logging.getLogger("sft.data")
EXIT_UNSOUND = 2
REPORT_FILE = "preflight.json"


def check_data(config: SFTConfig, data: TrainingData, *, is_rehearsal: bool) -> list[str]:
    """The reasons not to train on the data. A real run stops at them; a dry run goes on and lists them at its end.

    Raises:
        DataError: in a real run, with the first bad rows and every reason.
        ConfigError: if settings need validation data and there is none.
    """
    problems = find_problems(data.report, config.data)
    if problems and not is_rehearsal:
        raise DataError(*bad_row_lines(data.report, config.data), *problems)
    if not is_rehearsal:
        for line in data_lines(data.report):
            logger.info(line)
    if data.validation is None:
        # Only the data itself could tell whether it has any.
        training, passed = config.training, config.training.passed_through
        wanted = [key for key in ("load_best_model_at_end", "eval_steps") if getattr(training, key)]
        wanted += ["save_strategy"] * passed.saves_best
        wanted += ["eval_strategy"] * passed.asks_for_evaluation
        wanted += ["lr_scheduler_type"] * (training.lr_scheduler_type in NEED_VALIDATION)
        if wanted:
            raise ConfigError(
                f"{wanted[0]}: the data has no validation split; give validation_file or validation_split."
            )
    return problems


def begin_rehearsal(config: SFTConfig, context: DistributedContext) -> None:
    """Takes an earlier dry run's report away: if this one ends early, it must not be taken for its own."""
    if context.is_main_process:
        Path(config.training.output_dir, REPORT_FILE).unlink(missing_ok=True)


def stream_drops(config: DataConfig) -> StreamDrops:
    """What becomes of rows of a stream that cannot be used, by the same rules as of others."""
    return StreamDrops(stops_run=partial(stops_run, config=config), max_share=config.max_bad_row_share)


def show_preflight(
    config: SFTConfig,
    data: TrainingData,
    problems: list[str],
    context: DistributedContext,
    footprint: ModelFootprint | None = None,
    plan: BatchPlan | None = None,
    precision: Precision | None = None,
    layout: RowLayout | None = None,
    *,
    show_rows: Sequence[int] = (),
    limits: MemoryLimits | None = None,
) -> int:
    """Shows what a run would be, and writes it to `preflight.json`.

    Args:
        footprint, plan, precision, layout: None where no row is left to plan with.
        show_rows: numbers of the rows that were asked for.
        limits: of each device's memory.

    Returns:
        The exit status: 0 if a run would be sound, 2 if not.
    """
    shown = _all_that_is_known(config, data, problems, context, footprint, plan, precision, layout, limits)
    for line in preflight_lines(shown, colour=sys.stdout.isatty()):
        logger.info(line)
    rows_read = sum(source.rows_read for source in data.report.train.sources)
    there = {preview.number for preview in data.previews}
    for number in (number for number in show_rows if number not in there):
        logger.info("Row %d is not shown: there are %d training rows.", number, rows_read)
    if context.is_main_process:
        path = Path(config.training.output_dir, REPORT_FILE)
        write_preflight(preflight_document(shown), path)
        logger.info("Wrote %s.", path)
    return EXIT_UNSOUND if problems else 0


def memory_facts(
    config: SFTConfig,
    data: TrainingData,
    footprint: ModelFootprint,
    plan: BatchPlan,
    precision: Precision,
    layout: RowLayout,
    context: DistributedContext,
    *,
    process_bytes: int = 0,
) -> MemoryFacts:
    """What the predicted memory of a run depends on."""
    training, train = config.training, data.report.train
    return MemoryFacts(
        footprint=footprint,
        # Where micro-batches are made by tokens, their number of rows is no setting.
        per_device_train_batch_size=0 if training.tokens_per_batch else plan.per_device_train_batch_size,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        tokens=_tokens_of_a_batch(data, plan, layout),
        longest_row=train.longest_row,
        weights=precision.weights,
        mixed=precision.mixed,
        optimizer=training.optim,
        gradient_checkpointing=training.gradient_checkpointing,
        attention=config.model.attn_implementation or "sdpa",
        # A padded model's own scores are made for whole columns: hardly fewer than all.
        supervised_share=train.supervised_share if layout.is_padding_free or layout.output.chunk_bytes else 1.0,
        logits_chunk_bytes=layout.output.chunk_bytes,
        device=context.device,
        world_size=plan.world_size,
        sharded_over=plan.world_size if config.fsdp is not None else 1,
        reshard_after_forward=config.fsdp is None or config.fsdp.reshard_after_forward,
        process_bytes=process_bytes,
    )


def _all_that_is_known(
    config: SFTConfig,
    data: TrainingData,
    problems: list[str],
    context: DistributedContext,
    footprint: ModelFootprint | None,
    plan: BatchPlan | None,
    precision: Precision | None,
    layout: RowLayout | None,
    limits: MemoryLimits | None,
) -> Preflight:
    training = config.training
    limits = limits or MemoryLimits(budget_bytes=None, process_bytes=0)
    memory = environment = None
    advice: tuple[MemoryAdvice, ...] = ()
    if footprint is not None and plan is not None and precision is not None and layout is not None:
        process_bytes = limits.process_bytes
        facts = memory_facts(config, data, footprint, plan, precision, layout, context, process_bytes=process_bytes)
        memory = estimate_memory(facts)
        environment = gather_environment(
            context,
            footprint,
            output_dir=training.output_dir,
            optimizer_bytes=memory.optimizer_bytes,
            checkpoints_kept=training.save_total_limit,
            num_checkpoints=_num_checkpoints(config, plan),
        )
        if limits.budget_bytes is not None:
            advice = advise(facts, limits.budget_bytes)
    return Preflight(
        report=data.report,
        previews=data.previews,
        plan=plan,
        memory=memory,
        environment=environment,
        problems=problems,
        max_seq_length=config.data.max_seq_length,
        memory_budget_bytes=limits.budget_bytes,
        advice=advice,
    )


def _tokens_of_a_batch(data: TrainingData, plan: BatchPlan, layout: RowLayout) -> int:
    """Tokens of the fullest micro-batch that can come, padding included."""
    rows, train = plan.per_device_train_batch_size, data.report.train
    if plan.packs is not None:
        return rows * plan.packs.capacity
    if not layout.is_padding_free or data.stream is not None:
        return rows * train.longest_row
    return int(np.sort(data.train.lengths)[-rows:].sum())


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

"""Before the first step: is the data sound, and what would a run be? A dry run ends here."""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path

from batching.memory import estimate_memory
from config_manager import SFTConfig
from preparation.checks import bad_row_lines, find_problems
from reporting.console import data_lines
from reporting.environment import gather_environment
from reporting.preflight import preflight_document, write_preflight
from reporting.preflight_text import Preflight, preflight_lines
from sft_errors import ConfigError, DataError
from sft_types import BatchPlan, DistributedContext, ModelFootprint, Precision, TrainingData

logger = logging.getLogger("sft.data")
EXIT_UNSOUND = 2


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
        wanted = [key for key in ("load_best_model_at_end", "eval_steps") if getattr(config.training, key)]
        if wanted:
            raise ConfigError(
                f"{wanted[0]}: the data has no validation split; give validation_file or validation_split."
            )
    return problems


def show_preflight(
    config: SFTConfig,
    data: TrainingData,
    problems: list[str],
    context: DistributedContext,
    footprint: ModelFootprint | None = None,
    plan: BatchPlan | None = None,
    precision: Precision | None = None,
) -> int:
    """Shows what a run would be, and writes it to `preflight.json`.

    Args:
        footprint, plan, precision: None where no row is left to plan with.

    Returns:
        The exit status: 0 if a run would be sound, 2 if not.
    """
    training, longest = config.training, data.report.train.longest_row
    memory = environment = None
    if footprint is not None and plan is not None and precision is not None:
        memory = estimate_memory(
            footprint,
            rows=plan.per_device_train_batch_size,
            longest_row=longest,
            weights=precision.weights,
            mixed=precision.mixed,
            optimizer=training.optim,
            gradient_checkpointing=training.gradient_checkpointing,
            attention=config.model.attn_implementation or "sdpa",
            supervised_share=data.report.train.supervised_share,
        )
        environment = gather_environment(
            context,
            footprint,
            output_dir=training.output_dir,
            optimizer_bytes=memory.optimizer_bytes,
            checkpoints_kept=training.save_total_limit,
            num_checkpoints=_num_checkpoints(config, plan),
        )
    shown = Preflight(
        report=data.report,
        previews=data.previews,
        plan=plan,
        memory=memory,
        environment=environment,
        problems=problems,
        max_seq_length=config.data.max_seq_length,
    )
    for line in preflight_lines(shown, colour=sys.stdout.isatty()):
        logger.info(line)
    if context.is_main_process:
        path = Path(training.output_dir, "preflight.json")
        write_preflight(preflight_document(shown), path)
        logger.info("Wrote %s.", path)
    return EXIT_UNSOUND if problems else 0


def _num_checkpoints(config: SFTConfig, plan: BatchPlan) -> int:
    """How many checkpoints a run writes."""
    training = config.training
    strategy = training.extra_training_arguments.get("save_strategy", "steps" if training.save_steps else "epoch")
    if strategy == "no":
        return 0
    if strategy == "steps" and training.save_steps:
        every = training.save_steps if training.save_steps >= 1 else math.ceil(training.save_steps * plan.total_steps)
        return max(math.ceil(plan.total_steps / every), 1)
    return math.ceil(plan.total_steps / plan.steps_per_epoch)

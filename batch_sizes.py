"""The batch sizes that settings leave to a trial, and the plan that comes of them; the same on every process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batching.fit import BatchFit, Trial, candidate_sizes, fit_batch_size
from batching.memory import estimate_memory
from batching.plan import resolve_batch_plan
from config_manager import SFTConfig, TrainingConfig
from configuration.batch_sizes import AUTO, with_accumulation
from device_memory import available_memory_bytes
from distributed_utils import agree_on_smallest, num_processes_here, shards_weights
from memory_probe import MemoryProbe, full_packs, longest_rows
from model_manager import footprint
from reporting.console import trial_line
from row_layout import RowLayout
from run_state.checkpoints import saved_batch_plan
from sft_errors import ConfigError, MemoryShortage
from sft_types import BatchPlan, DistributedContext, Precision, RowDataset, TrainingData
from training_arguments import checkpointing_options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("sft.train")
MOST_ROWS = 1024
"""Of a micro-batch where no global batch size limits it."""
MOST_EVALUATION_ROWS = 256
"""Larger evaluation batches are no faster anywhere."""


def resolve_batches(
    config: SFTConfig,
    data: TrainingData,
    model: "PreTrainedModel",
    layout: RowLayout,
    precision: Precision,
    context: DistributedContext,
    *,
    checkpoint: Path | None,
    own: DistributedContext,
) -> BatchPlan:
    """The plan of the run: sizes as they were set, as the checkpoint's run had them, or as a trial finds them.

    Args:
        config: the whole; of it the sizes, and what memory depends on.
        data: the rows; the longest of them are tried.
        model: on its device, with its adapters.
        layout: how rows become a micro-batch.
        precision: the types to compute in.
        context: the processes that share a step.
        checkpoint: what the run goes on from; None for a fresh start.
        own: the processes that are really there: in a rehearsal this one alone.

    Raises:
        ConfigError: if the sizes do not make up the global batch size, or nothing can be tried here.
        MemoryShortage: if not even one row fits.
    """
    training = with_accumulation(config.training, context.world_size)
    asked = _asked(config.training)
    before = saved_batch_plan(checkpoint) if checkpoint else None
    parts = 1
    if before is not None and _can_go_on_with(before, training, asked, context):
        training = replace(
            training,
            per_device_train_batch_size=before["per_device_train_batch_size"],
            per_device_eval_batch_size=before["per_device_eval_batch_size"],
            gradient_accumulation_steps=before["gradient_accumulation_steps"],
        )
        parts = before["parts"]
    elif AUTO in asked.values():
        finder = _Finder(config, training, data, model, layout, precision, context, own)
        training = finder.settle()
    plan = resolve_batch_plan(
        training, data.num_train_rows, context, lengths=data.train.lengths, longest=config.data.max_seq_length
    )
    return replace(plan, parts=parts, asked=asked)


def _asked(training: TrainingConfig) -> dict[str, Any]:
    """What the settings say of sizes, which a checkpoint keeps: whoever changes them wants them changed."""
    names = (
        "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
        "global_batch_size", "tokens_per_batch", "packing",
    )  # fmt: skip
    return {name: getattr(training, name) for name in names}


def _can_go_on_with(
    before: dict[str, Any], training: TrainingConfig, asked: dict[str, Any], context: DistributedContext
) -> bool:
    """Whether a checkpoint's plan is this run's; tells it in the log where it matters."""
    if before["asked"] != asked:
        return False
    if before["world_size"] == context.world_size:
        if AUTO in asked.values() or before["parts"] > 1:
            logger.info("Batch sizes are those of the run that goes on.")
        return True
    if AUTO in asked.values() and training.global_batch_size is None:
        raise ConfigError(
            f"per_device_train_batch_size: auto chose {before['per_device_train_batch_size']} rows on "
            f"{before['world_size']} processes, and now there are {context.world_size}: the rows of a step would "
            f"change in the middle of the run. Write global_batch_size: {before['global_batch_size']}."
        )
    return False


def memory_budget_bytes(
    training: TrainingConfig, context: DistributedContext, *, is_needed: bool = False
) -> int | None:
    """What this process may hold at its fullest: all that it has on a GPU, the whole process on CPU.

    Args:
        training: the training section.
        context: this process.
        is_needed: for a trial, which is refused where there is no budget, or no way to keep to it.

    Raises:
        ConfigError: in that case.
    """
    if is_needed and shards_weights(training.extra_training_arguments):
        raise ConfigError(
            "per_device_train_batch_size: auto tries the whole model on one device, and fsdp or deepspeed spread it "
            "over several; give a number."
        )
    if is_needed and context.device == "mps":
        raise ConfigError("per_device_train_batch_size: auto knows CPUs and CUDA devices, not Apple's; give a number.")
    if training.memory_budget_gib is not None:
        return int(training.memory_budget_gib * 2**30)
    available = available_memory_bytes(context.device, num_processes_here(context.world_size))
    if available is None and is_needed:
        raise ConfigError(
            "per_device_train_batch_size: auto: this system does not tell how much memory is free; "
            "set memory_budget_gib."
        )
    return available and int(available * training.target_memory_utilization)


class _Finder:
    """Tries the sizes that are left open."""

    def __init__(
        self,
        config: SFTConfig,
        training: TrainingConfig,
        data: TrainingData,
        model: "PreTrainedModel",
        layout: RowLayout,
        precision: Precision,
        context: DistributedContext,
        own: DistributedContext,
    ):
        self._training = training
        self._data = data
        self._context = context
        self._own = own
        self._layout = layout
        self._precision = precision
        self._footprint = footprint(model)
        self._longest = config.data.max_seq_length
        self._budget = memory_budget_bytes(training, own, is_needed=True)
        self._probe = MemoryProbe(
            model,
            precision,
            context.device,
            collator=layout.collator,
            evaluation_collator=layout.evaluation_collator,
            attention=layout.attention,
            output=layout.output,
            optimizer=training.optim,
            checkpointing=checkpointing_options(training),
        )

    def settle(self) -> TrainingConfig:
        """The training section with numbers for all that was `auto`."""
        training = self._training
        changes: dict[str, int] = {}
        with self._probe.standing_in_for_training():
            if training.per_device_train_batch_size == AUTO:
                size = self._training_size()
                changes["per_device_train_batch_size"] = size
                if training.global_batch_size is not None:
                    together = size * self._context.world_size
                    changes["gradient_accumulation_steps"] = training.global_batch_size // together
            if training.per_device_eval_batch_size == AUTO:
                changes["per_device_eval_batch_size"] = self._evaluation_size()
        return replace(training, **changes)

    def _training_size(self) -> int:
        training, world_size = self._training, self._context.world_size
        num_units = self._data.num_train_rows or MOST_ROWS
        a_device = training.global_batch_size and training.global_batch_size // world_size
        most = max(num_units // (world_size * training.gradient_accumulation_steps), 1)
        candidates = candidate_sizes(a_device, a_device or min(most, MOST_ROWS))
        unit = "packs" if training.packing else "rows"
        fit = self._fit(candidates, lambda size: self._probe.train(self._training_rows(size)))
        if fit.size is None:
            raise _shortage(fit, unit, self._longest_of(self._data.train))
        size = agree_on_smallest(fit.size, self._own)
        _tell("Batch size", fit, size, unit)
        if a_device is None:
            logger.info(
                "A step takes what fits here: write global_batch_size: %d to have the same on any machine.",
                size * training.gradient_accumulation_steps * world_size,
            )
        return size

    def _evaluation_size(self) -> int:
        rows = self._data.validation
        if rows is None:
            return 1
        most = min(max(len(rows) // self._context.world_size, 1), MOST_EVALUATION_ROWS)
        fit = self._fit(
            candidate_sizes(None, most), lambda size: self._probe.evaluate(longest_rows(rows, size)), trains=False
        )
        if fit.size is None:
            raise _shortage(fit, "rows of evaluation", self._longest_of(rows))
        size = agree_on_smallest(fit.size, self._own)
        _tell("Evaluation batch size", fit, size, "rows")
        return size

    def _fit(self, candidates: Sequence[int], measure: Callable[[int], Trial], *, trains: bool = True) -> BatchFit:
        def measured(size: int) -> Trial:
            return replace(measure(size), size=size)

        fit = fit_batch_size(candidates, measured, self._budget, predict=lambda size: self._predicted(size, trains))
        # All processes stop together where one of them has no room.
        if agree_on_smallest(fit.size or 0, self._own) == 0:
            return replace(fit, size=None)
        return fit

    def _training_rows(self, size: int) -> list[Any]:
        """The fullest micro-batch that can come."""
        rows = self._data.train
        if self._training.packing:
            return full_packs(rows, size, capacity=self._longest, longest=self._longest)
        if self._data.stream is not None:  # whose rows were not all looked at
            return full_packs(rows, size, capacity=self._longest, longest=self._longest)
        return longest_rows(rows, size)

    def _longest_of(self, rows: RowDataset) -> int:
        is_open = self._training.packing or self._data.stream is not None
        return self._longest if is_open else int(rows.lengths.max())

    def _predicted(self, size: int, trains: bool) -> int:
        """By arithmetic; without a word on evaluation, where hardly anything is kept."""
        if not trains:
            return 0
        rows = self._training_rows(size)
        longest = max(len(row["input_ids"]) for row in rows)
        tokens = sum(len(row["input_ids"]) for row in rows) if self._layout.is_flat else len(rows) * longest
        return estimate_memory(
            self._footprint,
            tokens=tokens,
            longest_row=longest,
            weights=self._precision.weights,
            mixed=self._precision.mixed,
            optimizer=self._training.optim,
            gradient_checkpointing=self._training.gradient_checkpointing,
            score_chunk_bytes=self._layout.output.chunk_bytes,
        ).total_bytes


def _tell(what: str, fit: BatchFit, size: int, unit: str) -> None:
    chosen = next(trial for trial in fit.trials if trial.size == size)
    tried = [trial.size for trial in fit.trials]
    logger.info(trial_line(what, size, unit, tried, chosen.peak_bytes, fit.budget_bytes))


def _shortage(fit: BatchFit, unit: str, longest: int) -> MemoryShortage:
    """What to say where not even one fits, here or on another process."""
    peak = fit.trials[0].peak_bytes
    needs = f"takes {peak / 2**30:.2f} GiB" if peak is not None else "runs out of memory"
    return MemoryShortage(
        f"per_device_train_batch_size: auto: a single one of the {unit} ({longest:,} tokens) {needs}, with the model, "
        f"its gradients and optimizer, and the budget is {fit.budget_bytes / 2**30:.2f} GiB a device. Set "
        "gradient_checkpointing: true, lora_config, a smaller max_seq_length, or raise memory_budget_gib; --dry_run "
        "with per_device_train_batch_size: 1 shows what takes the memory."
    )

"""The batch plan of a run, with the sizes that trials find where settings say `auto`: the same on every process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sft.batching.advice import advise
from sft.batching.fit import BatchFit, Trial, candidate_sizes, fit_batch_size
from sft.batching.memory import MemoryFacts, estimate_memory
from sft.batching.packing import plan_packs
from sft.batching.plan import resolve_batch_plan
from sft.checkpointing.resume_point import ResumePoint
from sft.common.errors import ConfigError, MemoryShortage
from sft.common.machine_records import MemoryLimits
from sft.common.run_records import BatchPlan, DistributedContext, PackPattern
from sft.common.text import size
from sft.common.training_data import RowDataset, TrainingData
from sft.configuration.batch_sizes import AUTO, with_accumulation
from sft.configuration.schema import SFTConfig, TrainingConfig
from sft.processes.agreement import agree_on_smallest
from sft.processes.device_memory import available_memory_bytes, process_memory_bytes
from sft.processes.environment import num_processes_here, uses_deepspeed
from sft.reporting.log_lines import trial_line
from sft.training.arguments import checkpointing_options
from sft.training.early_stopping import stopped_early_at
from sft.training.memory_probe import MemoryProbe, crowded_packs, full_packs, longest_rows
from sft.training.prepared_model import PreparedModel
from sft.training.row_layout import RowLayout

logger = logging.getLogger("sft.train")
MOST_ROWS = 1024
"""Largest micro-batch to try where no global batch size limits it."""
MOST_EVALUATION_ROWS = 256
"""Larger evaluation batches are no faster anywhere."""
_REUSED = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "global_batch_size",
    "parts",
)
"""What a resumed run takes from the batch plan of a checkpoint."""


def resolve_batches(
    config: SFTConfig,
    data: TrainingData,
    prepared: PreparedModel,
    context: DistributedContext,
    *,
    actual: DistributedContext,
    limits: MemoryLimits,
    resume: ResumePoint | None = None,
) -> BatchPlan:
    """The batch plan: sizes as set, as in the resumed run, or as found by trial.

    Args:
        config: the whole configuration.
        data: the rows; the longest of them are tried.
        prepared: the model, on its device.
        context: the processes that share a step.
        actual: the running processes: in a dry run only this one.
        limits: of each device's memory.
        resume: the checkpoint to resume from.

    Raises:
        ConfigError: if the sizes do not make up the global batch size, or no trial is possible here.
        MemoryShortage: if not even one row fits.
    """
    training = with_accumulation(config.training, context.world_size)
    asked = _asked(config.training)
    saved = resume.batch_plan if resume is not None else None
    num_chunks = 1
    if saved is not None and _can_reuse(saved, training, asked, context):
        training = replace(
            training,
            per_device_train_batch_size=saved["per_device_train_batch_size"],
            per_device_eval_batch_size=saved["per_device_eval_batch_size"],
            gradient_accumulation_steps=saved["gradient_accumulation_steps"],
        )
        num_chunks = saved["parts"]
    elif AUTO in asked.values():
        training = _SizeTrials(config, training, data, prepared, context, actual, limits).settle()
    plan = resolve_batch_plan(
        training,
        data.num_train_rows,
        context,
        lengths=data.train.lengths,
        max_seq_length=config.data.max_seq_length,
        in_order=config.data.order == "given",
    )
    step = None if resume is None else stopped_early_at(resume.manifest, config.training.early_stopping_patience)
    if resume is not None and step == resume.step:
        plan = replace(plan, total_steps=step, stopped_early=True)
    return replace(plan, num_chunks=num_chunks, asked=asked)


def _asked(training: TrainingConfig) -> dict[str, Any]:
    """The sizes as they are set. A checkpoint keeps them: if they were changed since, its plan is not reused."""
    names = (
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "global_batch_size",
        "tokens_per_batch",
        "packing",
    )
    return {name: getattr(training, name) for name in names}


def _can_reuse(
    saved: Mapping[str, Any], training: TrainingConfig, asked: dict[str, Any], context: DistributedContext
) -> bool:
    """Whether a checkpoint's plan is reused; logged where sizes were found by trial."""
    if saved.get("asked") != asked or any(saved.get(name) is None for name in _REUSED):
        return False
    if saved["world_size"] == context.world_size:
        if AUTO in asked.values() or saved["parts"] > 1:
            logger.info("Batch sizes are those of the resumed run.")
        return True
    if AUTO in asked.values() and training.global_batch_size is None:
        raise ConfigError(
            f"per_device_train_batch_size: auto chose {saved['per_device_train_batch_size']} rows on "
            f"{saved['world_size']} processes, and now there are {context.world_size}: each step would train on "
            f"different rows. Write global_batch_size: {saved['global_batch_size']}."
        )
    return False


def memory_limits(training: TrainingConfig, context: DistributedContext) -> MemoryLimits:
    """The peak memory that this process may reach. Called before the model is loaded.

    Args:
        training: the training section.
        context: this process.
    """
    process_bytes = process_memory_bytes(context.device)
    if training.memory_budget_gib is not None:
        return MemoryLimits(budget_bytes=int(training.memory_budget_gib * 2**30), process_bytes=process_bytes)
    available = available_memory_bytes(context.device, num_processes_here(context.world_size))
    budget = int(available * training.target_memory_utilization) if available else None
    return MemoryLimits(budget_bytes=budget, process_bytes=process_bytes)


def _check_can_be_tried(training: TrainingConfig, context: DistributedContext, limits: MemoryLimits) -> None:
    reason = None
    if uses_deepspeed(training.passed_through.deepspeed):
        reason = "it tries the whole model on one device, and DeepSpeed shards it over several; give a number"
    elif context.device == "mps":
        reason = "it supports CPUs and CUDA devices, not Apple's; give a number"
    elif limits.budget_bytes is None:
        reason = "this system does not report its free memory; set memory_budget_gib"
    if reason is not None:
        raise ConfigError(f"per_device_train_batch_size: auto: {reason}.")


class _SizeTrials:
    """Finds the sizes that are `auto` by trials on the real model."""

    def __init__(
        self,
        config: SFTConfig,
        training: TrainingConfig,
        data: TrainingData,
        prepared: PreparedModel,
        context: DistributedContext,
        actual: DistributedContext,
        limits: MemoryLimits,
    ):
        _check_can_be_tried(training, actual, limits)
        self._training = training
        self._data = data
        self._context = context
        self._actual = actual
        self._prepared = prepared
        self._max_seq_length = config.data.max_seq_length
        self._limits = limits
        in_order = config.data.order == "given"
        self._packs = (
            plan_packs(data.train.lengths, self._max_seq_length, in_order=in_order) if training.packing else None
        )
        self._probe = MemoryProbe(
            prepared.model,
            prepared.precision,
            context.device,
            layout=prepared.layout,
            optimizer=training.optim,
            checkpointing=checkpointing_options(training),
        )

    def settle(self) -> TrainingConfig:
        """The training section with numbers in place of `auto`."""
        training = self._training
        changes: dict[str, Any] = {}
        with self._probe.simulated_training_memory():
            if training.per_device_train_batch_size == AUTO:
                rows = self._training_size()
                changes["per_device_train_batch_size"] = rows
                if training.global_batch_size is not None:
                    together = rows * self._context.world_size
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
        unit = "pack" if training.packing else "row"
        fit = self._fit(candidates, self._train)
        if fit.size is None:
            raise self._shortage(fit, unit, self._longest_row(self._data.train))
        chosen = agree_on_smallest(fit.size, self._actual)
        _log_choice("Batch size", fit, chosen, unit)
        if a_device is None:
            logger.info(
                "The batch size is what fits here: write global_batch_size: %d to have the same on any machine.",
                chosen * training.gradient_accumulation_steps * world_size,
            )
        return chosen

    def _evaluation_size(self) -> int:
        rows = self._data.validation
        if rows is None:
            return 1
        most = min(max(len(rows) // self._context.world_size, 1), MOST_EVALUATION_ROWS)
        fit = self._fit(
            candidate_sizes(None, most), lambda count: self._probe.evaluate(longest_rows(rows, count)), trains=False
        )
        # Training fits, so a batch of one row is worth an attempt even if its trial failed.
        chosen = agree_on_smallest(fit.size or 1, self._actual)
        _log_choice("Evaluation batch size", fit, chosen, "row")
        return chosen

    def _fit(self, candidates: Sequence[int], measure: Callable[[int], Trial], *, trains: bool = True) -> BatchFit:
        def measured(count: int) -> Trial:
            return replace(measure(count), size=count)  # in packs, not in their rows

        assert self._limits.budget_bytes is not None  # see `_check_can_be_tried`
        fit = fit_batch_size(
            candidates, measured, self._limits.budget_bytes, predict=lambda size: self._predicted(size, trains)
        )
        # All processes stop together if one of them has no room.
        if agree_on_smallest(fit.size or 0, self._actual) == 0:
            return replace(fit, size=None)
        return fit

    def _train(self, size: int) -> Trial:
        """The pass over the longest rows, with the peak of the pass over the most rows where that is higher."""
        trial = self._probe.train(self._training_rows(size))
        if self._packs is None or not self._prepared.layout.uses_kernel(self._context.device):
            return trial
        crowded = self._probe.train(crowded_packs(self._data.train, self._packs, size))
        return replace(trial, peak_bytes=max(trial.peak_bytes or 0, crowded.peak_bytes or 0))

    def _training_rows(self, size: int) -> list[Any]:
        """The largest micro-batch that can occur."""
        rows = self._data.train
        if self._training.packing:
            return full_packs(rows, size, capacity=self._max_seq_length, max_seq_length=self._max_seq_length)
        if self._data.stream is not None:  # not all of its rows are known
            return full_packs(rows, size, capacity=self._max_seq_length, max_seq_length=self._max_seq_length)
        return longest_rows(rows, size)

    def _longest_row(self, rows: RowDataset) -> int:
        is_open = self._training.packing or self._data.stream is not None
        return self._max_seq_length if is_open else int(rows.lengths.max())

    def _predicted(self, size: int, trains: bool) -> int:
        """By arithmetic; evaluation keeps hardly any activations, so nothing is predicted for it."""
        return estimate_memory(self._facts(size)).total_bytes if trains else 0

    def _facts(self, count: int) -> MemoryFacts:
        """What the memory of a micro-batch of this size depends on."""
        rows, training = self._training_rows(count), self._training
        longest = max(len(row["input_ids"]) for row in rows)
        tokens = (
            sum(len(row["input_ids"]) for row in rows) if self._prepared.layout.is_padding_free else len(rows) * longest
        )
        return MemoryFacts(
            footprint=self._prepared.footprint,
            documents=documents_of_a_batch(self._prepared.layout, self._packs, count, self._context.device),
            per_device_train_batch_size=count,
            gradient_accumulation_steps=2,  # above 1: gradients are kept beside a micro-batch
            tokens=tokens,
            longest_row=longest,
            weights=self._prepared.precision.weights,
            mixed=self._prepared.precision.mixed,
            optimizer=training.optim,
            gradient_checkpointing=training.gradient_checkpointing,
            device=self._context.device,
            logits_chunk_bytes=self._prepared.layout.output.chunk_bytes,
            world_size=self._context.world_size,
            process_bytes=self._limits.process_bytes,
        )

    def _shortage(self, fit: BatchFit, unit: str, longest: int) -> MemoryShortage:
        """The error if not even one row fits, here or on another process."""
        peak = fit.trials[0].peak_bytes
        needs = f"takes {size(peak)}" if peak is not None else "runs out of memory"
        advice = advise(self._facts(1), fit.budget_bytes)
        changes = [f"{each.change} ({size(each.needed_bytes)})" for each in advice if each.fits]
        way_out = f"By arithmetic these fit: {'; '.join(changes)}." if changes else "Raise memory_budget_gib."
        if not advice:
            way_out = "Set gradient_checkpointing: true, a smaller max_seq_length, or raise memory_budget_gib."
        return MemoryShortage(
            f"per_device_train_batch_size: auto: a single {unit} ({longest:,} tokens) {needs} with model, "
            f"gradients and optimizer, and the budget is {size(fit.budget_bytes)} a device. {way_out}"
        )


def documents_of_a_batch(layout: RowLayout, packs: PackPattern | None, size: int, device: str) -> int:
    """Most documents of a micro-batch of `size` rows or packs, for `MemoryFacts`."""
    if not layout.uses_kernel(device):
        return 0
    return layout.num_documents(size if packs is None else sum(map(len, packs.most_crowded(size))))


def _log_choice(what: str, fit: BatchFit, chosen: int, unit: str) -> None:
    peak = next(trial.peak_bytes for trial in fit.trials if trial.size == chosen)
    logger.info(trial_line(what, chosen, unit, [trial.size for trial in fit.trials], peak, fit.budget_bytes))

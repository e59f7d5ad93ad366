"""Whether layers are compiled where `torch_compile` is `auto`: tried on the run's own rows, once; kept on resume."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sft.checkpointing.resume_point import ResumePoint
from sft.common.device_errors import is_out_of_memory, reraise_device_error
from sft.common.errors import one_line
from sft.common.run_records import BatchPlan, DistributedContext
from sft.common.training_data import RowDataset, TrainingData
from sft.configuration.schema import SFTConfig
from sft.modeling.compiling import compile_layers, uncompile_layers
from sft.modeling.document_attention import NAME as DOCUMENTS
from sft.processes.agreement import agree_on_problem
from sft.processes.environment import uses_deepspeed
from sft.training.arguments import checkpointing_options, compile_options
from sft.training.decided_layout import saved_findings
from sft.training.memory_probe import MemoryProbe, TimedPass
from sft.training.prepared_model import PreparedModel
from sft.training.row_layout import RowLayout

logger = logging.getLogger("sft.train")
AUTO = "auto"
TIMED_PASSES = 5
LEAST_GAIN = 0.03
"""Share of a pass that compiled layers must save: less may be noise."""
LARGEST_DIFFERENCE = 0.05
"""Of loss and norm of the gradient, relative. bfloat16 rounds by 0.4 %, in other places once operations are joined;
a layer that is compiled wrongly differs by far more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompileTrial:
    """Passes over the same rows: as the model is, and with compiled layers."""

    plain: Sequence[TimedPass]
    compiled: Sequence[TimedPass]
    """Without the first one."""
    first_seconds: float
    """Of the first pass with compiled layers, in which they are compiled."""
    draws_dropout: bool
    """Whether the passes drop values at random, so that they cannot be compared."""

    @property
    def seconds(self) -> tuple[float, float]:
        """Median of a pass: plain, compiled."""
        plain, compiled = (statistics.median(each.seconds for each in passes) for passes in (self.plain, self.compiled))
        return plain, compiled

    @property
    def _times(self) -> str:
        plain, compiled = self.seconds
        return f"{compiled:.3f} s a micro-batch with compiled layers, {plain:.3f} s without"

    def obstacle(self, passes_left: int) -> str | None:
        """Why the layers are not compiled, as a clause; None if they are.

        Args:
            passes_left: micro-batches that this process trains on until the end of the run.
        """
        plain, compiled = self.seconds
        if not self.draws_dropout:
            for name in ("loss", "gradient_norm"):
                ours, theirs = getattr(self.plain[-1], name), getattr(self.compiled[-1], name)
                # NaN compares as unequal
                if not math.isclose(ours, theirs, rel_tol=LARGEST_DIFFERENCE, abs_tol=1e-6):
                    return f"compiled layers compute another {name.replace('_', ' ')} ({theirs:.4g}, not {ours:.4g})"
        if compiled > plain * (1 - LEAST_GAIN):
            return f"it would not be faster ({self._times})"
        if (plain - compiled) * passes_left < self.first_seconds - compiled:
            return (
                f"the run is too short: {self.first_seconds:.0f} s to compile, then {self._times}, "
                f"and {passes_left:,} are left"
            )
        return None

    def gain_line(self) -> str:
        """One line for the log."""
        return f"Layers are compiled (torch_compile: auto): {self._times}; compiling took {self.first_seconds:.0f} s."


def settle_layout(
    config: SFTConfig,
    data: TrainingData,
    prepared: PreparedModel,
    plan: BatchPlan,
    context: DistributedContext,
    resume: ResumePoint | None = None,
    *,
    is_dry_run: bool = False,
) -> PreparedModel:
    """The model with the layout of its micro-batches: their size, and whether layers are compiled.

    A collective operation.

    Args:
        config: the whole configuration.
        data: whose first rows are the trial's.
        prepared: the model, on its device.
        plan: of the run.
        context: the running processes.
        resume: the checkpoint whose decision is used again.
        is_dry_run: compile nothing.
    """
    training = config.training
    compiled = prepared.layout.for_compiled_layers(training, config.data.max_seq_length)
    layout = _with_size(prepared.layout, plan)
    if training.torch_compile == AUTO and not is_dry_run and _may_compile(config, prepared.layout, context.device):
        kept = saved_findings(resume, config)
        if kept is not None and kept.compiles_layers is not None:
            is_compiled = kept.compiles_layers
            if is_compiled:
                logger.info("Layers are compiled (torch_compile: auto, %s).", kept.reason)
        else:
            step = resume.step if resume is not None else 0
            passes_left = (plan.total_steps - step) * plan.gradient_accumulation_steps
            layouts = (layout, _with_size(compiled, plan))
            is_compiled = _pays(config, data, prepared, layouts, plan, context, passes_left)
        findings = replace(layout.findings, compiles_layers=is_compiled)
        layout = _with_size(compiled, plan) if is_compiled else replace(layout, findings=findings)
    return replace(prepared, layout=layout)


def _with_size(layout: RowLayout, plan: BatchPlan) -> RowLayout:
    return layout.with_micro_batch_size(plan.per_device_train_batch_size)


def _may_compile(config: SFTConfig, layout: RowLayout, device: str) -> bool:
    """Whether a trial is worth its time: micro-batches of one size, kernels that take all of it, and free choice."""
    training = config.training
    has_one_size = training.packing or training.tokens_per_batch is not None
    whole = layout.attention == DOCUMENTS and not layout.findings.mixers_by_document
    is_sharded = config.fsdp is not None or uses_deepspeed(training.passed_through.deepspeed)
    # What is decided by timing may differ from run to run.
    is_free = not (is_sharded or training.passed_through.full_determinism or config.quantization)
    return device.startswith("cuda") and has_one_size and whole and is_free


def _pays(
    config: SFTConfig,
    data: TrainingData,
    prepared: PreparedModel,
    layouts: tuple[RowLayout, RowLayout],
    plan: BatchPlan,
    context: DistributedContext,
    passes_left: int,
) -> bool:
    """Whether compiled layers make the run shorter on every process; if so, they stay compiled. Logged."""
    probe = MemoryProbe(
        prepared.model,
        prepared.precision,
        context.device,
        layout=layouts[0],
        optimizer=config.training.optim,
        checkpointing=checkpointing_options(config.training),
    )
    rows = rows_of_a_batch(data.train, _tokens_of_a_batch(config, plan))
    options = compile_options(config.training)
    trial, problem = None, None
    try:
        with probe.simulated_training_memory():
            trial = try_compiling(prepared.model, lambda layout: probe.timed(rows, layout), layouts, options)
        problem = trial.obstacle(passes_left)
    except Exception as error:
        if not is_out_of_memory(error):
            reraise_device_error(error)
        problem = f"the trial failed ({one_line(error, 160)})"
    problem = agree_on_problem(problem, context)
    if problem is None and trial is not None:
        logger.info(trial.gain_line())
        return True
    uncompile_layers(prepared.model)
    logger.info("Layers are not compiled (torch_compile: auto): %s.", problem)
    return False


def try_compiling(
    model: Any,
    run: Callable[[RowLayout], TimedPass],
    layouts: tuple[RowLayout, RowLayout],
    options: Mapping[str, Any],
) -> CompileTrial:
    """Passes without and with compiled layers, which stay compiled.

    Args:
        model: the model.
        run: a pass in a layout.
        layouts: of plain and of compiled layers.
        options: of `torch.compile`.
    """
    run(layouts[0])  # allocates memory, and loads kernels
    plain = [run(layouts[0]) for _ in range(TIMED_PASSES)]
    compile_layers(model, has_fixed_shape=layouts[1].has_fixed_shape, **options)
    first = run(layouts[1])
    return CompileTrial(
        plain=plain,
        compiled=[run(layouts[1]) for _ in range(TIMED_PASSES)],
        first_seconds=first.seconds,
        draws_dropout=any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules()),
    )


def _tokens_of_a_batch(config: SFTConfig, plan: BatchPlan) -> int:
    """Tokens of a full micro-batch."""
    return config.training.tokens_per_batch or config.data.max_seq_length * plan.per_device_train_batch_size


def rows_of_a_batch(rows: RowDataset, num_tokens: int) -> list[Mapping[str, Any]]:
    """The first rows, repeated where they are few, as many as fit into `num_tokens`; at least one."""
    lengths = rows.lengths.tolist()
    chosen: list[Mapping[str, Any]] = []
    used = 0
    while not chosen or used + lengths[len(chosen) % len(lengths)] <= num_tokens:
        index = len(chosen) % len(lengths)
        chosen.append(rows[index])
        used += lengths[index]
    return chosen

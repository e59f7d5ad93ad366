"""Settings that do not fit the steps, the rows or the model of a run, found before it starts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from transformers import TrainingArguments, get_scheduler

from sft.batching.larger_steps import larger_step
from sft.batching.memory import estimate_memory
from sft.common.errors import ConfigError, located
from sft.common.text import counted, size
from sft.configuration.batch_sizes import AUTO
from sft.configuration.checks.finding import Finding
from sft.configuration.checks.rows import batch_size_key, check_rows
from sft.configuration.checks.steps import RunLength, check_steps, is_trial
from sft.training.dry_run import DryRun, memory_facts, planned_environment
from sft.training.run_setup import RunSetup

logger = logging.getLogger("sft.data")
_MOST_STEPS = 2000
"""Steps at which a schedule is computed."""
_NEARLY = 0.99


def check_run(dry_run: DryRun, setup: RunSetup, arguments: TrainingArguments, *, is_dry_run: bool) -> DryRun:
    """Checks that the settings fit the steps, the rows and the model. A run logs notes, and stops at problems.

    A resumed run has no problems, only notes: it was started with these settings.

    Args:
        dry_run: what is known before the model is loaded.
        setup: the run.
        arguments: transformers' settings, built from the same plan.
        is_dry_run: return the problems instead of stopping.

    Returns:
        The first argument with the problems and notes that were found.

    Raises:
        ConfigError: in a run, with every problem.
    """
    found, origins = [*find_in_run(setup, arguments), *_find_in_space(dry_run, setup)], setup.config.origins
    if is_dry_run:
        found += _find_in_speed(setup)
    stopping = [finding for finding in found if finding.stops and setup.resume is None]
    error = located(ConfigError(*(finding.line for finding in stopping)), origins)
    if stopping and not is_dry_run:
        raise error
    notes = located(ConfigError(*(finding.line for finding in found if finding not in stopping)), origins).problems
    for note in () if is_dry_run else notes:
        logger.info("Note: %s", note)
    return replace(dry_run, problems=[*dry_run.problems, *error.problems], notes=notes)


def find_in_run(setup: RunSetup, arguments: TrainingArguments) -> list[Finding]:
    """What does not fit the steps, the rows or the model.

    Args:
        setup: the run.
        arguments: transformers' settings, built from the same plan.
    """
    config, data, plan = setup.config, setup.data, setup.plan
    length = RunLength(
        total_steps=plan.total_steps, steps_per_epoch=plan.steps_per_epoch if data.stream is None else None
    )
    found = list(check_steps(config, length, has_validation=data.validation is not None))
    if not any(finding.key.startswith("warmup") for finding in found):
        share = highest_share(arguments, plan.total_steps)
        if share < _NEARLY:
            steps = counted(plan.total_steps, "step")
            message = f"the learning rate reaches at most {share:.0%} of learning_rate in {steps}."
            found.append(Finding(key="lr_scheduler_kwargs", message=message, stops=not is_trial(config)))
    positions = setup.prepared.positions
    return [*found, *check_rows(config, data.report, plan, data.num_train_rows, positions=positions)]


def highest_share(arguments: TrainingArguments, total_steps: int) -> float:
    """The highest learning rate of the run as a share of `learning_rate`; 1 for a schedule that follows the run.

    Args:
        arguments: transformers' settings.
        total_steps: of the run.
    """
    if arguments.lr_scheduler_type == "greedy":
        return 1.0
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=arguments.learning_rate or 1.0)
    schedule = get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        num_warmup_steps=arguments.get_warmup_steps(total_steps),
        num_training_steps=total_steps,
        scheduler_specific_kwargs=cast("dict[str, Any] | None", arguments.lr_scheduler_kwargs),
    )
    if not isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
        return 1.0
    steps = np.linspace(0, total_steps - 1, min(total_steps, _MOST_STEPS)).round().astype(int)
    return max(schedule.lr_lambdas[0](int(step)) for step in steps)


def _find_in_space(dry_run: DryRun, setup: RunSetup) -> Iterator[Finding]:
    """Yield a note where, as predicted, the run does not fit into memory or its checkpoints do not fit on the disk."""
    device, limits = setup.context.device, setup.limits
    facts = memory_facts(
        setup.config, setup.data, setup.prepared, setup.plan, device=device, process_bytes=limits.process_bytes
    )
    memory = estimate_memory(facts)
    is_tried = setup.config.training.per_device_train_batch_size == AUTO
    if limits.budget_bytes is not None and memory.total_bytes > limits.budget_bytes and not is_tried:
        message = f"predicted memory is {size(memory.total_bytes)}, and {size(limits.budget_bytes)} may be used"
        yield Finding(key="per_device_train_batch_size", message=f"{message}. --dry_run lists changes that would fit.")
    environment = planned_environment(dry_run, setup.prepared, setup.plan, memory)
    needed, free = environment.needed_disk_bytes, environment.free_disk_bytes
    if needed > free:
        message = f"the run needs {size(needed)} of disk space, and {size(free)} are free. Lower save_total_limit."
        yield Finding(key="output_dir", message=message)


def _find_in_speed(setup: RunSetup) -> Iterator[Finding]:
    """Yield advice where the optimizer takes much of each step."""
    config, plan = setup.config, setup.plan
    if setup.data.stream is not None:
        return
    in_one_process = setup.data.report.train.tokens_an_epoch / plan.steps_per_epoch / plan.world_size
    sharded_over = plan.world_size if config.fsdp is not None else 1
    step = larger_step(setup.prepared.footprint, in_one_process, setup.context.device, sharded_over=sharded_over)
    if step is not None:
        yield Finding(
            key=batch_size_key(config.training),
            message=f"a step trains on about {in_one_process:,.0f} tokens in each process, and by estimate the "
            f"optimizer takes {step.optimizer_share:.0%} of its time. With {step.times} times as many rows in a step "
            f"an epoch would take {step.saved_share:.0%} less time, in fewer steps; these often need a higher "
            "learning_rate.",
        )

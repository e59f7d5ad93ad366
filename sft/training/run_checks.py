"""Settings that do not fit the steps, the rows or the model of a run, found before it starts."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from transformers import TrainingArguments, get_scheduler

from sft.common.text import counted
from sft.configuration.checks.finding import Finding
from sft.configuration.checks.rows import check_rows
from sft.configuration.checks.steps import RunLength, check_steps, is_trial
from sft.training.run_setup import RunSetup

_MOST_STEPS = 2000
"""Steps at which a schedule is computed."""
_NEARLY = 0.99


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

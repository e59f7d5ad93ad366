"""Checks of when a run evaluates and saves."""

from __future__ import annotations

import os
from collections.abc import Iterator

from sft.common.files import is_address
from sft.configuration.checks.contradiction import Contradiction
from sft.configuration.schema import DataConfig, SFTConfig

NEED_VALIDATION = ("reduce_lr_on_plateau", "greedy")
"""Learning rate schedules that follow the validation loss."""


def check_evaluation_schedule(config: SFTConfig) -> Iterator[Contradiction]:
    """Check that there is validation data where a setting needs it, and that steps and strategies agree."""
    training, passed = config.training, config.training.passed_through
    follows_validation = {
        "early_stopping_patience": training.early_stopping_patience is not None,
        "load_best_model_at_end": training.load_best_model_at_end,
        "save_strategy": passed.saves_best,
        "lr_scheduler_type": training.lr_scheduler_type in NEED_VALIDATION,
    }
    needs_validation = {
        **follows_validation,
        "eval_steps": training.eval_steps is not None,
        "eval_strategy": passed.asks_for_evaluation,
    }
    if not may_have_validation(config.data):
        for key in (key for key, is_so in needs_validation.items() if is_so):
            yield Contradiction(key, "requires validation data; set validation_file or validation_split.")
    if passed.eval_strategy == "no":
        for key in (key for key, is_so in follows_validation.items() if is_so):
            yield Contradiction(key, "requires evaluation, but eval_strategy is no; choose one.")
    for key, steps, strategy in (
        ("eval_steps", training.eval_steps, passed.eval_strategy),
        ("save_steps", training.save_steps, passed.save_strategy),
    ):
        if steps is not None and strategy not in (None, "steps"):
            yield Contradiction(key, f"conflicts with {key[:4]}_strategy: {strategy}; choose one.")
        if steps is None and strategy == "steps":
            yield Contradiction(f"{key[:4]}_strategy", f"steps requires {key}.")
    if training.load_best_model_at_end and not passed.saves_best:
        yield from _check_best_model_schedule(config)


def may_have_validation(data: DataConfig) -> bool:
    """Whether there may be validation data; folders and named datasets are searched later."""
    folders = [os.path.join(data.dataset_path or "", data.train_file or ""), *(entry.path for entry in data.datasets)]
    names = [data.dataset_name, *(entry.name for entry in data.datasets)]
    return bool(
        data.validation_file
        or data.validation_split
        or any(names)
        or any(folder and (os.path.isdir(folder) or is_address(folder)) for folder in folders)
    )


def _check_best_model_schedule(config: SFTConfig) -> Iterator[Contradiction]:
    """Check that steps are both evaluated and saved: only then a model can be kept as the best."""
    eval_steps, save_steps = config.training.eval_steps, config.training.save_steps
    if config.training.passed_through.save_strategy == "no":
        yield Contradiction("load_best_model_at_end", "requires checkpoints, but save_strategy is no.")
    elif eval_steps is None and save_steps is None:
        return
    elif eval_steps is None or save_steps is None:
        yield Contradiction(
            "load_best_model_at_end",
            f"evaluation and saving must happen at the same steps, but eval_steps is {_shown(eval_steps)} and "
            f"save_steps is {_shown(save_steps)}; set both or neither.",
        )
    else:
        same_kind = isinstance(eval_steps, int) == isinstance(save_steps, int)
        if not same_kind or abs(save_steps / eval_steps - round(save_steps / eval_steps)) > 1e-9:
            yield Contradiction(
                "save_steps", f"must be a multiple of eval_steps ({eval_steps}) with load_best_model_at_end."
            )


def _shown(steps: float | None) -> str:
    return "null" if steps is None else str(steps)

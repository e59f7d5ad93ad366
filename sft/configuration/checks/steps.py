"""Checks of settings against the number of steps: what never happens, or happens once, in a run of that length."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from sft.common.text import counted
from sft.configuration.checks.finding import Finding
from sft.configuration.keys import flat_keys
from sft.configuration.schema import SFTConfig

WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
"""Learning rate schedules that ignore `warmup_steps` and `warmup_ratio`."""
LONG_WARMUP = 0.5
"""Share of all steps; a longer warm-up is unusual."""
TRIAL_RUN = 50
"""Steps up to which `max_steps` is taken for a trial of the other settings: what does not fit them is a note then."""
LONG_RUN = 200
"""Steps from which a run without a checkpoint before its end is reported although `save_steps` is not set."""
_DEFAULT_PATIENCE = 10
"""Evaluations that torch's ReduceLROnPlateau waits for, if `lr_scheduler_kwargs` has no patience."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLength:
    """How long a run is."""

    total_steps: int
    steps_per_epoch: int | None = None
    """None where it is not known yet, or for a stream."""

    @property
    def text(self) -> str:
        return f"the run has {counted(self.total_steps, 'step')}"


def find_early_problems(config: SFTConfig) -> Iterator[Finding]:
    """Yield the problems of a new run whose length is a setting (`max_steps`), before any data is read."""
    training, data = config.training, config.data
    if training.max_steps < 1 or training.resume_from_checkpoint:
        return
    length = RunLength(total_steps=training.max_steps)
    has_validation = bool(data.validation_file or data.validation_split)
    yield from (finding for finding in check_steps(config, length, has_validation=has_validation) if finding.stops)


def check_steps(config: SFTConfig, length: RunLength, *, has_validation: bool) -> Iterator[Finding]:
    """Yield what does not fit into the steps of a run.

    Args:
        config: the whole configuration.
        length: of the run.
        has_validation: whether there is validation data.
    """
    for finding in _check_all(config, length, has_validation=has_validation):
        yield replace(finding, stops=finding.stops and not is_trial(config))


def is_trial(config: SFTConfig) -> bool:
    """Whether the run is a short one that only tries its settings."""
    return 0 < config.training.max_steps <= TRIAL_RUN


def _check_all(config: SFTConfig, length: RunLength, *, has_validation: bool) -> Iterator[Finding]:
    yield from _check_warmup(config, length)
    if has_validation:
        yield from _check_evaluations(config, length)
    yield from _check_saves(config, length)
    for key, steps in (
        ("logging_steps", config.logging.logging_steps),
        ("torch_empty_cache_steps", config.training.passed_through.torch_empty_cache_steps),
    ):
        if steps is not None and steps > length.total_steps and steps != _default(key):
            effect = "only the last step is logged" if key == "logging_steps" else "it has no effect"
            yield Finding(key=key, message=f"{_shown(steps)}, and {length.text}: {effect}.")
    bad = config.training.max_bad_steps
    if bad > length.total_steps and bad != _default("max_bad_steps"):
        yield Finding(key="max_bad_steps", message=f"{bad:,}, and {length.text}: skipped steps never stop it.")


def _check_warmup(config: SFTConfig, length: RunLength) -> Iterator[Finding]:
    training, total = config.training, length.total_steps
    key = "warmup_steps" if training.warmup_steps else "warmup_ratio"
    given = training.warmup_steps or training.warmup_ratio
    if not given or training.lr_scheduler_type in WITHOUT_WARMUP:
        return
    steps = math.ceil(given * total) if given < 1 or key == "warmup_ratio" else round(given)
    if steps >= total:
        # A share is rounded up: 5 % of a run of one step is all of it, which nobody means.
        is_meant = given >= LONG_WARMUP
        peak = f"the learning rate never reaches its peak of {training.learning_rate:g}"
        advice = f"Write warmup_ratio: 0.05, or at most {total - 1:,} warmup_steps, or train for more steps."
        yield Finding(key=key, message=f"{_shown(given)}, and {length.text}: {peak}. {advice}", stops=is_meant)
    elif steps > LONG_WARMUP * total:
        yield Finding(key=key, message=f"{_shown(given)}, and {length.text}: {steps / total:.0%} of them are warm-up.")


def _check_evaluations(config: SFTConfig, length: RunLength) -> Iterator[Finding]:
    """What comes of evaluations during training; one before and one after it are always made."""
    training, passed = config.training, config.training.passed_through
    strategy = passed.eval_strategy or ("epoch" if training.eval_steps is None else "steps")
    if strategy == "no":
        return
    steps = _steps_of(strategy, training.eval_steps, length, delay=passed.eval_delay)
    if steps is None:
        return
    followers = {
        "load_best_model_at_end": training.load_best_model_at_end,
        "save_strategy": passed.saves_best,
        "lr_scheduler_type": training.lr_scheduler_type == "reduce_lr_on_plateau",
    }
    followed = [key for key, is_so in followers.items() if is_so]
    is_delayed = bool(passed.eval_delay) and bool(_steps_of(strategy, training.eval_steps, length, delay=0))
    key = "eval_delay" if is_delayed else "eval_steps" if strategy == "steps" else "eval_strategy"
    given = {"eval_delay": passed.eval_delay, "eval_steps": training.eval_steps or 0}.get(key)
    if not steps and given is not None:
        what = f"{_shown(given)}, and {length.text}: no evaluation before its end"
        if followed:
            does = {"load_best_model_at_end": "compare", "save_strategy": "compare", "lr_scheduler_type": "follow"}
            yield Finding(
                key=key, message=f"{what}, so {followed[0]} has nothing to {does[followed[0]]}. Lower it.", stops=True
            )
        else:
            yield Finding(key=key, message=f"{what}.")
    elif len(steps) <= 1 and "load_best_model_at_end" in followed:
        yield Finding(
            key="load_best_model_at_end",
            message=f"there is one evaluation in {counted(length.total_steps, 'step')}: nothing to compare.",
        )
    if "lr_scheduler_type" in followed and steps:
        patience = passed.lr_scheduler_kwargs.get("patience", _DEFAULT_PATIENCE)
        if isinstance(patience, int) and len(steps) <= patience:
            yield Finding(
                key="lr_scheduler_kwargs" if "patience" in passed.lr_scheduler_kwargs else "lr_scheduler_type",
                message=f"patience {patience} cannot be reached with {counted(len(steps), 'evaluation')}, so the "
                "learning rate is never reduced.",
            )


def _check_saves(config: SFTConfig, length: RunLength) -> Iterator[Finding]:
    training, passed, total = config.training, config.training.passed_through, length.total_steps
    strategy = passed.save_strategy or ("epoch" if training.save_steps is None else "steps")
    if training.save_total_limit == 1 and (training.load_best_model_at_end or passed.saves_best):
        yield Finding(key="save_total_limit", message="1: two checkpoints are kept, the newest and the best one.")
    if strategy not in ("steps", "epoch"):
        return
    steps = _steps_of(strategy, training.save_steps, length)
    if steps is None or (steps and steps[0] < total):
        return
    lost = "the only checkpoint is saved at the end, and a run that is killed before has to start again"
    if strategy == "steps":
        if training.save_steps and training.save_steps > total:
            yield Finding(key="save_steps", message=f"{_shown(training.save_steps)}, and {length.text}: {lost}.")
    elif total >= LONG_RUN:
        yield Finding(key="save_steps", message=f"not set, and {length.text} in one epoch: {lost}. Set it.")


def _steps_of(strategy: str, every: float | None, length: RunLength, *, delay: float = 0) -> range | None:
    """The steps at which something happens that is due every so many steps, or at the end of each epoch.

    Args:
        strategy: `steps` or `epoch`.
        every: steps, or below 1 a share of all steps.
        length: of the run.
        delay: steps or epochs before which nothing happens.

    Returns:
        Numbers that are not stored, as a run may have billions of steps; the end of the last epoch may lie beyond the
        run's. None if the steps of an epoch are not known.
    """
    total = length.total_steps
    if strategy == "steps" and every:
        interval = math.ceil(every * total) if every < 1 else round(every)
        return range(interval * max(math.ceil(delay / interval), 1), total + 1, interval)
    size = length.steps_per_epoch
    if size is None:
        return None
    return range(size * max(math.ceil(delay), 1), total + size if delay * size <= total else 0, size)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _default(key: str) -> object:
    return flat_keys()[key].default if key in flat_keys() else None

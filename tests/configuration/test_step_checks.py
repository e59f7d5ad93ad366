"""Settings against the length of a run: what never happens stops a new run, what is odd is a note."""

from __future__ import annotations

import pytest

from sft.configuration.checks.steps import RunLength, check_steps, find_early_problems
from tests.support.configurations import VALIDATED, load

STOPS, NOTE = True, False


def found(text, total, per_epoch=None, *, has_validation=True):
    length = RunLength(total_steps=total, steps_per_epoch=per_epoch)
    return list(check_steps(load(text, base=VALIDATED), length, has_validation=has_validation))


CASES = {
    # (settings, steps, steps per epoch): what is found
    "warm-up as long as the run": ("warmup_steps: 10\n", 10, None, [("warmup_steps", STOPS)]),
    "warm-up longer than the run": ("warmup_steps: 500\n", 10, 5, [("warmup_steps", STOPS)]),
    "warm-up of all steps, as a share that is rounded up": ("warmup_ratio: 0.95\n", 10, 5, [("warmup_ratio", STOPS)]),
    "warm-up up to the last step": ("warmup_steps: 9\n", 10, 5, [("warmup_steps", NOTE)]),
    "warm-up of most steps": ("warmup_ratio: 0.6\n", 10, 5, [("warmup_ratio", NOTE)]),
    "warm-up of most steps, as a share of warmup_steps": ("warmup_steps: 0.6\n", 10, 5, [("warmup_steps", NOTE)]),
    "a share that is rounded up to a run of one step": ("warmup_ratio: 0.05\n", 1, None, [("warmup_ratio", NOTE)]),
    "warm-up of half the run": ("warmup_steps: 5\n", 10, 5, []),
    "warm-up that the schedule ignores": ("warmup_steps: 50\nlr_scheduler_type: constant\n", 10, 5, []),
    "no evaluation before the end": ("eval_steps: 100\n", 50, 25, [("eval_steps", NOTE)]),
    "no evaluation, best model": (
        "eval_steps: 100\nsave_steps: 100\nload_best_model_at_end: yes\n",
        50,
        25,
        [("eval_steps", STOPS), ("save_steps", NOTE)],
    ),
    "no evaluation, saved when best": (
        "eval_steps: 100\nsave_strategy: best\n",
        50,
        25,
        [("eval_steps", STOPS)],
    ),
    "no evaluation, schedule that follows it": (
        "eval_steps: 100\nlr_scheduler_type: reduce_lr_on_plateau\n",
        50,
        25,
        [("eval_steps", STOPS)],
    ),
    "evaluation delayed beyond the end": ("eval_steps: 5\neval_delay: 60\n", 50, 25, [("eval_delay", NOTE)]),
    "epochs delayed beyond the end": (
        "eval_delay: 3\nload_best_model_at_end: yes\n",
        50,
        25,
        [("eval_delay", STOPS)],
    ),
    "evaluation at the last step": ("eval_steps: 50\n", 50, 25, []),
    "evaluation by a share": ("eval_steps: 0.1\n", 50, 25, []),
    "one evaluation, best model": ("load_best_model_at_end: yes\n", 50, 50, [("load_best_model_at_end", NOTE)]),
    "two evaluations, best model": ("load_best_model_at_end: yes\n", 50, 25, []),
    "patience beyond the evaluations": (
        "lr_scheduler_type: reduce_lr_on_plateau\nlr_scheduler_kwargs: {patience: 3}\n",
        50,
        20,
        [("lr_scheduler_kwargs", NOTE)],
    ),
    "default patience beyond the evaluations": (
        "lr_scheduler_type: reduce_lr_on_plateau\n",
        50,
        25,
        [("lr_scheduler_type", NOTE)],
    ),
    "patience as JSON": (
        "lr_scheduler_type: reduce_lr_on_plateau\nlr_scheduler_kwargs: '{\"patience\": 1}'\n",
        50,
        25,
        [],
    ),
    "no checkpoint before the end": ("save_steps: 500\n", 50, 25, [("save_steps", NOTE)]),
    "a checkpoint at the last step only": ("save_steps: 50\n", 50, 25, []),
    "a checkpoint after each epoch": ("", 500, 250, []),
    "a long single epoch without a checkpoint": ("", 500, 500, [("save_steps", NOTE)]),
    "a short single epoch without a checkpoint": ("", 50, 50, []),
    "no checkpoint, as asked": ("save_strategy: no\n", 500, 500, []),
    "one checkpoint beside the best": (
        "save_total_limit: 1\nload_best_model_at_end: yes\n",
        50,
        25,
        [("save_total_limit", NOTE)],
    ),
    "logging beyond the end": ("logging_steps: 100\n", 50, 25, [("logging_steps", NOTE)]),
    "the default of logging": ("", 5, 5, []),
    "cache emptied beyond the end": ("torch_empty_cache_steps: 100\n", 50, 25, [("torch_empty_cache_steps", NOTE)]),
    "more bad steps than steps": ("max_bad_steps: 60\n", 50, 25, [("max_bad_steps", NOTE)]),
    "more steps than fit into memory": ("eval_steps: 5\n", 10**15, 10**6, []),
    "more epochs than fit into memory": ("load_best_model_at_end: yes\n", 10**15, 2, []),
    "a last epoch that is not complete": ("load_best_model_at_end: yes\n", 60, 25, []),
    "a delay to the last epoch": ("eval_strategy: epoch\neval_delay: 2\n", 60, 25, []),
    "a delay beyond the last epoch": ("eval_strategy: epoch\neval_delay: 3\n", 60, 25, [("eval_delay", NOTE)]),
    "steps of an epoch not known": ("load_best_model_at_end: yes\n", 50, None, []),
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_the_steps(case):
    text, total, per_epoch, expected = CASES[case]
    findings = found(text, total, per_epoch)
    assert [(finding.key, finding.stops) for finding in findings] == expected, findings
    assert all(finding.line.endswith(".") for finding in findings)


def test_a_trial_run_only_gets_notes():
    assert [finding.stops for finding in found("max_steps: 10\nwarmup_steps: 100\n", 10)] == [NOTE]
    assert [finding.stops for finding in found("max_steps: 60\nwarmup_steps: 100\n", 60)] == [STOPS]


def test_without_validation_data_evaluations_are_not_checked():
    assert found("eval_steps: 100\n", 50, 25, has_validation=False) == []


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("max_steps: 51\nwarmup_steps: 60\n", ["warmup_steps"]),
        ("max_steps: 51\neval_steps: 60\nsave_steps: 60\nload_best_model_at_end: yes\n", ["eval_steps"]),
        ("max_steps: 50\nwarmup_steps: 60\n", []),
        ("max_steps: 51\nwarmup_steps: 60\nresume_from_checkpoint: auto\n", []),
        ("warmup_steps: 20\n", []),
        ("max_steps: 10\nwarmup_steps: 5\neval_steps: 20\n", []),
    ],
)
def test_a_length_that_is_a_setting_is_checked_before_data_is_read(text, keys):
    assert [finding.key for finding in find_early_problems(load(text, base=VALIDATED))] == keys


@pytest.mark.parametrize(
    ("text", "notice"),
    [
        (
            "warmup_steps: 5\nlr_scheduler_type: constant\n",
            "warmup_steps has no effect: lr_scheduler_type is constant.",
        ),
        (
            "warmup_ratio: 0.1\nlr_scheduler_type: constant\n",
            "warmup_ratio has no effect: lr_scheduler_type is constant.",
        ),
        ("max_steps: 5\nnum_train_epochs: 2\n", "num_train_epochs has no effect: max_steps ends the run."),
        ("save_strategy: no\nsave_total_limit: 5\n", "save_total_limit has no effect: save_strategy is no."),
        ("save_only_model: yes\n", "save_only_model: a run that is stopped cannot be resumed from its checkpoints."),
        ("save_strategy: no\nsave_only_model: yes\n", "save_only_model has no effect: save_strategy is no."),
        ("learning_rate: 0\n", "learning_rate is 0: the weights do not change."),
    ],
)
def test_notices_of_a_schedule(text, notice):
    assert load(text).notices == (notice,)

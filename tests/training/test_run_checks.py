"""The highest learning rate of a schedule, by building it; and notes of a run."""

from __future__ import annotations

import pytest
from transformers import TrainingArguments

from sft.training.run_checks import highest_share


@pytest.mark.parametrize(
    ("settings", "total", "share"),
    [
        ({}, 10, 1.0),
        ({"warmup_steps": 5}, 10, 1.0),
        ({"warmup_steps": 9}, 10, 1.0),
        ({"warmup_steps": 10}, 10, 0.9),
        ({"warmup_steps": 100}, 10, 0.09),
        ({"lr_scheduler_type": "cosine", "warmup_steps": 5}, 10, 1.0),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 20}, 10, 0.45),
        ({"lr_scheduler_type": "inverse_sqrt", "warmup_steps": 20}, 10, 0.45),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"}, 10, 1.0),
        ({"lr_scheduler_type": "linear", "warmup_steps": 0.1}, 1_000_000, 1.0),
        (
            {
                "lr_scheduler_type": "warmup_stable_decay",
                "warmup_steps": 5,
                "lr_scheduler_kwargs": {"num_decay_steps": 2},
            },
            10,
            1.0,
        ),
    ],
)
def test_highest_learning_rate_of_a_schedule(tmp_path, settings, total, share):
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, **settings)
    assert highest_share(arguments, total) == pytest.approx(share, rel=0.01)

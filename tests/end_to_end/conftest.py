"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import pytest


@pytest.fixture
def short_run(run_sft):
    """Run 6 steps with checkpoints at 2, 4 and 6; arguments are further settings."""

    def run(*extra, **settings):
        return run_sft(
            *extra, **{"save_steps": 2, "save_total_limit": "null", "sample_prompts": "[]", "max_steps": 6} | settings
        )

    return run

"""All contradictions of a configuration."""

from __future__ import annotations

from collections.abc import Iterator

from sft.configuration.checks.contradiction import Contradiction
from sft.configuration.checks.data import check_data
from sft.configuration.checks.evaluation import check_evaluation_sets
from sft.configuration.checks.model import check_model
from sft.configuration.checks.packages import check_packages
from sft.configuration.checks.schedule import check_evaluation_schedule
from sft.configuration.checks.sharding import check_deepspeed, check_fsdp
from sft.configuration.checks.training import check_batch_sizes, check_logging, check_passed_through, check_training
from sft.configuration.schema import SFTConfig


def find_contradictions(config: SFTConfig) -> Iterator[Contradiction]:
    """Yield settings that contradict each other, unknown names and missing files."""
    yield from check_model(config)
    yield from check_data(config)
    yield from check_training(config)
    yield from check_batch_sizes(config)
    yield from check_fsdp(config)
    yield from check_deepspeed(config)
    yield from check_passed_through(config)
    yield from check_evaluation_sets(config)
    yield from check_evaluation_schedule(config)
    yield from check_logging(config)
    yield from check_packages(config)

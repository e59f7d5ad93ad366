"""The machine of a run, and the disk space that it needs."""

from __future__ import annotations

import dataclasses

import pytest

from sft.common.run_records import DistributedContext, ModelFootprint
from sft.processes.environment import num_usable_cores
from sft.reporting.environment import gather_environment
from tests.support.preflight_records import GIB, preflight


@pytest.mark.parametrize(
    ("kept", "written", "at_once"),
    [(2, 10, 3), (2, 3, 3), (2, 2, 2), (None, 10, 10), (1, 0, 0)],
)
def test_environment_needs_space_for_one_checkpoint_more_than_it_keeps(kept, written, at_once):
    environment = dataclasses.replace(preflight().environment, checkpoints_kept=kept, num_checkpoints=written)
    assert environment.checkpoints_at_once == at_once
    assert environment.needed_disk_bytes == at_once * 3 * GIB + GIB


@pytest.mark.parametrize(("trained", "saved"), [(1000, 2000), (100, 400)])
def test_gather_environment_predicts_the_size_of_checkpoints(tmp_path, trained, saved):
    footprint = ModelFootprint(
        num_parameters=1000,
        num_trainable_parameters=trained,
        weight_bytes=2000,
        hidden_size=1,
        num_layers=1,
        vocab_size=1,
    )
    environment = gather_environment(
        DistributedContext(world_size=3),
        footprint,
        output_dir=str(tmp_path / "not" / "there"),
        optimizer_bytes=64.0,
        checkpoints_kept=2,
        num_checkpoints=4,
    )
    assert (environment.final_model_bytes, environment.checkpoint_bytes) == (saved, saved + 64)
    assert environment.num_processes == 3
    assert environment.cpu_count == num_usable_cores()
    assert environment.device_name
    assert environment.versions["python"].startswith("3.")
    assert 0 < environment.free_disk_bytes < 2**60
    assert not (tmp_path / "not").exists()

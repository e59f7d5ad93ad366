"""The whole command on fake devices: each run ends with 0, or with the line that it should end with."""

from __future__ import annotations

import pytest

from tests.gpu_path.processes import TESLA_T4

LORA = {"lora_config.r": 4}
PADDED = {"padding_free": False}
PACKED = {"packing": True, "per_device_train_batch_size": 2}
SEVERAL = {"FAKE_CUDA_DEVICES": "2"}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="flat"),
        pytest.param(PADDED, id="padded"),
        pytest.param(PACKED, id="packed"),
        pytest.param(LORA, id="lora"),
        pytest.param(LORA | PACKED | {"gradient_checkpointing": True}, id="lora, packed, checkpointing"),
        pytest.param({"per_device_train_batch_size": "auto", "per_device_eval_batch_size": "auto"}, id="auto sizes"),
        pytest.param({"full_determinism": True}, id="full_determinism"),
        pytest.param({"tf32": True, "bf16": False}, id="tf32"),
    ],
)
def test_a_run_ends_with_0(run_fake, settings):
    run = run_fake(**settings)
    assert run.status == 0, run.text
    assert "Device: NVIDIA H100 80GB HBM3." in run.text


def test_one_process_uses_one_of_several_devices(run_fake):
    run = run_fake(device=SEVERAL)
    assert run.status == 0, run.text
    assert "2 GPUs on this machine, training on one." in run.text


def test_two_processes_use_two_devices(run_fake):
    run = run_fake(processes=2, device=SEVERAL, ddp_backend="gloo")
    assert run.status == 0, run.text
    assert run.summary["environment"]["data_parallel"] == "ddp"
    assert [len(record["steps"]) for record in run.records] == [3, 3]


@pytest.mark.xfail(strict=True, reason="torch's gloo reads the device's memory as its own when shards are gathered")
def test_two_processes_shard_the_weights(run_fake):
    run = run_fake(processes=2, device=SEVERAL, ddp_backend="gloo", fsdp="{}")
    assert run.status == 0, run.text
    assert run.summary["environment"]["data_parallel"] == "fsdp2"


@pytest.mark.parametrize("settings", [pytest.param({}, id="auto"), pytest.param(PADDED, id="padded")])
def test_a_card_without_bfloat16_trains_in_fp16(run_fake, settings):
    run = run_fake(device=TESLA_T4, **settings)
    assert run.status == 0, run.text
    assert "float16 mixed precision" in run.text


def test_memory_that_runs_out_in_a_step_is_retried_in_smaller_chunks(run_fake):
    run = run_fake(device={"FAKE_CUDA_MEMORY_MIB": "580"}, per_device_train_batch_size=16)
    assert run.status == 0, run.text
    assert "Out of memory at step 1: retrying it with" in run.text


def test_a_run_is_saved_and_resumed_with_sample_answers(run_fake):
    settings = {"save_steps": 2, "sample_prompts": ["Say hello."], "sample_max_new_tokens": 2}
    first = run_fake(max_steps=3, num_train_epochs=None, **settings)
    assert first.status == 0, first.text
    second = run_fake(max_steps=6, num_train_epochs=None, resume_from_checkpoint="auto", **settings)
    assert second.status == 0, second.text
    assert "step 6/6" in second.text
    assert "step 3/6" not in second.text

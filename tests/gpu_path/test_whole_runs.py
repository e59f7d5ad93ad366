"""The whole command on fake devices: each run ends with 0, or with the line that it should end with."""

from __future__ import annotations

import json
import signal
from functools import partial

import pytest

from sft.training.chunk_count import FIRST_WAIT
from tests.gpu_path.processes import TESLA_T4
from tests.support.injected import KilledInSave

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
        pytest.param({"dataloader_num_workers": 2}, id="workers that load rows"),
    ],
)
def test_a_run_ends_with_0(run_fake, settings):
    run = run_fake(**settings)
    assert run.status == 0, run.text
    assert "Device: NVIDIA H100 80GB HBM3." in run.text
    assert "the allocator uses expandable segments" in run.text


def test_one_process_uses_one_of_several_devices(run_fake):
    run = run_fake(device=SEVERAL)
    assert run.status == 0, run.text
    assert "2 GPUs on this machine, training on one." in run.text


def test_two_processes_use_two_devices(run_fake):
    run = run_fake(processes=2, device=SEVERAL, ddp_backend="gloo")
    assert run.status == 0, run.text
    assert run.summary["environment"]["data_parallel"] == "ddp"
    assert [len(record["steps"]) for record in run.records] == [3, 3]


def test_two_processes_shard_the_weights(run_fake):
    run = run_fake(processes=2, device=SEVERAL, ddp_backend="gloo", fsdp="{}")
    assert run.status == 0, run.text
    assert run.summary["environment"]["data_parallel"] == "fsdp2"


@pytest.mark.parametrize(
    "settings",
    [pytest.param({}, id="auto"), pytest.param(PADDED, id="padded"), pytest.param(PACKED, id="packed")],
)
def test_a_card_without_bfloat16_trains_in_fp16(run_fake, settings):
    run = run_fake(device=TESLA_T4, **settings)
    assert run.status == 0, run.text
    assert "float16 mixed precision" in run.text
    if settings != PADDED:
        assert "this GPU has compute capability 7.5, and the kernel for packed rows needs 8.0" in run.text


@pytest.fixture
def run_short_of_memory(run_fake, tmp_path):
    """Runs whose micro-batches of 64 rows take several times the room that is left beside workspaces of 84 MiB."""
    rows = tmp_path / "long_rows.jsonl"
    lines = (json.dumps({"question": f"Number {n}?", "answer": "hello " * (240 + n % 9)}) for n in range(192))
    rows.write_text("\n".join(lines))
    settings = {"train_file": str(rows), "max_seq_length": 512, "per_device_train_batch_size": 64}
    return partial(run_fake, device={"FAKE_CUDA_MEMORY_MIB": "630"}, **settings)


def test_memory_that_runs_out_in_a_step_is_retried_in_smaller_chunks(run_short_of_memory):
    run = run_short_of_memory()
    assert run.status == 0, run.text
    assert "Out of memory at step 1: retrying it with 16 of 64" in run.text


def test_a_run_that_is_killed_after_a_shortage_is_resumed_as_it_was(run_short_of_memory, tmp_path):
    settings = {"max_steps": 6, "num_train_epochs": None, "save_steps": 2, "save_total_limit": "null"}

    def chunks(run, step):
        return json.loads((run.output_dir / f"checkpoint-{step}" / "manifest.json").read_text())["chunks"]

    straight = run_short_of_memory(output_dir=str(tmp_path / "straight"), **settings)
    assert straight.status == 0, straight.text
    killed = run_short_of_memory(fault=KilledInSave(step=4, number=1), **settings)
    assert killed.status == -signal.SIGKILL
    assert chunks(killed, 2) == chunks(straight, 2)
    assert chunks(killed, 2)["next_attempt"] == 1 + FIRST_WAIT
    assert not (killed.output_dir / "checkpoint-4").exists()
    resumed = run_short_of_memory(resume_from_checkpoint="auto", **settings)
    assert resumed.status == 0, resumed.text
    assert "Out of memory" not in resumed.text
    assert [chunks(resumed, step) for step in (4, 6)] == [chunks(straight, step) for step in (4, 6)]
    assert straight.summary["memory_shortages"]["training"] > resumed.summary["memory_shortages"]["training"] == 0


def test_a_run_is_saved_and_resumed_with_sample_answers(run_fake):
    settings = {"save_steps": 2, "sample_prompts": ["Say hello."], "sample_max_new_tokens": 2}
    first = run_fake(max_steps=3, num_train_epochs=None, **settings)
    assert first.status == 0, first.text
    second = run_fake(max_steps=6, num_train_epochs=None, resume_from_checkpoint="auto", **settings)
    assert second.status == 0, second.text
    assert "step 6/6" in second.text
    assert "step 3/6" not in second.text

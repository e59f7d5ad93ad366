"""Processes that the launcher and the check of a GPU start themselves, on two fake devices."""

from __future__ import annotations

import json
import sys

import pytest
import yaml

SEVERAL = {"FAKE_CUDA_DEVICES": "2", "PYTHON": sys.executable}


@pytest.fixture
def settings(model_folder, question_file, tmp_path):
    return {
        "model_name_or_path": model_folder("llama"),
        "train_file": question_file,
        "output_dir": str(tmp_path / "out"),
        "max_seq_length": 64,
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "report_to": "none",
        "sample_prompts": [],
    }


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["./launch_training.sh", "--gpus", "2", "--config"], id="launch_training.sh"),
        pytest.param(
            [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "sft_main.py", "--config_file"],
            id="torchrun",
        ),
    ],
)
def test_two_processes_are_started_on_two_devices(devices, settings, tmp_path, command):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings | {"ddp_backend": "gloo"}))
    run = devices.start([*command, str(config)], device=SEVERAL)
    assert run.returncode == 0, run.stdout + run.stderr
    summary = json.loads((tmp_path / "out" / "run_summary.json").read_text())
    assert summary["environment"]["data_parallel"] == "ddp"
    assert "2 processes = 8 rows per step" in run.stdout + run.stderr


@pytest.mark.parametrize("bits", [4, 8])
def test_adapters_are_trained_on_quantized_weights(devices, settings, tmp_path, bits):
    """In a process of its own: bitsandbytes looks for devices when it is imported, and uses its CUDA library then."""
    settings |= {"lora_config.r": 4, f"quantization_config.load_in_{bits}bit": True}
    arguments = [f"--{name}={value}" for name, value in settings.items()]
    run = devices.start([sys.executable, "-m", "tests.gpu_path.command", str(tmp_path / "record"), *arguments])
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{bits}-bit" in run.stdout + run.stderr
    record = json.loads((tmp_path / "record.0.json").read_text())
    assert record["has_bitsandbytes_cuda"]
    assert len(record["steps"]) == 3


def test_the_check_prints_how_much_communication_is_hidden(devices, tmp_path):
    """Equal losses need numbers: that line fails here."""
    output = tmp_path / "check.json"
    options = ["--only", "several", "--quick", "--seconds", "1000", "--backend", "gloo", "--output", str(output)]
    run = devices.start([sys.executable, "-m", "sft.check_gpu", *options], device=SEVERAL)
    checks = {check["name"]: check for check in json.loads(output.read_text())["checks"]}
    assert list(checks) == ["two processes equal one", "communication is hidden"], run.stdout + run.stderr
    assert "losses differ by nan" in checks["two processes equal one"]["figure"]
    values = checks["communication is hidden"]["values"]
    assert all(values[name] > 0 for name in ("overlapping_seconds", "one_bucket_seconds", "alone_seconds")), checks
    assert "hidden" in run.stdout
    print(run.stdout)

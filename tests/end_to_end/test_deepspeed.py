"""DeepSpeed's ZeRO on two real processes (gloo, on CPU) compared with a single process.

Skipped if DeepSpeed is not installed. `DS_ACCELERATOR=cpu` makes it work without a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.support.checkpoints import as_if_killed, trained
from tests.support.paths import REPOSITORY

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow

STAGES = {
    "2": {"zero_optimization": {"stage": 2}},
    "3": {"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}},
    "example": json.loads((REPOSITORY / "examples/deepspeed_zero3.json").read_text()),
}
SIZES = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}


def run(arguments: list[str]) -> None:
    """One run in new processes: DeepSpeed keeps state of a run for the next one in the same process."""
    done = subprocess.run(
        [sys.executable, "sft_main.py", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def runs(model_folder, question_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deepspeed")
    common = [
        f"--model_name_or_path={model_folder('qwen2')}",
        f"--train_file={question_file}",
        "--max_seq_length=64",
        "--learning_rate=1e-3",
        "--max_steps=4",
        "--logging_steps=1",
        "--report_to=none",
        "--save_steps=2",
        "--save_total_limit=null",
        "--sample_prompts=[]",
        "--use_cpu",
        "--bf16=false",
    ]
    run([*common, "--per_device_train_batch_size=4", f"--output_dir={folder / 'one'}"])
    for name, settings in STAGES.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps({**SIZES, **settings}))
        two = [*common, "--per_device_train_batch_size=2", "--num_gpus=2", f"--deepspeed={path}"]
        run([*two, f"--output_dir={folder / name}"])
        as_if_killed(folder / name, folder / f"{name}-again", 2)
        run([*two, f"--output_dir={folder / name}-again", "--resume_from_checkpoint=auto"])
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_metrics_and_weights_equal_those_of_one_process(runs, stage):
    one, two = runs / "one", runs / stage
    assert [step for step, *_ in trained(two)] == [1, 2, 3, 4]
    for found, expected in zip(trained(two), trained(one), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    expected, found = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_equals_an_uninterrupted_one(runs, stage):
    resumed, uninterrupted = runs / f"{stage}-again", runs / stage
    expected, found = load_file(uninterrupted / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert found.keys() == expected.keys()
    if stage != "example":  # whose sums in main memory are in a different order
        assert trained(resumed) == trained(uninterrupted)
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())
        return
    for step, expected_step in zip(trained(resumed), trained(uninterrupted), strict=True):
        assert step == pytest.approx(expected_step, rel=1e-6)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-7)

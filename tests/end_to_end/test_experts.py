"""Experts through the command: the load-balancing loss and adapters, on one process and on two."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.support.architectures import build_architecture
from tests.support.in_process import run_command
from tests.support.runs_in_turn import Turn, run_in_turn
from tests.support.small_models import build_tokenizer

FILES = {"ddp": "model.safetensors", "adapters": "adapter_model.safetensors", "fsdp": "model.safetensors"}
SPLITS = {
    "ddp": [],
    "adapters": ["--lora_config.r=2", "--gradient_checkpointing=true"],
    "fsdp": ["--fsdp={}"],
}


@pytest.mark.slow
def test_two_processes_train_the_same_balance_as_one(question_file, tmp_path):
    """19 rows, 4 per step: the last step of an epoch is uneven. On two processes, each step has four micro-batches."""
    model = tmp_path / "model"
    build_architecture("mixtral", output_router_logits=True, router_aux_loss_coef=0.1).save_pretrained(model)
    build_tokenizer().save_pretrained(model)
    common = [
        f"--model_name_or_path={model}",
        f"--train_file={question_file}",
        "--max_seq_length=64",
        "--learning_rate=1e-2",
        "--num_train_epochs=1",
        "--logging_steps=1",
        "--report_to=none",
        "--sample_prompts=[]",
        "--use_cpu",
        "--bf16=false",
    ]

    def arguments(kind, processes):
        split = [f"--per_device_train_batch_size={4 if processes == 1 else 1}"]
        split += [f"--gradient_accumulation_steps={processes if processes == 2 else 1}"]
        return [*common, *SPLITS[kind], *split, f"--output_dir={tmp_path / f'{kind}-{processes}'}"]

    assert all(run_command(arguments(kind, 1)) == 0 for kind in SPLITS)
    statuses, output = run_in_turn([Turn(arguments=arguments(kind, 2)) for kind in SPLITS], tmp_path)
    assert statuses == [0, 0, 0], output
    assert output.count("Router loss: 0.1 times the load-balancing loss") == 3
    assert "got no gradient" not in output
    read = {}
    for kind in SPLITS:
        for processes in (1, 2):
            folder = tmp_path / f"{kind}-{processes}"
            events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            balance = [event["router_aux_loss"] for event in events if "router_aux_loss" in event]
            read[kind, processes] = balance, load_file(folder / FILES[kind])
    for kind in SPLITS:
        (one, weights), (two, others) = read[kind, 1], read[kind, 2]
        assert len(one) > 4
        assert two == pytest.approx(one, rel=1e-4), kind
        for name, weight in weights.items():
            torch.testing.assert_close(others[name], weight, rtol=0, atol=2e-4)

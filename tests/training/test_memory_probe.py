"""The memory probe: it has no side effects, and measures full micro-batches."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
import torch

from sft.batching.packing import plan_packs
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import ModelConfig, TrainingConfig
from sft.training.memory_probe import MemoryProbe, crowded_packs, full_packs, longest_rows
from sft.training.row_layout import resolve_layout
from tests.support.small_models import build_model

FLOAT32 = Precision(weights="float32", mixed="no")
CPU = DistributedContext()


def trace_of(model):
    """Everything that a run depends on: weights, buffers, gradients, modes, random numbers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    digest.update(torch.get_rng_state().numpy().tobytes())
    digest.update(repr(np.random.get_state()).encode() + repr(random.getstate()).encode())
    state = [
        (name, module.training, getattr(module, "gradient_checkpointing", None))
        for name, module in model.named_modules()
    ]
    digest.update(repr(state).encode())
    digest.update(repr([weight.grad for weight in model.parameters()]).encode())
    digest.update(str(model.config._attn_implementation).encode())
    return digest.hexdigest()


@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False, "every_n_layers": 2}])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_trial_has_no_side_effects(architecture, checkpointing):
    model = build_model(architecture)
    layout = resolve_layout(
        model, ModelConfig(model_name_or_path="m"), TrainingConfig(), FLOAT32, CPU, pad_token_id=0, max_seq_length=64
    )
    before = trace_of(model)
    probe = MemoryProbe(
        model,
        FLOAT32,
        "cpu",
        layout=layout,
        optimizer="adamw_torch",
        checkpointing=checkpointing,
    )
    rows = [{"input_ids": np.arange(40), "labels": np.arange(40)}] * 3
    with probe.simulated_training_memory():
        trial = probe.train(rows)
        assert any(weight.grad is not None for weight in model.parameters())
        probe.evaluate(rows)
    assert trial.tokens == 120
    assert trial.peak_bytes > 0
    assert trace_of(model) == before


def test_a_trial_that_runs_out_of_memory_has_no_side_effects():
    model = build_model("llama")
    before = trace_of(model)
    probe = MemoryProbe(
        model,
        FLOAT32,
        "cpu",
        layout=None,
        optimizer="adamw_torch",
        checkpointing=None,
    )

    def run_out_of_memory():
        with probe.simulated_training_memory():
            torch.rand(3)
            raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        run_out_of_memory()
    assert trace_of(model) == before


class Rows:
    def __init__(self, lengths=(3, 9, 5)):
        self.lengths = np.array(lengths)

    def __getitem__(self, index):
        return {"input_ids": np.arange(self.lengths[index]) + 10 * index, "labels": np.full(self.lengths[index], -100)}


def test_every_token_of_the_longest_rows_is_supervised():
    rows = longest_rows(Rows(), 2)
    assert [row["input_ids"].tolist() for row in rows] == [list(range(10, 19)), [20, 21, 22, 23, 24]]
    assert all((row["labels"] == row["input_ids"]).all() for row in rows)
    assert [len(row["input_ids"]) for row in longest_rows(Rows(), 5)] == [9, 5, 3, 9, 9]


def test_crowded_packs_have_the_most_documents():
    rows = Rows([16, 16, *[2] * 8, *[5] * 3])
    plan = plan_packs(rows.lengths, 16)
    sizes = sorted((len(pack) for pack in plan.deal(seed=1, epoch=2)), reverse=True)
    for count in (1, 2, len(sizes)):
        packs = crowded_packs(rows, plan, count)
        assert len(packs) == sum(sizes[:count])
        assert sum(len(row["input_ids"]) for row in packs) == 16 * count
    assert len(crowded_packs(rows, plan, len(sizes) + 2)) == sum(sizes) + 2 * sizes[0]


def test_full_packs_are_full():
    assert [len(row["input_ids"]) for row in full_packs(Rows(), 2, capacity=20, max_seq_length=16)] == [16, 4, 16, 4]

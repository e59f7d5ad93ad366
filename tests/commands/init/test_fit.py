"""Method, sequence length and batch size that fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sft.commands.init.findings import DataInfo, MachineInfo, ModelInfo
from sft.commands.init.fit import choose_global_batch_size, choose_max_seq_length, fit_methods, suggest_method
from sft.common.run_records import ModelFootprint

EIGHT_BILLION = ModelFootprint(
    num_parameters=8_030_261_248,
    num_trainable_parameters=8_030_261_248,
    weight_bytes=4 * 8_030_261_248,
    hidden_size=4096,
    num_layers=32,
    vocab_size=128_256,
    intermediate_size=14_336,
    num_attention_heads=32,
    num_lookup_parameters=525_336_576,
)


def test_a_method_is_suggested_by_the_available_memory():
    model = ModelInfo(name="eight", footprint=EIGHT_BILLION, context_length=131_072)
    data = DataInfo(name="x", num_rows=2000, max_tokens=1000)

    def fits(gib: int):
        machine = MachineInfo(device="cuda", name="a GPU", num_gpus=1, memory_bytes=gib * 2**30, cpu_count=8)
        return fit_methods(model, data, machine, 1)

    assert suggest_method(fits(12)) == "qlora"
    assert suggest_method(fits(24)) == "lora"
    assert suggest_method(fits(192)) == "full"
    tight, roomy = fits(24)["lora"], fits(80)["lora"]
    assert tight.fits
    assert tight.gradient_checkpointing
    assert roomy.micro_batch_size >= tight.micro_batch_size
    assert not fits(24)["full"].fits
    for fit in fits(80).values():
        assert not fit.fits or fit.needed_bytes <= 0.9 * 80 * 2**30


def test_the_attention_of_each_row_counts_on_a_gpu():
    """The kernel for packed rows takes some memory for each document in its backward pass."""
    model = ModelInfo(name="eight", footprint=EIGHT_BILLION, context_length=131_072)
    data = DataInfo(name="x", num_rows=2000, max_tokens=128)
    machine = MachineInfo(device="cuda", name="a GPU", num_gpus=1, memory_bytes=80 * 2**30, cpu_count=8)
    fit = fit_methods(model, data, machine, 1)["lora"]
    workspace = 4 * 32 * (128 * fit.micro_batch_size + 128 * fit.micro_batch_size) * (128 + 1)
    without = replace(EIGHT_BILLION, num_attention_heads=0)
    same = fit_methods(replace(model, footprint=without), data, machine, 1)["lora"]
    assert fit.micro_batch_size == same.micro_batch_size == 16
    assert fit.needed_bytes - same.needed_bytes == workspace


def test_choose_max_seq_length_holds_the_longest_row_within_the_positions():
    model = ModelInfo(name="m", context_length=512)
    assert choose_max_seq_length(DataInfo(name="x", max_tokens=109), model) == 128
    assert choose_max_seq_length(DataInfo(name="x", max_tokens=200), model) == 256
    assert choose_max_seq_length(DataInfo(name="x", max_tokens=300), model) == 384
    assert choose_max_seq_length(DataInfo(name="x", max_tokens=5000), model) == 512
    assert choose_max_seq_length(DataInfo(name="x"), model) == 512


@pytest.mark.parametrize(("rows", "gpus", "expected"), [(100, 1, 8), (2000, 1, 16), (2000, 3, 18), (90_000, 8, 32)])
def test_choose_global_batch_size_is_a_multiple_of_the_gpus(rows, gpus, expected):
    assert choose_global_batch_size(DataInfo(name="x", num_rows=rows), gpus) == expected

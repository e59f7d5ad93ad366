"""Which changes are advised where memory does not suffice, in which order, and what they need."""

from __future__ import annotations

import dataclasses

import pytest

from sft.batching.advice import advise, with_4bit_weights, with_adapters
from sft.batching.memory import MemoryFacts, estimate_memory
from sft.common.run_records import ModelFootprint

GIB = 2**30
# A 7B model's shape, all weights trained in float32 under bf16.
FACTS = MemoryFacts(
    footprint=ModelFootprint(
        num_parameters=7_000_000_000,
        num_trainable_parameters=7_000_000_000,
        weight_bytes=28_000_000_000,
        hidden_size=4096,
        num_layers=32,
        vocab_size=32000,
        intermediate_size=11008,
        num_attention_heads=32,
    ),
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    tokens=8192,
    longest_row=2048,
    weights="float32",
    mixed="bf16",
    optimizer="adamw_torch_fused",
    gradient_checkpointing=False,
    device="cuda:0",
    logits_chunk_bytes=2**28,
)


def advice_of(facts, gib):
    return [(each.change, round(each.needed_bytes / GIB, 1), each.fits) for each in advise(facts, int(gib * GIB))]


def test_advise_returns_nothing_where_the_run_fits():
    assert estimate_memory(FACTS).total_bytes > 170 * GIB
    assert advise(FACTS, 300 * GIB) == ()


def test_advise_lists_the_cheapest_first():
    assert advice_of(FACTS, 145) == [
        ("per_device_train_batch_size: 1, gradient_accumulation_steps: 8", 132.9, True),
        ("gradient_checkpointing: true", 124.8, True),
        ("optim: adamw_bnb_8bit", 135.5, True),
        ("lora_config (r: 16, all-linear)", 56.5, True),
        ("lora_config and quantization_config (load_in_4bit)", 49.5, True),
    ]


def test_advise_combines_a_smaller_batch_and_checkpointing_where_neither_is_enough():
    both = "per_device_train_batch_size: 2, gradient_accumulation_steps: 4, gradient_checkpointing: true"
    assert advice_of(FACTS, 122)[0] == (both, 121.9, True)


def test_advise_offers_adapters_where_training_all_weights_does_not_fit():
    assert advice_of(FACTS, 21.6) == [
        ("lora_config (r: 16, all-linear), gradient_checkpointing: true", 18.3, True),
        (
            "lora_config and quantization_config (load_in_4bit), per_device_train_batch_size: 1, "
            "gradient_accumulation_steps: 8",
            18.3,
            True,
        ),
    ]


def test_advise_keeps_the_rows_of_a_step():
    odd = dataclasses.replace(FACTS, per_device_train_batch_size=6, tokens=6 * 2048)
    assert advice_of(odd, 165)[0][0] == "per_device_train_batch_size: 3, gradient_accumulation_steps: 4"
    assert advice_of(odd, 150)[0][0] == "per_device_train_batch_size: 2, gradient_accumulation_steps: 6"


def test_advise_shortens_rows_only_as_a_last_resort():
    (only,) = advise(FACTS, int(8.2 * GIB))
    assert only.change == (
        "lora_config (r: 16, all-linear), quantization_config (load_in_4bit), per_device_train_batch_size: 1, "
        "gradient_accumulation_steps: 8, gradient_checkpointing: true, max_seq_length: 1088"
    )
    assert only.fits
    assert only.needed_bytes <= 8.2 * GIB


def test_advise_names_the_smallest_variant_where_nothing_fits():
    (only,) = advise(FACTS, GIB)
    assert not only.fits
    assert only.change.startswith("lora_config (r: 16, all-linear), quantization_config (load_in_4bit)")
    assert only.needed_bytes > GIB


def test_advise_does_not_change_the_row_count_of_batches_filled_by_tokens():
    by_tokens = dataclasses.replace(FACTS, per_device_train_batch_size=0)
    assert not any("per_device" in each.change for each in advise(by_tokens, 145 * GIB))


def test_with_adapters_counts_them_from_the_shape():
    lora = with_adapters(FACTS).footprint
    expected = 32 * 16 * (8 * 4096 + 3 * (4096 + 11008))
    assert lora.num_trainable_parameters == expected == 39_976_960
    assert lora.weight_bytes == 14_000_000_000 + 4 * expected  # 16 bits on a GPU
    on_cpu = with_adapters(dataclasses.replace(FACTS, device="cpu"))
    assert (on_cpu.weights, on_cpu.footprint.weight_bytes) == ("float32", 28_000_000_000 + 4 * expected)


@pytest.mark.parametrize(("mixed", "expert_bytes"), [("bf16", 2), ("no", 4)])
def test_with_4bit_weights_leaves_stacked_experts_as_they_are(mixed, expert_bytes):
    """90 % of the parameters: 12.6 GB in 16 bits, where 4 bits would be 3.15."""
    stacked = FACTS.footprint.num_parameters * 9 // 10
    given = dataclasses.replace(FACTS.footprint, num_stacked_parameters=stacked, stacked_rank_parameters=1000)
    facts = with_adapters(dataclasses.replace(FACTS, mixed=mixed, footprint=given))
    assert facts.footprint.adapted_stack_bytes == 2 * stacked
    assert facts.footprint.num_trainable_parameters == 39_976_960 + 16 * 1000
    size = with_4bit_weights(facts).footprint
    assert size.adapted_stack_bytes == expert_bytes * stacked
    others = size.num_parameters - size.num_4bit_parameters - stacked
    assert size.weight_bytes == expert_bytes * stacked + 4 * others + size.num_4bit_parameters // 2
    assert size.num_4bit_parameters < given.num_parameters - stacked


def test_with_4bit_weights_does_not_quantize_embeddings():
    size = with_4bit_weights(with_adapters(FACTS)).footprint
    assert size.num_4bit_parameters == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    others = size.num_parameters - size.num_4bit_parameters
    assert size.weight_bytes == 4 * others + size.num_4bit_parameters // 2

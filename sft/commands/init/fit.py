"""Estimates whether full fine-tuning, LoRA and QLoRA fit into memory, and chooses sequence length and batch size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from sft.batching.advice import with_4bit_weights, with_adapters
from sft.batching.memory import MemoryFacts, estimate_memory
from sft.commands.init.findings import METHODS, DataInfo, MachineInfo, ModelInfo
from sft.common.run_records import ModelFootprint
from sft.modeling.supervised_loss import chunk_bytes

_MEMORY_SHARE = 0.9
_MAX_LENGTH = 8192
"""Tokens. Longer rows are dropped unless the user raises `max_seq_length`."""
_LENGTH_IF_UNKNOWN = 1024
"""Tokens, for data that is not inspected."""
_CPU_PROCESS_BYTES = 500 * 2**20
"""A process with its libraries, without a model (measured: benchmarks/RESULTS.md)."""
_SMALL_BATCH = 4
"""Micro-batch size below which gradient checkpointing with a larger micro-batch uses a GPU better."""
_DEFAULT_OPTIMIZER = "adamw_torch_fused"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """Settings with which a method fits into the memory of one device, or comes closest to it."""

    method: str
    micro_batch_size: int
    """Rows; 0 if the size of the model or the memory is unknown."""
    gradient_checkpointing: bool = False
    optimizer: str = _DEFAULT_OPTIMIZER
    needed_bytes: int = 0
    """Estimated memory on each device; 0 if the size of the model or the memory is unknown."""
    fits: bool = True


def choose_max_seq_length(data: DataInfo, model: ModelInfo) -> int:
    """Return a `max_seq_length` for the longest row, within the model's context length and a limit for memory."""
    limit = min(_MAX_LENGTH, model.context_length or _MAX_LENGTH)
    if data.max_tokens is None:
        return min(_LENGTH_IF_UNKNOWN, limit)
    multiple = 128 if data.max_tokens <= 1024 else 512
    return min(max(math.ceil(data.max_tokens * 1.1 / multiple) * multiple, 128), limit)


def choose_global_batch_size(data: DataInfo, num_gpus: int) -> int:
    """Return a `global_batch_size`, a multiple of the GPUs: small for few rows, so that there are enough steps."""
    wanted = 8 if 0 < data.num_rows < 500 else 16 if data.num_rows < 5000 else 32
    return math.ceil(wanted / num_gpus) * num_gpus


def fit_methods(model: ModelInfo, data: DataInfo, machine: MachineInfo, num_gpus: int) -> dict[str, Fit]:
    """Return a fit for each method."""
    if model.footprint is None or machine.memory_bytes is None:
        return {method: Fit(method=method, micro_batch_size=0) for method in METHODS}
    return {method: _fit(method, model.footprint, model, data, machine, num_gpus) for method in METHODS}


def suggest_method(fits: dict[str, Fit]) -> str:
    """Return full fine-tuning if it fits with the default optimizer, else LoRA if it fits, else QLoRA."""
    if not fits["full"].needed_bytes:
        return "lora"
    if fits["full"].fits and fits["full"].optimizer == _DEFAULT_OPTIMIZER:
        return "full"
    return "lora" if fits["lora"].fits else "qlora"


def _fit(
    method: str, footprint: ModelFootprint, model: ModelInfo, data: DataInfo, machine: MachineInfo, num_gpus: int
) -> Fit:
    max_seq_length = choose_max_seq_length(data, model)
    max_tokens = min(data.max_tokens or max_seq_length, max_seq_length)
    on_gpu = machine.device == "cuda"
    processes_per_device = 1 if on_gpu else num_gpus
    budget = int(_MEMORY_SHARE * (machine.memory_bytes or 0)) // processes_per_device
    base = MemoryFacts(
        footprint=footprint,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        tokens=max_tokens,
        longest_row=max_tokens,
        weights="float32",
        mixed="bf16" if on_gpu else "no",
        optimizer=_DEFAULT_OPTIMIZER,
        gradient_checkpointing=False,
        device=machine.device,
        logits_chunk_bytes=chunk_bytes(machine.device, machine.memory_bytes),
        world_size=num_gpus,
        process_bytes=0 if on_gpu else _CPU_PROCESS_BYTES,
    )
    if method != "full":
        base = with_adapters(base)
    if method == "qlora":
        base = with_4bit_weights(base)
    per_device = choose_global_batch_size(data, num_gpus) // num_gpus
    sizes = [rows for rows in range(min(per_device, 16 if on_gpu else 8), 0, -1) if per_device % rows == 0]
    variants = list(_variants(base, sizes, method))
    for facts in variants:
        if estimate_memory(facts).total_bytes <= budget:
            return _as_fit(method, facts, fits=True)
    return _as_fit(method, min(variants, key=lambda each: estimate_memory(each).total_bytes), fits=False)


def _variants(base: MemoryFacts, sizes: list[int], method: str) -> Iterator[MemoryFacts]:
    """Yield variants from the fastest to the smallest.

    Large micro-batches come first, then gradient checkpointing, then small micro-batches, then an 8-bit optimizer.
    """
    checkpointed = replace(base, gradient_checkpointing=True)
    large_sizes = [rows for rows in sizes if rows >= min(_SMALL_BATCH, max(sizes))]
    tried = [(base, large_sizes), (checkpointed, large_sizes), (checkpointed, sizes)]
    if method == "full" and base.device == "cuda":
        tried.append((replace(checkpointed, optimizer="adamw_bnb_8bit"), sizes))
    for facts, sizes_tried in tried:
        for rows in sizes_tried:
            yield replace(
                facts,
                per_device_train_batch_size=rows,
                tokens=rows * facts.longest_row,
                documents=rows if facts.device == "cuda" else 0,
            )


def _as_fit(method: str, facts: MemoryFacts, *, fits: bool) -> Fit:
    return Fit(
        method=method,
        micro_batch_size=facts.per_device_train_batch_size,
        gradient_checkpointing=facts.gradient_checkpointing,
        optimizer=facts.optimizer,
        needed_bytes=estimate_memory(facts).total_bytes,
        fits=fits,
    )

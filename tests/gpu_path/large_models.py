"""Models of real sizes on a fake device: a step of training, and the memory that it takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import distributed

from sft.batching.layout import FlatCollator, model_inputs
from sft.batching.memory import MemoryFacts, estimate_memory
from sft.batching.transfer import to_device
from sft.modeling.document_attention import NAME, isolated_documents
from sft.modeling.footprint import footprint
from sft.modeling.gradient_checkpointing import gradient_checkpointing_enabled
from sft.modeling.input_casts import leave_casts_to_autocast
from sft.modeling.output_layer import OutputLayer
from sft.modeling.sharding import reshard_weights, shard_weights

_VOCABULARY = {"vocab_size": 128256, "max_position_embeddings": 8192}
_SIZES = {
    # Llama 3.2 1B and Llama 3.1 8B
    "1.2b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
_ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_GIB = 2**30


def measure_memory(
    size: str, *, rows: int, row_tokens: int, lora: bool = False, checkpointing: bool = False, ranks: int = 1
) -> dict[str, Any]:
    """GiB that are predicted, and at most reserved and allocated, in three steps with two micro-batches each.

    Args:
        size: a key of `_SIZES`.
        rows: of a micro-batch, laid end to end.
        row_tokens: tokens of each row.
        lora: adapters of rank 16 on frozen bfloat16 weights; otherwise all weights are trained, in float32.
        checkpointing: whether activations are recomputed.
        ranks: processes of a fake group, over which FSDP shards the weights; this is the first.
    """
    model = _build(size, lora=lora)
    size_of_model = footprint(model)  # before it is sharded
    model = _on_device(model, ranks)
    leave_casts_to_autocast(model)  # as a run does
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    output = OutputLayer(model, model.get_output_embeddings())
    torch.cuda.reset_peak_memory_stats()
    _train(model, output, trained, rows=rows, row_tokens=row_tokens, checkpointing=checkpointing, is_sharded=ranks > 1)
    facts = MemoryFacts(
        footprint=size_of_model,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=2,
        tokens=rows * row_tokens,
        longest_row=row_tokens,
        weights="bfloat16" if lora else "float32",
        mixed="bf16",
        optimizer="adamw_torch_fused",
        gradient_checkpointing=checkpointing,
        device="cuda:0",
        logits_chunk_bytes=output.chunk_bytes,
        world_size=ranks,
        sharded_over=ranks,
    )
    return {
        "predicted": estimate_memory(facts).total_bytes / _GIB,
        "reserved": torch.cuda.max_memory_reserved() / _GIB,
        "allocated": torch.cuda.max_memory_allocated() / _GIB,
    }


def _build(size: str, *, lora: bool) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model: Any = LlamaForCausalLM(LlamaConfig(**_SIZES[size], **_VOCABULARY))
        if lora:
            model = get_peft_model(model.to(torch.bfloat16), LoraConfig(r=16, target_modules=_ALL_LINEAR))
            model.enable_input_require_grads()
    return model


def _on_device(model: Any, ranks: int) -> Any:
    if ranks > 1:
        open_fake_group(ranks)
        shard_weights(model, "cuda", ranks, weights=torch.float32, mixed="bf16", reshard_after_forward=True)
    model.to_empty(device="cuda")
    model.tie_weights()
    return model


def open_fake_group(ranks: int) -> None:
    """A group whose collective operations do nothing; this process is the first."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.cuda.set_device(0)
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)


def _train(
    model: Any,
    output: OutputLayer,
    trained: list[torch.nn.Parameter],
    *,
    rows: int,
    row_tokens: int,
    checkpointing: bool,
    is_sharded: bool,
) -> None:
    ids = np.arange(row_tokens) % 1000
    batch = to_device(FlatCollator(0)([{"input_ids": ids, "labels": ids}] * rows), torch.device("cuda:0"))
    if is_sharded:
        reshard_weights(model)
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    model.train()
    options = {"use_reentrant": False} if checkpointing else None
    with isolated_documents(model, NAME), gradient_checkpointing_enabled(model, options):
        for _ in range(3):
            for _ in range(2):
                with torch.autocast("cuda", torch.bfloat16):
                    loss = output.loss_sum(model, model_inputs(batch), batch)
                (loss / len(batch["targets"])).backward()
                del loss
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()

"""Tiny random models of the architectures that people train, with the sizes at which each shows what is special in it.

Windows and chunks are shorter than the longest row of `tests.support.layouts.LENGTHS`, and every kind of layer occurs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.support.small_models import POSITIONS, SIZES, VOCABULARY

WINDOW = 8
_HEADS = {"head_dim": 8}
_EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
_SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_DEEPSEEK = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
_MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
GATED_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    **_HEADS,
}
_GEMMA3N = {
    **_HEADS,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "num_hidden_layers": 4,
    "intermediate_size": 64,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": WINDOW,
    "num_kv_shared_layers": 2,
    "laurel_rank": 4,
    "altup_num_inputs": 2,
    "activation_sparsity_pattern": [0.0] * 4,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A tiny model, and what the program does with it."""

    family: str
    """For readers of `docs/architectures.md`."""
    model: str
    """The model's class in transformers; its configuration is `config`."""
    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    feature: str
    """What its rows need beyond plain attention."""


def _made(family: str, name: str, feature: str, *, config: str | None = None, **settings: Any) -> Architecture:
    return Architecture(
        family=family, model=f"{name}ForCausalLM", config=config or f"{name}Config", settings=settings, feature=feature
    )


ARCHITECTURES: dict[str, Architecture] = {
    "llama": _made("Llama 2 and 3", "Llama", "none"),
    "qwen2": _made("Qwen 2 and 2.5", "Qwen2", "none", tie_word_embeddings=True),
    "qwen3": _made("Qwen 3", "Qwen3", "none", **_HEADS),
    "qwen3_moe": _made(
        "Qwen 3 MoE", "Qwen3Moe", "experts", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, **_HEADS
    ),
    "gpt2": Architecture(
        family="GPT-2",
        model="GPT2LMHeadModel",
        config="GPT2Config",
        settings={
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": POSITIONS,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
        },
        feature="learned positions",
    ),
    "mixtral": _made("Mixtral", "Mixtral", "experts", **_EXPERTS),
    "mistral": _made("Mistral", "Mistral", "sliding window", sliding_window=WINDOW),
    "phi3": _made("Phi-3 and Phi-4", "Phi3", "sliding window", sliding_window=WINDOW),
    "phi3_longrope": _made(
        "Phi-3 with LongRoPE",
        "Phi3",
        "rotary positions by the length of the row",
        original_max_position_embeddings=16,
        rope_parameters={
            "rope_type": "longrope",
            "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4,
            "factor": 8.0,
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "phimoe": _made("Phi-3.5 MoE", "Phimoe", "sliding window, experts", sliding_window=WINDOW, **_EXPERTS),
    "gemma2": _made("Gemma 2", "Gemma2", "sliding window, capped scores", **_HEADS, **_SLIDING),
    "gemma3": _made("Gemma 3", "Gemma3", "sliding window", config="Gemma3TextConfig", **_HEADS, **_SLIDING),
    "gemma3n": _made(
        "Gemma 3n", "Gemma3n", "sliding window, shared keys and values", config="Gemma3nTextConfig", **_GEMMA3N
    ),
    "gemma4": _made(
        "Gemma 4",
        "Gemma4",
        "sliding window, heads of two sizes",
        config="Gemma4TextConfig",
        **_HEADS,
        **_SLIDING,
        global_head_dim=16,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=8,
    ),
    "gpt_oss": _made("gpt-oss", "GptOss", "sliding window, attention sinks, experts", **_HEADS, **_EXPERTS, **_SLIDING),
    "llama4": _made(
        "Llama 4",
        "Llama4",
        "attention in chunks, experts",
        config="Llama4TextConfig",
        **_HEADS,
        num_local_experts=2,
        intermediate_size_mlp=64,
        attention_chunk_size=WINDOW,
        layer_types=["chunked_attention", "full_attention"],
        no_rope_layers=[1, 0],
    ),
    "cohere2": _made("Command R7B (Cohere 2)", "Cohere2", "sliding window", **_SLIDING),
    "olmo3": _made("Olmo 3", "Olmo3", "sliding window", **_SLIDING),
    "smollm3": _made("SmolLM3", "SmolLM3", "layers without positions", no_rope_layers=[1, 0]),
    "deepseek_v3": _made("DeepSeek-V3", "DeepseekV3", "values of another head size, experts", **_DEEPSEEK),
    "glm4_moe": _made(
        "GLM-4.5 and 4.6",
        "Glm4Moe",
        "experts",
        **_HEADS,
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
    ),
    "lfm2": _made("LFM2", "Lfm2", "short convolutions", layer_types=["conv", "full_attention"]),
    "mamba2": _made(
        "Mamba 2", "Mamba2", "state space", num_heads=8, head_dim=8, state_size=8, n_groups=1, chunk_size=16, expand=2
    ),
    "falcon_h1": _made(
        "Falcon-H1", "FalconH1", "state space beside attention", **_HEADS, **_MAMBA, mamba_d_ssm=64, mamba_expand=2
    ),
    "granite_hybrid": _made(
        "Granite 4 hybrid",
        "GraniteMoeHybrid",
        "state space, experts",
        **_MAMBA,
        mamba_expand=2,
        layer_types=["mamba", "attention"],
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=64,
    ),
    "nemotron_h": _made(
        "Nemotron-H",
        "NemotronH",
        "state space",
        num_hidden_layers=3,
        layers_block_type=["mamba", "attention", "mlp"],
        head_dim=8,
        mamba_num_heads=8,
        mamba_head_dim=8,
        ssm_state_size=8,
        n_groups=1,
        chunk_size=16,
    ),
    "qwen3_next": _made(
        "Qwen3-Next",
        "Qwen3Next",
        "gated delta net, experts",
        **GATED_DELTA,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "qwen3_5": _made("Qwen3.5", "Qwen3_5", "gated delta net", config="Qwen3_5TextConfig", **GATED_DELTA),
}
"""By the name that tests use."""


def build_architecture(name: str, **changed: Any) -> Any:
    """The random model in float32, the same numbers each time; in evaluation mode.

    Args:
        name: a key of `ARCHITECTURES`.
        changed: settings in place of its own.
    """
    import torch
    import transformers

    made = ARCHITECTURES[name]
    settings = {**SIZES, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0, **made.settings, **changed}
    config_class = getattr(transformers, made.config, None)
    if config_class is None:
        raise LookupError(f"transformers {transformers.__version__} has no {made.config}")
    torch.manual_seed(0)
    config = config_class(**settings)
    return getattr(transformers, made.model)(config).float().eval()


def loss_and_gradients_of_rows_alone(model: Any, rows: Any) -> Any:
    """As `tests.support.layouts.padded_loss_and_gradients`, with each row in a batch of its own."""
    import torch

    from tests.support.layouts import padded_loss_and_gradients

    counts = [int((row["labels"][1:] != -100).sum()) for row in rows]
    loss, gradients = torch.zeros(()), {}
    for row, count in zip(rows, counts, strict=True):
        if count:
            share = count / sum(counts)
            of_row, found = padded_loss_and_gradients(model, [row])
            loss = loss + share * of_row
            gradients = {name: gradients.get(name, 0) + share * gradient for name, gradient in found.items()}
    return loss, gradients

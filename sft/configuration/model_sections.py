"""Sections about the model: base model, LoRA adapters, quantization."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sft.configuration.rules import Names, PathText, PositiveFloat, PositiveInt, Share


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The model and its tokenizer."""

    model_name_or_path: PathText
    """The model to fine-tune: a local folder or a model id on the Hugging Face Hub. Required."""

    model_revision: str | None = None
    """Branch, tag or commit of the model's repository on the Hub. Default: its main branch."""

    gguf_file: str | None = None
    """Name of a GGUF file in that folder (or Hub repository) to load the weights from. They are dequantized, trained,
    and saved as safetensors."""

    tokenizer_name_or_path: PathText | None = None
    """Load the tokenizer from this folder or Hub id instead of from the model's."""

    tokenizer_revision: str | None = None
    """Branch, tag or commit of the tokenizer's repository on the Hub. Default: `model_revision` if the tokenizer is the
    model's, otherwise the main branch."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the weights in memory. auto: float32 when all weights are trained (`bf16` and `fp16` add mixed
    precision); with LoRA, the frozen weights are bfloat16 on GPUs that support it, float16 on other GPUs, float32 on
    CPU."""

    dequantize: bool = False
    """De-quantize weights that are quantized in their files (MXFP4, FP8, compressed-tensors, bitsandbytes) while they
    are loaded, to train on them in `dtype`."""

    attn_implementation: str | None = None
    """Attention implementation: eager, sdpa, flash_attention_2, ... Default: chosen by transformers for the model."""

    trust_remote_code: bool = False
    """Allow Python code from the model's repository to run. Enable only for sources that you trust."""

    chat_template: str | None = None
    """Override the tokenizer's chat template: the name of a bundled template (chatml, plain), a file, or Jinja text.
    Default: the tokenizer's own template; if it has none, `plain` is used for conversations."""

    @property
    def revision_of_tokenizer(self) -> str | None:
        """Revision from which the tokenizer is loaded; None for the main branch, or a folder."""
        own = self.model_revision if self.tokenizer_name_or_path is None else None
        return self.tokenizer_revision or own


@dataclass(frozen=True, kw_only=True, slots=True)
class LoRAConfig:
    """`lora_config`: train low-rank adapters (LoRA) instead of all weights."""

    r: PositiveInt = 16
    """Rank of the adapters."""

    lora_alpha: PositiveFloat = 32.0
    """Scaling: the adapter's output is multiplied by lora_alpha / r."""

    target_modules: Names = field(default_factory=lambda: ["all-linear"])
    """Layers that get an adapter: a list of module name suffixes, or all-linear."""

    target_parameters: Names | None = None
    """Single parameters that get an adapter, by name suffixes, such as experts that are stacked in one parameter. Null:
    with all-linear all stacked experts, else none. []: none."""

    lora_dropout: Share = 0.0
    """Dropout probability on the adapter's input."""

    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained."""

    task_type: Literal["CAUSAL_LM"] = "CAUSAL_LM"
    """PEFT task type. Only CAUSAL_LM is supported."""

    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) (rsLoRA), which is more stable at high ranks."""

    use_dora: bool = False
    """Use weight-decomposed adapters (DoRA): slower, sometimes better at low ranks."""

    modules_to_save: Names | None = None
    """Additional layers that are fully trained and saved, e.g. [embed_tokens, lm_head] for new tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizationConfig:
    """`quantization_config`: load the frozen weights in 4 or 8 bits (bitsandbytes). Requires `lora_config`."""

    load_in_4bit: bool = False
    """Load the frozen weights in 4 bits (QLoRA)."""

    load_in_8bit: bool = False
    """Load the frozen weights in 8 bits."""

    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """4-bit data type."""

    bnb_4bit_compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type for computing with 4-bit weights. auto: the same as for the unquantized weights (see `dtype`)."""

    bnb_4bit_use_double_quant: bool = True
    """Quantize the quantization constants too, which saves about 0.4 bits per parameter."""

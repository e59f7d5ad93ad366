"""Makes the full model, writes it, and verifies it against the model that was trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sft.commands.export.verification import (
    Difference,
    check_difference,
    check_weights,
    compare_logits,
    compute_logits,
    hash_weights,
    max_merging_difference,
    max_rounding_difference,
)
from sft.commands.model_loading import (
    check_vocabulary,
    load_saved_adapters,
    load_saved_model,
    load_saved_tokenizer,
)
from sft.commands.saved_models import SavedModel
from sft.common.errors import ModelError
from sft.configuration.schema import QuantizationConfig
from sft.modeling.merging import merge_adapters
from sft.modeling.quantization import dequantize
from sft.modeling.saving import save_final_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("sft.export")
_SUMMATION_ORDER = "the order of summation"


@dataclass(frozen=True, kw_only=True, slots=True)
class FullModel:
    """A model without adapters, with the logits that it has to reproduce."""

    model: Any
    reference: torch.Tensor
    """Logits of the model that was trained, `[positions, V]`."""
    remarks: list[str]
    """How it was made, in sentences."""


def build_full_model(
    saved: SavedModel,
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Sequence[int]],
    quantization: QuantizationConfig | None,
    device: str,
) -> FullModel:
    """Load a model in float32, merge its adapters, and compare the result with the model that was trained.

    QLoRA adapters were trained on the values of the base model's 4-bit weights and compensate for their errors: merged
    into the base model in full precision they would give a different model. So they are merged into the de-quantized
    base model.

    Args:
        saved: the model.
        tokenizer: its tokenizer.
        rows: token ids of the texts to compare logits on.
        quantization: of the base model in training.
        device: where to compute.

    Raises:
        ModelError: if the logits differ by more than rounding explains.
    """
    model: Any = load_saved_model(saved, dtype="float32", device=device, quantization=quantization)
    check_vocabulary(model, tokenizer, saved.name_or_path)
    reference = compute_logits(model, rows)
    base: Any = model.get_base_model() if saved.is_adapters else model
    is_quantized = getattr(base, "hf_quantizer", None) is not None
    is_8bit = bool(getattr(base, "is_loaded_in_8bit", False))
    if not saved.is_adapters and not is_quantized:
        return FullModel(model=model, reference=reference, remarks=[])
    if is_quantized and saved.is_adapters:
        del model, base  # merging in place would quantize the result again
        base_alone = SavedModel(name_or_path=saved.weights, trust_remote_code=saved.trust_remote_code)
        base = load_saved_model(base_alone, dtype="float32", device=device, quantization=quantization)
        model = load_saved_adapters(dequantize(base), saved)
    elif is_quantized:
        model = dequantize(base)
    if saved.is_adapters:
        model = merge_adapters(model)
    logits = compute_logits(model, rows)
    difference = compare_logits(logits, reference)
    allowed = max_merging_difference(model, eight_bit_base=is_8bit)
    description = _describe_result(saved, num_bits=0 if not is_quantized else 8 if is_8bit else 4)
    check_difference(difference, allowed, description)
    remarks = [f"{description}: {_describe_difference(difference, allowed, _SUMMATION_ORDER)}"]
    logger.info(remarks[0])
    # With 8-bit weights, activations are rounded as well, which does not concern the weights that are written.
    return FullModel(model=model, reference=logits if is_8bit else reference, remarks=remarks)


def _describe_result(saved: SavedModel, *, num_bits: int) -> str:
    """Describe how a full model was made from adapters or from quantized weights (`num_bits`; 0 if not quantized)."""
    if not saved.is_adapters:
        return f"{saved.name_or_path}, de-quantized"
    description = f"{saved.name_or_path}, merged in float32 into {saved.base}"
    if num_bits:
        description += f", de-quantized from {num_bits} bits as the adapters were trained on it"
    return description


def write_verified(
    full: FullModel,
    tokenizer: "PreTrainedTokenizerBase",
    rows: list[list[int]],
    folder: Path,
    *,
    dtype: str,
    device: str,
) -> str:
    """Write a model, load it again, and compare: weights bit by bit, logits within rounding errors.

    Args:
        full: the model; its memory is released.
        tokenizer: its tokenizer.
        rows: token ids of the texts to compare logits on.
        folder: where to write.
        dtype: data type to write the weights in.
        device: where to compute.

    Returns:
        The result of the comparison, in a sentence.

    Raises:
        ModelError: if weights, tokenizer or logits differ.
    """
    torch_dtype = getattr(torch, dtype)
    model = full.model.to(torch_dtype)
    if dtype == "float16" and not all(weight.isfinite().all() for weight in model.parameters()):
        raise ModelError("Some weights are too large for float16. Use --dtype bfloat16. Nothing was written.")
    model.config.dtype = torch_dtype
    hashes = hash_weights(model, torch_dtype)
    save_final_model(model, tokenizer, str(folder))
    full.model.to("meta")  # makes room for the model that is loaded
    written = SavedModel(name_or_path=str(folder))
    _check_tokenizer(written, tokenizer, rows)
    loaded = load_saved_model(written, dtype="float32", device=device)
    check_weights(hash_weights(loaded, torch_dtype), hashes, str(folder))
    difference = compare_logits(compute_logits(loaded, rows), full.reference)
    allowed = max_rounding_difference(loaded, dtype)
    check_difference(difference, allowed, f"Written in {dtype} and loaded again")
    reason = f"rounding to {dtype}" if dtype != "float32" else _SUMMATION_ORDER
    return (
        f"Written in {dtype} and loaded again: all weights are identical; "
        f"{_describe_difference(difference, allowed, reason)}"
    )


def _check_tokenizer(written: SavedModel, tokenizer: "PreTrainedTokenizerBase", rows: list[list[int]]) -> None:
    """Check that a tokenizer that was saved gives the same tokens as before.

    Raises:
        ModelError: if it does not.
    """
    loaded = load_saved_tokenizer(written)
    texts = [tokenizer.decode(row) for row in rows]
    has_same_tokens = all(
        loaded(text, add_special_tokens=False)["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in texts
    )
    if not has_same_tokens or loaded.chat_template != tokenizer.chat_template:
        raise ModelError(
            "The tokenizer was saved and loaded again, and then gave other tokens for the same text. Nothing was "
            "written."
        )


def _describe_difference(difference: Difference, allowed: float, reason: str) -> str:
    return (
        f"relative difference of the logits {difference.relative_rms:.2g} ({reason} explains up to {allowed:.2g}), "
        f"largest difference {difference.largest:.2g}; the most likely token is the same at "
        f"{difference.num_same_argmax} of {difference.num_positions} positions."
    )

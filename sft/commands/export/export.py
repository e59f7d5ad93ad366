"""The recipe: load as trained, merge, compare, write, read back, compare, describe, and only then name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sft.checkpointing.checkpoints import list_checkpoints
from sft.commands.export.comparing import (
    Difference,
    allowed_by_order,
    allowed_by_rounding,
    check_difference,
    check_weights,
    compare_logits,
    fingerprints,
    logits_of,
)
from sft.commands.export.gguf import convert_to_gguf, find_converter
from sft.commands.export.hub import check_repository, upload
from sft.commands.export.model_card import CardFacts, model_card
from sft.commands.export.options import ExportOptions
from sft.commands.export.texts import comparison_rows
from sft.commands.export.writing import resolve_output, written_aside
from sft.commands.saved_models import (
    SavedModel,
    check_vocabulary,
    find_saved_model,
    load_saved_model,
    load_saved_tokenizer,
    quantization_of_training,
    resolve_device,
    saved_dtype,
    with_saved_adapters,
)
from sft.common.errors import ConfigError, ModelError
from sft.common.text import size
from sft.configuration.schema import QuantizationConfig
from sft.modeling.fitting import set_generation_defaults
from sft.modeling.merging import merge_adapters
from sft.modeling.quantization import dequantize
from sft.modeling.saving import save_final_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("sft.export")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Whole:
    """A model without adapters, and what it has to be like."""

    model: Any
    reference: torch.Tensor
    """Logits of what was trained, `[positions, V]`."""
    remarks: list[str]
    """How it came about, in sentences."""


def export(options: ExportOptions) -> Path:
    """Exports a model; returns its folder, which holds all of it or is not there.

    Raises:
        UserError: if it cannot be exported, or is not what was trained.
    """
    converter = find_converter(options.gguf_converter) if options.gguf or options.gguf_converter else None
    if options.push_to_hub is not None:
        check_repository(options.push_to_hub)
    saved = find_saved_model(options.model, base=options.base, trust_remote_code=options.trust_remote_code)
    _check_merge(saved, options)
    output = resolve_output(options.output, options.model, merges=saved.is_adapters)
    device = resolve_device(options.device)
    dtype = saved_dtype(saved) if options.dtype == "auto" else options.dtype
    tokenizer = load_saved_tokenizer(saved)
    rows = comparison_rows(saved.record, tokenizer)
    whole = _whole_model(saved, tokenizer, rows, _quantization(saved, options), device)
    if saved.is_adapters and not Path(saved.place, "generation_config.json").is_file():
        set_generation_defaults(whole.model, tokenizer, is_chat=bool(tokenizer.chat_template))
    with written_aside(output) as aside:
        remark = _write_and_read_back(whole, tokenizer, rows, aside, dtype, device)
        logger.info(remark)
        card = _card(saved, tokenizer, output.absolute().name, [*whole.remarks, remark])
        (aside / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
    num_bytes = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    logger.info("Wrote %s (%s). Fill in its README.md: the licence, what the model is for.", output, size(num_bytes))
    if converter is not None:
        logger.info("Wrote %s.", convert_to_gguf(output, converter, dtype))
    if options.push_to_hub is not None:
        logger.info("Uploaded to %s.", upload(output, options.push_to_hub, private=options.private))
    return output


def _check_merge(saved: SavedModel, options: ExportOptions) -> None:
    if saved.is_adapters and not options.merge:
        raise ConfigError(
            f"command line: {saved.place} holds adapters on {saved.base}. Add --merge to export the whole model; the "
            "adapters alone are that folder as it is."
        )
    if options.merge and not saved.is_adapters:
        logger.info("%s is a whole model: there is nothing to merge.", saved.place)


def _quantization(saved: SavedModel, options: ExportOptions) -> QuantizationConfig | None:
    """How adapters' base was quantized in training, multiplied in float32: that is what is compared with."""
    found = quantization_of_training(saved)
    if options.load_in_4bit is False or (options.load_in_4bit and not saved.is_adapters):
        found = None
    elif options.load_in_4bit and (found is None or not found.load_in_4bit):
        found = QuantizationConfig(load_in_4bit=True)
    return found and replace(found, bnb_4bit_compute_dtype="float32")


def _whole_model(
    saved: SavedModel,
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Sequence[int]],
    quantization: QuantizationConfig | None,
    device: str,
) -> _Whole:
    """The model in float32, its adapters merged, and checked against what was trained.

    QLoRA's adapters were trained against the values that the base's 4 bits stand for, and make up for what these lack:
    merged into the base in full precision they would be another model. So they go into the de-quantized one.

    Raises:
        ModelError: if it is not what was trained.
    """
    model = load_saved_model(saved, dtype="float32", device=device, quantization=quantization)
    check_vocabulary(model, tokenizer, saved.place)
    reference = logits_of(model, rows)
    base = model.get_base_model() if saved.is_adapters else model
    is_quantized = getattr(base, "hf_quantizer", None) is not None
    is_8bit = bool(getattr(base, "is_loaded_in_8bit", False))
    if not saved.is_adapters and not is_quantized:
        return _Whole(model=model, reference=reference, remarks=[])
    if is_quantized and saved.is_adapters:
        del model, base  # merged in place it would be rounded to 4 bits again
        alone = SavedModel(place=saved.weights, trust_remote_code=saved.trust_remote_code)
        base = load_saved_model(alone, dtype="float32", device=device, quantization=quantization)
        model = with_saved_adapters(dequantize(base), saved)
    elif is_quantized:
        model = dequantize(base)
    if saved.is_adapters:
        model = merge_adapters(model)
    found = logits_of(model, rows)
    difference = compare_logits(found, reference)
    allowed = allowed_by_order(model, eight_bit_base=is_8bit)
    done = "merged in float32 into" if saved.is_adapters else "de-quantized from"
    what = f"{saved.place}, {done} {saved.base or 'its own weights'}"
    if is_quantized and saved.is_adapters:
        what += f", de-quantized from {'8' if is_8bit else '4'} bits as the adapters were trained on it"
    check_difference(difference, allowed, what)
    remarks = [f"{what}: {_told(difference, allowed, 'the order of sums')}"]
    logger.info(remarks[0])
    # In 8 bits activations are rounded too, which the file that is written has no part in.
    return _Whole(model=model, reference=found if is_8bit else reference, remarks=remarks)


def _write_and_read_back(
    whole: _Whole, tokenizer: "PreTrainedTokenizerBase", rows: list[list[int]], aside: Path, dtype: str, device: str
) -> str:
    """Writes the model in a type, loads it from there, and compares: weights to the bit, logits within rounding.

    Returns:
        What came of it, in a sentence.

    Raises:
        ModelError: if something is not as it was.
    """
    kind = getattr(torch, dtype)
    model = whole.model.to(kind)
    model.config.dtype = kind
    written = fingerprints(model, kind)
    save_final_model(model, tokenizer, str(aside))
    whole.model.to("meta")  # what is read back needs the room
    again = SavedModel(place=str(aside))
    if _reads_otherwise(again, tokenizer, rows):
        raise ModelError("Read back, the tokenizer makes other tokens of the same text. Nothing was written.")
    found = load_saved_model(again, dtype="float32", device=device)
    check_weights(fingerprints(found, kind), written, str(aside))
    difference, allowed = compare_logits(logits_of(found, rows), whole.reference), allowed_by_rounding(found, dtype)
    if difference.share == float("inf") and dtype == "float16":
        raise ModelError("float16 cannot hold these weights: some are too large. Use --dtype bfloat16.")
    check_difference(difference, allowed, f"Read back in {dtype}")
    told = _told(difference, allowed, f"{dtype}'s rounding" if dtype != "float32" else "the order of sums")
    return f"Written in {dtype} and read back: every weight is as it was written; {told}"


def _reads_otherwise(saved: SavedModel, tokenizer: "PreTrainedTokenizerBase", rows: list[list[int]]) -> bool:
    """Whether a tokenizer that was saved reads texts otherwise than the one that it was saved from."""
    again = load_saved_tokenizer(saved)
    texts = [tokenizer.decode(row) for row in rows]
    return any(
        again(text, add_special_tokens=False)["input_ids"] != tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in texts
    ) or (again.chat_template != tokenizer.chat_template)


def _told(difference: Difference, allowed: float, reason: str) -> str:
    return (
        f"logits differ by {difference.share:.2g} of their size ({reason} explains up to {allowed:.2g}), by "
        f"{difference.largest:.2g} at most; the likeliest token is the same at {difference.same_choice} of "
        f"{difference.positions} positions."
    )


def _card(saved: SavedModel, tokenizer: "PreTrainedTokenizerBase", name: str, remarks: list[str]) -> str:
    example = None
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "ANSWER"}]
        example = tokenizer.apply_chat_template(turns, tokenize=False)
    folder = saved.record.folder
    facts = CardFacts(
        name=name,
        base=saved.base or saved.record.settings.get("model_name_or_path"),
        record=saved.record,
        is_checkpoint=folder is not None
        and Path(saved.place).absolute() in [p.absolute() for p in list_checkpoints(folder)],
        chat_example=example,
        exported=[remark.replace(saved.place, Path(saved.place).name) for remark in remarks],
    )
    return model_card(facts)

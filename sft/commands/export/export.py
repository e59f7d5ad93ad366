"""Exports a model: build, write, verify, describe, and only then move the folder to its final name."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sft.checkpointing.checkpoints import list_checkpoints
from sft.commands.export.full_model import build_full_model, write_verified
from sft.commands.export.gguf import convert_to_gguf, find_converter
from sft.commands.export.hub import check_repository, upload
from sft.commands.export.model_card import CardFacts, model_card
from sft.commands.export.options import ExportOptions
from sft.commands.export.output_folder import resolve_output, temporary_folder
from sft.commands.export.sample_texts import tokenize_samples
from sft.commands.model_loading import load_saved_tokenizer, resolve_device, saved_dtype
from sft.commands.saved_models import SavedModel, find_saved_model, quantization_of_training
from sft.common.errors import ConfigError
from sft.common.text import size
from sft.configuration.schema import QuantizationConfig
from sft.modeling.fitting import set_generation_defaults
from sft.prompting.limits import render_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("sft.export")


def export(options: ExportOptions) -> Path:
    """Export a model. Returns its folder, which is complete or does not exist.

    Raises:
        UserError: if it cannot be exported, or differs from the model that was trained.
    """
    converter = find_converter(options.gguf_converter) if options.gguf or options.gguf_converter else None
    if options.push_to_hub is not None:
        check_repository(options.push_to_hub)
    saved = find_saved_model(options.model, base=options.base, trust_remote_code=options.trust_remote_code)
    _check_merge(saved, options)
    output = resolve_output(options.output, options.model, is_merged=saved.is_adapters)
    device = resolve_device(options.device)
    dtype = saved_dtype(saved) if options.dtype == "auto" else options.dtype
    tokenizer = load_saved_tokenizer(saved)
    rows = tokenize_samples(saved.record, tokenizer)
    full = build_full_model(saved, tokenizer, rows, _quantization(saved, options), device)
    if saved.is_adapters and not Path(saved.name_or_path, "generation_config.json").is_file():
        set_generation_defaults(full.model, tokenizer, is_chat=bool(tokenizer.chat_template))
    with temporary_folder(output) as folder:
        remark = write_verified(full, tokenizer, rows, folder, dtype=dtype, device=device)
        logger.info(remark)
        card = _model_card(saved, tokenizer, output.absolute().name, [*full.remarks, remark])
        (folder / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
    num_bytes = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    logger.info("Saved %s (%s). Complete its README.md: license, intended use.", output, size(num_bytes))
    if converter is not None:
        logger.info("Saved %s.", convert_to_gguf(output, converter, dtype))
    if options.push_to_hub is not None:
        logger.info("Uploaded to %s.", upload(output, options.push_to_hub, private=options.private))
    return output


def _check_merge(saved: SavedModel, options: ExportOptions) -> None:
    if saved.is_adapters and not options.merge:
        raise ConfigError(
            f"command line: {saved.name_or_path} contains adapters on {saved.base}. Add --merge to export the full "
            "model; to share the adapters alone, use that folder."
        )
    if options.merge and not saved.is_adapters:
        logger.info("%s is a full model: --merge has no effect.", saved.name_or_path)


def _quantization(saved: SavedModel, options: ExportOptions) -> QuantizationConfig | None:
    """Return the quantization of the base model in training, with float32 computations, for the reference logits."""
    quantization = quantization_of_training(saved)
    if options.load_in_4bit is False or (options.load_in_4bit and not saved.is_adapters):
        quantization = None
    elif options.load_in_4bit and (quantization is None or not quantization.load_in_4bit):
        quantization = QuantizationConfig(load_in_4bit=True)
    return quantization and replace(quantization, bnb_4bit_compute_dtype="float32")


def _model_card(saved: SavedModel, tokenizer: "PreTrainedTokenizerBase", name: str, remarks: list[str]) -> str:
    example = None
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "ANSWER"}]
        example = render_chat(tokenizer, turns)
    run_folder, path = saved.record.folder, Path(saved.name_or_path)
    checkpoints = [] if run_folder is None else [checkpoint.absolute() for checkpoint in list_checkpoints(run_folder)]
    facts = CardFacts(
        name=name,
        base=saved.base or saved.record.settings.get("model_name_or_path"),
        record=saved.record,
        is_checkpoint=path.absolute() in checkpoints,
        chat_example=example,
        exported=[remark.replace(saved.name_or_path, path.name) for remark in remarks],
    )
    return model_card(facts)

"""Loading the tokenizer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from sft.common.errors import ModelError
from sft.configuration.schema import ModelConfig
from sft.modeling.loading_errors import readable_loading_errors
from sft.prompting.templates import resolve_chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("sft.model")


def load_tokenizer(config: ModelConfig) -> "PreTrainedTokenizerBase":
    """The tokenizer, with a pad token, and the chat template that the settings ask for.

    Raises:
        ModelError: if there is none, or it cannot say where its tokens stand in the text.
        ConfigError: if `chat_template` is no template.
    """
    from transformers import AutoTokenizer

    _check_model_folder(config)
    place = config.tokenizer_name_or_path or config.model_name_or_path
    gguf = {"gguf_file": config.gguf_file} if config.gguf_file and config.tokenizer_name_or_path is None else {}
    with readable_loading_errors("tokenizer", place):
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=config.trust_remote_code, **gguf)
    if not tokenizer.is_fast:
        raise ModelError(
            f"{place}: its tokenizer has no fast version, so what is trained cannot be found in the text. "
            "Name one that has, with tokenizer_name_or_path."
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{place}: its tokenizer has no end-of-text token; an answer's end could not be learned.")
    if tokenizer.pad_token_id is None:
        # Labels are decided by position, never by token id, so padding with the end token changes nothing.
        tokenizer.pad_token = tokenizer.eos_token
        logger.info(
            "The tokenizer has no pad token: padding with %s, which is never trained there.", tokenizer.eos_token
        )
    if config.chat_template is not None:
        begins_with_bos = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = resolve_chat_template(config.chat_template, begins_with_bos=begins_with_bos)
    return tokenizer


def _check_model_folder(config: ModelConfig) -> None:
    """Says what a place on disk lacks to be a model's folder; transformers would guess at the Hub."""
    folder = Path(config.model_name_or_path)
    if folder.is_file():
        raise ModelError(
            f"model_name_or_path: {folder} is a file. Name the folder that holds it (for a GGUF file, with gguf_file)."
        )
    if folder.is_dir() and config.gguf_file is None and not (folder / "config.json").is_file():
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        adapters = " These are adapters: name their base." if (folder / "adapter_config.json").is_file() else ""
        raise ModelError(f"model_name_or_path: no config.json in {folder}; there: {there}.{adapters}")

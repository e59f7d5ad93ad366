"""Loading the tokenizer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoTokenizer

from sft.common.errors import ModelError
from sft.common.files import refuse_special_files
from sft.configuration.schema import ModelConfig
from sft.modeling.architecture import why_adapters_not_causal_lm
from sft.modeling.loading_errors import readable_loading_errors
from sft.modeling.tokenizer_files import check_tokenizer_package, fast_tokenizer, name_special_tokens
from sft.prompting.templates import set_chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("sft.model")


def load_tokenizer(config: ModelConfig) -> "PreTrainedTokenizerBase":
    """Load the tokenizer, with a pad token and the chat template of the settings.

    Raises:
        ModelError: if it cannot be loaded, or has no fast version or no end-of-text token.
        ConfigError: if `chat_template` is not a valid template.
    """
    _check_model_folder(config)
    path = config.tokenizer_name_or_path or config.model_name_or_path
    gguf = {"gguf_file": config.gguf_file} if config.gguf_file and config.tokenizer_name_or_path is None else {}
    revision = config.revision_of_tokenizer or "main"
    check_tokenizer_package(path)
    with readable_loading_errors("tokenizer", path):
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=revision, trust_remote_code=config.trust_remote_code, **gguf
        )
        len(tokenizer), tokenizer("a b \u0394\U0001f600")  # some values only fail when they are used
    tokenizer = fast_tokenizer(tokenizer, path, revision)
    name_special_tokens(tokenizer, path, revision, trust_remote_code=config.trust_remote_code)
    if not tokenizer.is_fast:
        raise ModelError(
            f"{path}: its tokenizer has no fast version, so the trained tokens cannot be found in the text. "
            "Set tokenizer_name_or_path to a tokenizer that has one."
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{path}: its tokenizer has no end-of-text token, so the end of an answer cannot be trained.")
    if tokenizer.pad_token_id is None:
        # Labels depend on positions, not on token ids, so padding with the end token is harmless.
        tokenizer.pad_token = tokenizer.eos_token
        logger.info(
            "The tokenizer has no pad token; rows are padded with %s, which is never trained there.",
            tokenizer.eos_token,
        )
    if config.chat_template is not None:
        set_chat_template(tokenizer, config.chat_template)
    return tokenizer


def _check_model_folder(config: ModelConfig) -> None:
    """Check that a local path is a model folder; transformers would look it up on the Hub.

    Raises:
        ModelError: if it is a file, a folder without a model, or one with a FIFO or a device.
    """
    folder = Path(config.model_name_or_path)
    refuse_special_files(ModelError, folder, *sorted(folder.glob("*")), name="model_name_or_path")
    if folder.is_file():
        raise ModelError(
            f"model_name_or_path: {folder} is a file. Name its folder (and for a GGUF file, set gguf_file)."
        )
    if folder.is_dir() and config.gguf_file is None and not (folder / "config.json").is_file():
        other = why_adapters_not_causal_lm(str(folder))
        if other is not None:
            raise ModelError(f"model_name_or_path: {folder} {other}")
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        adapters = " These are adapters: name their base model." if (folder / "adapter_config.json").is_file() else ""
        raise ModelError(f"model_name_or_path: no config.json in {folder}; found: {found}.{adapters}")

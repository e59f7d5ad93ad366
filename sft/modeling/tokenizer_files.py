"""Tokenizers as models are published with: what their files need, and what they leave unsaid."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerFast

from sft.common.device_errors import reraise_device_error
from sft.common.errors import ModelError
from sft.common.optional_packages import is_installed

logger = logging.getLogger("sft.model")
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\s")
_SPECIAL = ("bos", "eos", "pad")


def check_tokenizer_package(path: str) -> None:
    """Check that the package that reads a folder's `tokenizer.model` is installed, where no other file replaces it.

    Raises:
        ModelError: with the package's name; transformers may name another.
    """
    file = Path(path, "tokenizer.model")
    if not file.is_file() or Path(path, "tokenizer.json").is_file() or Path(path, "tekken.json").is_file():
        return
    with file.open("rb") as opened:
        package = "tiktoken" if _TIKTOKEN_LINE.match(opened.read(4096)) else "sentencepiece"
    if not is_installed(package):
        raise ModelError(
            f"{path}: its tokenizer is a {package} file (tokenizer.model), which needs the package {package}: pip "
            f"install {package}. Or set tokenizer_name_or_path to a folder with a tokenizer.json."
        )


def fast_tokenizer(tokenizer: Any, path: str, revision: str) -> Any:
    """A tokenizer of the tokenizers library for one that is not, where the files can be read as such; else the same.

    With mistral-common installed, transformers reads `tekken.json` by it.
    """
    if tokenizer.is_fast:
        return tokenizer
    try:
        found = PreTrainedTokenizerFast.from_pretrained(path, revision=revision)
    except Exception as error:  # there are no such files
        reraise_device_error(error)
        return tokenizer
    if not found.is_fast or len(found) != len(tokenizer):
        return tokenizer
    logger.info("%s: its tokenizer is read by the tokenizers library, not by %s.", path, type(tokenizer).__name__)
    return found


def name_special_tokens(tokenizer: Any, path: str, revision: str, *, trust_remote_code: bool) -> None:
    """Give a tokenizer without an end-of-text token those that the model's config.json states, with a line.

    `tekken.json` does not say which of its special tokens they are.
    """
    if tokenizer.eos_token_id is not None:
        return
    try:
        found = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
        config = found.get_text_config()
    except Exception as error:  # a folder with a tokenizer alone
        reraise_device_error(error)
        return
    named = []
    for kind in _SPECIAL:
        number = getattr(config, f"{kind}_token_id", None)
        number = number[0] if isinstance(number, list) and number else number
        token = tokenizer.added_tokens_decoder.get(number)
        # A configuration may state a default number, which is an ordinary token here.
        if token is not None and token.special and getattr(tokenizer, f"{kind}_token_id") is None:
            setattr(tokenizer, f"{kind}_token", token.content)
            named.append(f"{kind} {token.content}")
    if named:
        logger.info("%s: the tokenizer names no special tokens; those of config.json: %s.", path, ", ".join(named))

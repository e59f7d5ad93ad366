"""The chat templates that ship with the program, and the meaning of `chat_template`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sft.common.did_you_mean import did_you_mean
from sft.common.errors import ConfigError, one_line
from sft.common.files import refuse_special_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FOLDER = Path(__file__).parent
PLAIN = "plain"
"""The template for a base model without one: `User:` / `Assistant:` lines, each answer ends with end-of-text."""


def shipped_template_names() -> list[str]:
    """The names that `chat_template` accepts."""
    return sorted(path.stem for path in _FOLDER.glob("*.jinja"))


def set_chat_template(tokenizer: "PreTrainedTokenizerBase", setting: str) -> None:
    """Give a tokenizer a chat template: the only place that does.

    Args:
        tokenizer: It is changed.
        setting: The value of `chat_template`.

    Raises:
        ConfigError: If the setting is no template.
    """
    begins_with_bos = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    tokenizer.chat_template = resolve_chat_template(setting, begins_with_bos=begins_with_bos)


def resolve_chat_template(setting: str, *, begins_with_bos: bool) -> str:
    """The text of the template: of a shipped one, of a file, or the value itself.

    Args:
        setting: The value of `chat_template`.
        begins_with_bos: Whether the tokenizer begins every text with its begin-of-text token. A shipped template must
            then write it, since rendered text is tokenized without special tokens.

    Raises:
        ConfigError: If it is none of the three.
    """
    if setting in shipped_template_names():
        text = (_FOLDER / f"{setting}.jinja").read_text(encoding="utf-8").strip()
        return "{{- bos_token -}}\n" + text if begins_with_bos else text
    if "{{" in setting or "{%" in setting:
        return setting
    path = Path(setting).expanduser()
    refuse_special_files(ConfigError, path, name="chat_template")
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8-sig")  # a byte order mark would be trained in each row
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"chat_template: {path} cannot be read as UTF-8 text: {one_line(error)}.") from None
    names = shipped_template_names()
    raise ConfigError(
        f"chat_template: {setting!r} is neither a shipped template ({', '.join(names)}), nor a file, nor Jinja "
        f"text.{did_you_mean(setting, names)}"
    )

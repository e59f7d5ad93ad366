"""What settings and rows may pass to chat templates, and the text of a system prompt."""

from __future__ import annotations

from pathlib import Path

RESERVED_KWARGS = frozenset(
    {
        *("messages", "conversation", "conversations", "tools", "chat_template", "add_generation_prompt", "tokenize"),
        *("continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
        *("return_assistant_tokens_mask", "tokenizer_kwargs"),
    }
)
"""Arguments of `apply_chat_template` that the program gives itself."""
SYSTEM_PROMPT_FILE = "file:"
"""What a `system_prompt` begins with that names a file."""


def system_prompt_text(value: str) -> tuple[str, str | None]:
    """The text of a `system_prompt`: itself, or the content of its file without white space around it.

    Returns:
        The text, and why there is none, as the end of a line; None if there is one.
    """
    if not value.startswith(SYSTEM_PROMPT_FILE):
        return value, None if value.strip() else "is empty; give a text, or remove the key."
    path = Path(value.removeprefix(SYSTEM_PROMPT_FILE).strip()).expanduser()
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        return "", f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}."
    return text, None if text else f"{path} is empty."

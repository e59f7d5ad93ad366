"""Control tokens in the data itself: a text that contains `<|im_end|>` becomes the token, not these characters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sft.common.data_records import Conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sft.prompting.quoted_tokens import QuotedTokens


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    """The texts of a tokenizer's control tokens."""
    added = tokenizer.added_tokens_decoder.values()
    return {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)} - {""}


class ControlTokens:
    """Finds the control tokens of a tokenizer in conversations."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", quotes: "QuotedTokens | None" = None):
        """
        Args:
            tokenizer: Has the control tokens.
            quotes: What becomes of them; None leaves them tokens.
        """
        self.quotes = quotes
        tokens = sorted(special_tokens(tokenizer), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, tokens)) or "(?!)")
        self._begin, self._end = tokenizer.bos_token or "", tokenizer.eos_token or ""

    def __call__(self, conversation: Conversation, text: str) -> tuple[str, ...]:
        """The control tokens that the strings of a conversation contain, in order.

        Args:
            conversation: The conversation. A plain text may begin and end with the tokens for that.
            text: The text that it renders to; a token that the template leaves out does not count.
        """
        if conversation.text is not None:
            found = self._pattern.findall(conversation.text.removeprefix(self._begin).removesuffix(self._end))
        else:
            found = [
                token
                for message in conversation.messages
                for part in ((message["content"],) if len(message) == 2 else strings_in(message))
                for token in self._pattern.findall(part)
            ]
        if conversation.tools:
            found += [token for part in strings_in(conversation.tools) for token in self._pattern.findall(part)]
        return tuple(token for token in dict.fromkeys(found) if token in text)


def strings_in(value: Any) -> Iterator[str]:
    """The strings in a value of JSON, without the keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from strings_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from strings_in(inner)

"""Control tokens in the data that are to be ordinary characters: where a rendered text has them.

A text does not tell whether its `<|im_end|>` was written by the chat template or is a quotation. So the conversation is
rendered once more with an invisible mark inside each quotation; without the marks the text must be the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from sft.common.data_records import Conversation
from sft.prompting.control_tokens import special_tokens, strings_in
from sft.prompting.refusal import RowRefused
from sft.prompting.template import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
CHOICES = ("special", "text", "error")
_MARKS = tuple(map(chr, range(0xE000, 0xF8FF)))


class QuotedTokens:
    """Finds quotations of a tokenizer's control tokens."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", choice: str):
        """
        Args:
            tokenizer: Its control tokens are looked for.
            choice: What becomes of them: one of `CHOICES`.
        """
        tokens = sorted(special_tokens(tokenizer), key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, tokens)) or "(?!)")
        self._choice = choice
        self._begin, self._end = tokenizer.bos_token or "", tokenizer.eos_token or ""

    def of_conversation(self, template: ChatTemplate, conversation: Conversation, text: str) -> tuple[Span, ...]:
        """Where the text of a conversation has control tokens of its contents, `[start, end)`, in order.

        Raises:
            RowRefused: `control_token` if such rows are to be refused; `control_token_not_found` if the template writes
                another text around marked contents.
        """
        if self._choice == "special":
            return ()
        strings = list(chain(strings_in(conversation.messages), strings_in(conversation.tools or ())))
        first = next(filter(None, map(self.pattern.search, strings)), None)
        if first is None:
            return ()
        if self._choice == "error":
            raise _refused(first.group())
        mark = next((mark for mark in _MARKS if mark not in text and not any(mark in string for string in strings)), "")
        messages = [self._marked(message, mark) for message in conversation.messages]
        tools = None if conversation.tools is None else self._marked(list(conversation.tools), mark)
        try:
            marked = template.apply(messages, tools)
        except RowRefused:
            marked = ""
        if not mark or marked.replace(mark, "") != text:
            raise RowRefused(
                "control_token_not_found",
                f"its contents contain {first.group()!r}, and the chat template does not show where it writes it "
                "(control_tokens_in_content: text)",
            )
        return tuple(self._spans(marked, mark, text))

    def of_text(self, text: str) -> tuple[Span, ...]:
        """Where a plain text has control tokens. It may begin and end with the tokens for that.

        Raises:
            RowRefused: `control_token` if such rows are to be refused, or if a text that begins or ends with the tokens
                for that has others, too, which are to be ordinary characters.
        """
        if self._choice == "special":
            return ()
        inner = text.removeprefix(self._begin).removesuffix(self._end)
        found = [match.span() for match in self.pattern.finditer(inner)]
        if found and (self._choice == "error" or inner != text):
            raise _refused(inner[slice(*found[0])], "" if self._choice == "error" else " beside its first or last one")
        return tuple(found)

    def _marked(self, value: Any, mark: str) -> Any:
        """The value with a mark behind the first character of each quotation in its strings."""
        if isinstance(value, str):
            return self.pattern.sub(lambda found: f"{found[0][0]}{mark}{found[0][1:]}", value)
        if isinstance(value, Mapping):
            return {key: self._marked(inner, mark) if key != "role" else inner for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._marked(inner, mark) for inner in value]
        return value

    def _spans(self, marked: str, mark: str, text: str) -> Iterator[Span]:
        position = 0
        for part in marked.split(mark)[:-1]:
            position += len(part)
            found = self.pattern.match(text, position - 1)
            if found is not None:  # otherwise the template writes the characters in another way, such as escapes
                yield found.span()


def segments(text: str, quoted: Sequence[Span], pattern: re.Pattern[str]) -> Iterator[tuple[Span, bool]]:
    """A text in consecutive segments that can be tokenized one by one, and whether control tokens are text in them.

    They are cut at the edges of the control tokens that are tokens, which no token of a text crosses.
    """
    begin = last_edge = 0
    inside = set(quoted)
    edges = [found.span() for found in pattern.finditer(text) if found.span() not in inside]
    for start, end in [*edges, (len(text), len(text))]:
        if any(last_edge <= at and until <= start for at, until in quoted):
            if begin < last_edge:
                yield (begin, last_edge), False
            yield (last_edge, start), True
            begin = start
        last_edge = end
    if begin < len(text):
        yield (begin, len(text)), False


def _refused(token: str, more: str = "") -> RowRefused:
    return RowRefused("control_token", f"it contains the control token {token!r}{more} (control_tokens_in_content)")

"""Conversations to text, with the characters that are trained.

Trained is what the model must produce at inference: in each turn of the assistant, from the end of the generation
prompt through the turn's end marker. Both are found by rendering: the tokenizer's own template is asked for the
conversation up to the turn with a generation prompt (its length is where the turn begins), and for the whole. Nothing
is looked up by token id, and the template is never replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from prompting.messages import RowRefused
from sft_types import Conversation, RenderedText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "Zqxj"
"""A content that no template holds by itself."""


class ChatRenderer:
    """Renders conversations by a tokenizer's chat template and marks what is trained."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        """Args:
        tokenizer: with a chat template, unless only `text` conversations are rendered.
        """
        self._tokenizer = tokenizer
        self.end_marker = _find_end_marker(tokenizer) if tokenizer.chat_template else ""
        """What the template writes behind an answer to end it (`<|im_end|>`); empty if it writes nothing."""

    def render(self, conversation: Conversation) -> RenderedText:
        """The text of a conversation and its trained spans.

        Raises:
            RowRefused: `template_refused` if the template rejects the conversation, `turn_not_found` if a turn of the
                assistant cannot be told apart in the rendered text.
        """
        if conversation.text is not None:
            return RenderedText(text=conversation.text, trained_spans=((0, len(conversation.text)),))
        messages = conversation.messages
        text = self._apply(messages, conversation.tools)
        spans = []
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                spans.append(self._find_turn(text, conversation, index))
        return RenderedText(text=text, trained_spans=tuple(spans))

    def render_prompt(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> str:
        """The text after which the model is to answer."""
        return self._apply(messages, tools, add_generation_prompt=True)

    def _find_turn(self, text: str, conversation: Conversation, index: int) -> tuple[int, int]:
        """`[start, end)` of the assistant's turn `index` in the text of the whole conversation."""
        messages, tools = conversation.messages, conversation.tools
        prompt = self._apply(messages[:index], tools, add_generation_prompt=True)
        if not text.startswith(prompt):
            raise RowRefused("turn_not_found", f"the template renders what precedes turn {index + 1} in two ways")
        start = len(prompt)
        is_last = index == len(messages) - 1
        through = text if is_last else self._apply(messages[: index + 1], tools)
        if text.startswith(through):
            end = self._end_in(through, start)
        else:
            # The template writes this turn differently when more turns follow: look for its content instead.
            end = self._end_by_content(text, start, messages[index])
        if end is None or end <= start:
            raise RowRefused("turn_not_found", f"turn {index + 1} cannot be told apart in the rendered text")
        return start, end

    def _end_in(self, through: str, start: int) -> int | None:
        """The end of the last turn of `through`: behind its end marker, or of its text where there is no marker."""
        if not self.end_marker:
            return len(through.rstrip())
        position = through.rfind(self.end_marker, start)
        return None if position < 0 else position + len(self.end_marker)

    def _end_by_content(self, text: str, start: int, message: Mapping[str, Any]) -> int | None:
        content = message["content"].strip()
        position = text.find(content, start)
        if position < 0 or not self.end_marker:
            return None
        after = position + len(content)
        marker = text.find(self.end_marker, after)
        if marker < 0 or (text[after:marker].strip() and not message.get("tool_calls")):
            return None
        return marker + len(self.end_marker)

    def _apply(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        return _apply_template(self._tokenizer, messages, tools, add_generation_prompt)


def _apply_template(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None,
    add_generation_prompt: bool,
) -> str:
    try:
        return tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=list(tools) if tools else None,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
    except (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        # Templates are programs in somebody else's hands: whatever they raise is about this conversation.
        raise RowRefused("template_refused", f"the chat template refuses it: {str(error)[:120]}") from None


def _find_end_marker(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What the template writes behind an answer: up to and including the first special token, or all of it."""
    exchange = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _PROBE}]
    try:
        text = _apply_template(tokenizer, exchange, None, False)
    except RowRefused:
        # Some templates insist on a system turn.
        text = _apply_template(tokenizer, [{"role": "system", "content": "Help."}, *exchange], None, False)
    tail = text.rpartition(_PROBE)[2]
    specials = set(tokenizer.all_special_tokens) | {
        token.content for token in tokenizer.added_tokens_decoder.values() if token.special
    }
    ends = [tail.index(token) + len(token) for token in specials if token and token in tail]
    return tail[: min(ends)] if ends else tail.rstrip()

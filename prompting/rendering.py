"""Conversations to text, with the characters that are trained.

Trained is what the model must produce at inference: in each turn of the assistant, from the end of the generation
prompt through the turn's end marker. Both are found by rendering: the tokenizer's own template is asked for the
conversation up to the turn with a generation prompt (its length is where the turn begins), and for the conversation
through the turn (where it ends). Nothing is looked up by token id, no content is searched for, and the template is
never replaced. Where the renderings do not agree, the row is refused: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from prompting.messages import RowRefused, checked_text
from sft_errors import ConfigError
from sft_types import Conversation, RenderedText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "Zqxj"
"""A content that no template holds by itself."""
_TEMPLATE_ERRORS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""Templates are programs in somebody else's hands: what they raise is about the conversation that they were given."""


def render_text(conversation: Conversation) -> RenderedText:
    """A plain text, all of it trained."""
    text = conversation.text or ""
    return RenderedText(text=text, trained_spans=((0, len(text)),))


class ChatRenderer:
    """Renders conversations by a tokenizer's chat template and marks what is trained."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        """Args:
            tokenizer: with a chat template.

        Raises:
            ConfigError: if the template cannot render a plain exchange of a question and an answer.
        """
        self._tokenizer = tokenizer
        self._tail = _find_tail(tokenizer)
        self.end_marker = _end_marker_in(self._tail, tokenizer)
        """What the template writes behind an answer to end it (`<|im_end|>`); empty if it writes nothing."""

    def render(self, conversation: Conversation) -> RenderedText:
        """The text of a conversation and its trained spans.

        Raises:
            RowRefused: `template_refused` if the template rejects the conversation, `turn_not_found` if a turn of the
                assistant cannot be told apart in the rendered text, `no_prompt` if the assistant begins, `not_unicode`
                if the text holds what is no character.
        """
        messages = conversation.messages
        text = checked_text(self._apply(messages, conversation.tools), "the conversation")
        spans = tuple(
            self._find_turn(text, conversation, index)
            for index, message in enumerate(messages)
            if message["role"] == "assistant"
        )
        return RenderedText(text=text, trained_spans=spans)

    def render_prompt(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> str:
        """The text after which the model is to answer."""
        return self._apply(messages, tools, add_generation_prompt=True)

    def _find_turn(self, text: str, conversation: Conversation, index: int) -> tuple[int, int]:
        """`[start, end)` of the assistant's turn `index` in the text of the whole conversation."""
        messages, tools = conversation.messages, conversation.tools
        if index == 0:
            raise RowRefused("no_prompt", "the assistant speaks first: there is nothing that it answers")
        prompt = self._apply(messages[:index], tools, add_generation_prompt=True)
        start = len(prompt)
        if not text.startswith(prompt):
            parted = next(
                (i for i, pair in enumerate(zip(text, prompt, strict=False)) if pair[0] != pair[1]), len(text)
            )
            raise RowRefused(
                "turn_not_found",
                f"message {index + 1}: the chat template's generation prompt goes on with "
                f"{prompt[parted : parted + 40]!r} where its conversation has {text[parted : parted + 40]!r}",
            )
        end = self._find_end(text, conversation, index)
        if end is None:
            end = self._find_end_of_rewritten(text, start, conversation, index)
        if end is None or end <= start:
            raise RowRefused(
                "turn_not_found",
                f"message {index + 1}: the chat template leaves out or rewrites part of it, or ends it unlike others",
            )
        return start, end

    def _find_end(self, text: str, conversation: Conversation, index: int) -> int | None:
        """The end of the turn, if the template writes it alike whether or not more turns follow.

        What stands behind the end marker may differ: some templates write an end-of-text after the last turn.
        """
        through = text
        if index < len(conversation.messages) - 1:
            through = self._apply(conversation.messages[: index + 1], conversation.tools)
        if not through.endswith(self._tail):
            return None
        through = through[: len(through) - len(self._tail)] + self.end_marker
        return len(through) if text.startswith(through) else None

    def _find_end_of_rewritten(self, text: str, start: int, conversation: Conversation, index: int) -> int | None:
        """The end of a turn that the template writes differently when more turns follow.

        Templates of thinking models do: a last turn gets an (empty) block of thoughts, an earlier one loses its own.
        Another content in the turn's place shows what follows it. A turn that lost something is not what the model has
        to produce after this prompt, so it is not found.
        """
        messages = list(conversation.messages)
        message = messages[index]
        messages[index] = {"role": "assistant", "content": _PROBE}
        try:
            before, probe, after = self._apply(messages, conversation.tools).rpartition(_PROBE)
        except RowRefused:
            return None
        is_alike = before.startswith(text[:start]) and text.endswith(after) and after.startswith(self.end_marker)
        if not probe or not is_alike:
            return None
        end = len(text) - len(after)
        parts = [message.get(key) for key in ("content", "reasoning_content", "thinking")]
        parts += [call["function"]["name"] for call in message.get("tool_calls", ())]
        is_whole = all(part.strip() in text[start:end] for part in parts if isinstance(part, str))
        return end + len(self.end_marker) if is_whole else None

    def _apply(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        try:
            return _apply_template(self._tokenizer, messages, tools, add_generation_prompt)
        except _TEMPLATE_ERRORS as error:
            raise RowRefused("template_refused", f"the chat template refuses it: {_one_line(error)}") from None


def _apply_template(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None,
    add_generation_prompt: bool,
) -> str:
    return tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        tools=list(tools) if tools else None,
        add_generation_prompt=add_generation_prompt,
        tokenize=False,
    )


def _find_tail(tokenizer: "PreTrainedTokenizerBase") -> str:
    """All that the template writes behind a last answer.

    Raises:
        ConfigError: if it cannot render an exchange, or does not write the answer.
    """
    exchange = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _PROBE}]
    try:
        try:
            text = _apply_template(tokenizer, exchange, None, False)
        except _TEMPLATE_ERRORS:
            # Some templates insist on a system turn.
            text = _apply_template(tokenizer, [{"role": "system", "content": "Help."}, *exchange], None, False)
    except _TEMPLATE_ERRORS as error:
        raise ConfigError(
            f"chat_template: it cannot render a question and its answer: {_one_line(error)}. Mend it, or choose "
            "another with chat_template."
        ) from None
    _, probe, tail = text.rpartition(_PROBE)
    if not probe:
        raise ConfigError("chat_template: it does not write the assistant's content. Mend it, or choose another.")
    return tail


def _end_marker_in(tail: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The part of it that ends the answer: up to and including the first special token, or all but white space."""
    specials = set(tokenizer.all_special_tokens) | {
        token.content for token in tokenizer.added_tokens_decoder.values() if token.special
    }
    ends = [tail.index(token) + len(token) for token in specials if token and token in tail]
    return tail[: min(ends)] if ends else tail.rstrip()


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:120]

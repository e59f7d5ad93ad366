"""Conversations to text, with the characters that are trained.

What the model must produce at inference is trained: each assistant turn from the end of the generation prompt through
the end marker of the turn. The tokenizer's own chat template writes every text and is never modified. Turns are located
by rendering with marked strings (`sft/prompting/turns.py`), and in further conversations of the same shape by the
literal text between their contents (`sft/prompting/shapes.py`), which must match exactly. If neither locates a turn,
the row is refused: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sft.common.data_records import Conversation, RenderedText
from sft.common.errors import ConfigError
from sft.prompting.limits import template_limits
from sft.prompting.loss_weights import loss_weights, text_weights
from sft.prompting.message_keys import MessageKeys, with_thoughts
from sft.prompting.messages import RowRefused, checked_text
from sft.prompting.quoted_tokens import QuotedTokens
from sft.prompting.shapes import Shapes
from sft.prompting.template import ChatTemplate
from sft.prompting.template_kwargs import KWARGS_COLUMN, kwargs_key, unread_kwargs
from sft.prompting.turns import find_turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def known_end_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Token ids that end an answer in rows that are tokenized already, which need no chat template."""
    if tokenizer.chat_template is None:
        return [tokenizer.eos_token_id]
    try:
        return ChatRenderer(tokenizer).end_token_ids()
    except ConfigError:  # of a template that this run does not use
        return [tokenizer.eos_token_id]


def render_text(conversation: Conversation, quotes: QuotedTokens | None = None) -> RenderedText:
    """A plain text, which is trained completely.

    Raises:
        RowRefused: As `QuotedTokens.of_text`.
    """
    text = conversation.text or ""
    quoted = () if quotes is None else quotes.of_text(text)
    return RenderedText(text=text, trained_spans=((0, len(text)),), quoted=quoted, weights=text_weights(conversation))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Program:
    """A template with its arguments, and what was learned about it."""

    template: ChatTemplate
    keys: MessageKeys
    shapes: Shapes


_MAX_PROGRAMS = 64
"""Different arguments whose templates are kept: data may have others in every row (a date)."""


class ChatRenderer:
    """Renders conversations with a tokenizer's chat template and determines the trained spans."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        only_last_turn: bool = False,
        add_end_token: bool = False,
        prompt_weight: float = 0.0,
        template_kwargs: Mapping[str, Any] | None = None,
        quotes: QuotedTokens | None = None,
    ):
        """
        Args:
            tokenizer: A tokenizer with a chat template.
            only_last_turn: Train only the last assistant turn.
            add_end_token: Append the tokenizer's end token to the last answer of a row if the template writes no end
                marker.
            prompt_weight: Weight in the loss of the tokens outside of answers.
            quotes: What becomes of control tokens in contents; None leaves them tokens.
            template_kwargs: Arguments of the template for prompts, and for its analysis. A conversation has its own.

        Raises:
            ConfigError: If the template cannot render a question and an answer.
        """
        self._tokenizer = tokenizer
        self._quotes = quotes
        self._programs: dict[str, _Program] = {}
        self._program = self._program_for(template_kwargs or {})
        self._template = self._program.template
        self._only_last_turn = only_last_turn
        self._prompt_weight = prompt_weight
        self._added_end = tokenizer.eos_token if add_end_token and not self.end_marker.strip() else ""

    def _program_for(self, kwargs: Mapping[str, Any]) -> "_Program":
        """The template with these arguments, which decide its text, and so what can be learned about it."""
        key = kwargs_key(kwargs)
        if key not in self._programs:
            if len(self._programs) >= _MAX_PROGRAMS:
                self._programs.pop(next(iter(self._programs)))
            template = ChatTemplate(self._tokenizer, kwargs)
            self._programs[key] = _Program(template=template, keys=MessageKeys(template), shapes=Shapes())
        return self._programs[key]

    @property
    def end_marker(self) -> str:
        """What the template writes to end an answer (`<|im_end|>`); empty if it writes nothing."""
        return self._template.end_marker

    def end_token_ids(self) -> list[int]:
        """Token ids that end an answer: those of the end marker, and the tokenizer's end token."""
        ends: list[int] = []
        for token in self._template.end_tokens():
            ids = self._tokenizer(token, add_special_tokens=False)["input_ids"]
            if len(ids) == 1:
                ends += ids
        return list(dict.fromkeys([*ends, self._tokenizer.eos_token_id]))

    def render(self, conversation: Conversation) -> RenderedText:
        """The text of a conversation and its trained spans.

        Raises:
            RowRefused: `template_refused` if the template raises an error, `tool_calls_left_out` if it does not write
                the tool calls of a turn, `turn_not_found` if an assistant turn cannot be located in the rendered text,
                `no_prompt` if the conversation begins with an assistant turn, `no_answer` if no turn is trained,
                `bad_weight` if a product of weights cannot be computed,
                `not_unicode` if the text contains an unpaired surrogate.
        """
        (result,) = self.render_all([conversation])
        if isinstance(result, RowRefused):
            raise result
        return result

    def render_all(self, conversations: Sequence[Conversation]) -> list[RenderedText | RowRefused]:
        """Render many conversations, which is faster. A refused one yields its refusal.

        Raises:
            ConfigError: If the template takes more than it may (`sft/prompting/limits.py`).
        """
        with template_limits(self._tokenizer, [conversation.messages for conversation in conversations]):
            groups: dict[str, list[int]] = {}
            for index, conversation in enumerate(conversations):
                groups.setdefault(kwargs_key(conversation.template_kwargs), []).append(index)
            results: dict[int, RenderedText | RowRefused] = {}
            for indices in groups.values():
                program = self._program_for(conversations[indices[0]].template_kwargs)
                offered = [program.keys.offer(conversations[index]) for index in indices]
                results.update(zip(indices, self._render_group(program, offered), strict=True))
            return [results[index] for index in range(len(conversations))]

    def _render_group(
        self, program: "_Program", conversations: Sequence[Conversation]
    ) -> list[RenderedText | RowRefused]:
        plain = [index for index, conversation in enumerate(conversations) if not conversation.tools]
        texts: list[str | RowRefused | None] = [None] * len(conversations)
        for index, rendered in zip(
            plain, program.template.apply_to_all([conversations[index].messages for index in plain]), strict=True
        ):
            texts[index] = rendered
        results: list[RenderedText | RowRefused] = []
        for conversation, text in zip(conversations, texts, strict=True):
            try:
                if isinstance(text, RowRefused):
                    raise text
                if text is None:
                    text = program.template.apply(conversation.messages, conversation.tools)
                results.append(self._with_trained_spans(program, conversation, checked_text(text, "the conversation")))
            except RowRefused as refusal:
                results.append(refusal)
        return results

    def render_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a prompt, which ends where the model has to answer; with other arguments than the renderer's."""
        program = self._program if template_kwargs is None else self._program_for(template_kwargs)
        with template_limits(self._tokenizer, [messages]):
            given = [with_thoughts(message) for message in messages]
            return program.template.apply(given, tools, add_generation_prompt=True)

    def _with_trained_spans(self, program: "_Program", conversation: Conversation, text: str) -> RenderedText:
        """The rendered text with its trained spans: here it is decided which characters are trained."""
        messages = conversation.messages
        chosen = self._trained_turns(conversation)
        turns = program.shapes.find(conversation, text)
        if turns is None:
            turns = find_turns(program.template, conversation, text)
            program.shapes.learn(conversation, text, turns)
        quoted = () if self._quotes is None else self._quotes.of_conversation(program.template, conversation, text)
        spans = []
        for index in chosen:
            span = turns.spans[index]
            if isinstance(span, RowRefused):
                raise span
            spans.append(span)
        if self._added_end and messages[-1]["role"] == "assistant":
            if chosen[-1] == len(messages) - 1:
                spans[-1] = (spans[-1][0], len(text) + len(self._added_end))
            text += self._added_end
        return RenderedText(
            text=text,
            trained_spans=tuple(spans),
            quoted=quoted,
            notes=turns.notes,
            unread_keys=(
                *conversation.unread_keys,
                *(
                    f"{KWARGS_COLUMN}.{name}"
                    for name in unread_kwargs(conversation.template_kwargs, program.template.source)
                ),
            ),
            weights=loss_weights(conversation, chosen, turns.spans, self._prompt_weight),
        )

    def _trained_turns(self, conversation: Conversation) -> list[int]:
        """Indices of the messages to train.

        Raises:
            RowRefused: `no_answer` if there is none, `no_prompt` if the first message is one of them.
        """
        turns = [index for index, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        if self._only_last_turn:
            turns = turns[-1:]
        turns = [index for index in turns if index not in conversation.untrained]
        if not turns:
            raise RowRefused("no_answer", "no assistant message is trained")
        if turns[0] == 0:
            raise RowRefused("no_prompt", "the conversation begins with an assistant message, so there is no prompt")
        return turns

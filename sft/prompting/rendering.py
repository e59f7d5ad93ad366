"""Conversations to text, with the characters that are trained.

Trained is what the model must produce at inference: in each turn of the assistant, from the end of the generation
prompt through the turn's end marker. The tokenizer's own template writes every text and is never replaced; where its
parts stand is found by what it does with marked strings (`sft/prompting/turns.py`), and for further conversations of the
same shape by the literal text between their contents (`sft/prompting/shapes.py`), which has to fit to the character. Where
neither tells a turn apart, the row is refused: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sft.common.data_records import Conversation, RenderedText
from sft.prompting.messages import RowRefused, checked_text
from sft.prompting.shapes import Shapes
from sft.prompting.template import ChatTemplate
from sft.prompting.turns import find_turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_text(conversation: Conversation) -> RenderedText:
    """A plain text, all of it trained."""
    text = conversation.text or ""
    return RenderedText(text=text, trained_spans=((0, len(text)),))


class ChatRenderer:
    """Renders conversations by a tokenizer's chat template and marks what is trained."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", *, only_last_turn: bool = False, add_end_token: bool = False
    ):
        """Args:
            tokenizer: with a chat template.
            only_last_turn: train only the last turn of the assistant.
            add_end_token: write the tokenizer's end token behind a row's last answer if the template ends it with
                nothing.

        Raises:
            ConfigError: if the template cannot render a plain exchange of a question and an answer.
        """
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)
        self._shapes = Shapes()
        self._only_last_turn = only_last_turn
        self._added_end = tokenizer.eos_token if add_end_token and not self.end_marker.strip() else ""

    @property
    def end_marker(self) -> str:
        """What the template writes behind an answer to end it (`<|im_end|>`); empty if it writes nothing."""
        return self._template.end_marker

    def end_token_ids(self) -> list[int]:
        """Tokens that end an answer: those of the end marker, and the tokenizer's end token."""
        ends: list[int] = []
        for token in self._template.end_tokens():
            ids = self._tokenizer(token, add_special_tokens=False)["input_ids"]
            if len(ids) == 1:
                ends += ids
        return list(dict.fromkeys([*ends, self._tokenizer.eos_token_id]))

    def render(self, conversation: Conversation) -> RenderedText:
        """The text of a conversation and its trained spans.

        Raises:
            RowRefused: `template_refused` if the template rejects the conversation, `tool_calls_left_out` if it does
                not write the calls of a turn, `turn_not_found` if a turn of the assistant cannot be told apart in the
                rendered text, `no_prompt` if the assistant begins, `no_answer` if none of its turns is to be trained,
                `not_unicode` if the text holds what is no character.
        """
        (result,) = self.render_all([conversation])
        if isinstance(result, RowRefused):
            raise result
        return result

    def render_all(self, conversations: Sequence[Conversation]) -> list[RenderedText | RowRefused]:
        """The same for many, which is quicker; a refusal stands in the place of its row."""
        plain = [index for index, conversation in enumerate(conversations) if not conversation.tools]
        texts: list[str | RowRefused | None] = [None] * len(conversations)
        for index, text in zip(
            plain, self._template.apply_to_all([conversations[index].messages for index in plain]), strict=True
        ):
            texts[index] = text
        results: list[RenderedText | RowRefused] = []
        for conversation, text in zip(conversations, texts, strict=True):
            try:
                if isinstance(text, RowRefused):
                    raise text
                if text is None:
                    text = self._template.apply(conversation.messages, conversation.tools)
                results.append(self._marked(conversation, checked_text(text, "the conversation")))
            except RowRefused as refusal:
                results.append(refusal)
        return results

    def render_prompt(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> str:
        """The text after which the model is to answer."""
        return self._template.apply(messages, tools, add_generation_prompt=True)

    def _marked(self, conversation: Conversation, text: str) -> RenderedText:
        """The trained spans of a conversation in its rendered text."""
        messages = conversation.messages
        chosen = self._chosen_turns(conversation)
        turns = self._shapes.find(conversation, text)
        if turns is None:
            turns = find_turns(self._template, conversation, text)
            self._shapes.learn(conversation, text, turns)
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
        return RenderedText(text=text, trained_spans=tuple(spans), notes=turns.notes)

    def _chosen_turns(self, conversation: Conversation) -> list[int]:
        """Indices of the messages that are trained.

        Raises:
            RowRefused: `no_answer` if there is none, `no_prompt` if one of them begins the conversation.
        """
        turns = [index for index, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        if self._only_last_turn:
            turns = turns[-1:]
        turns = [index for index in turns if index not in conversation.untrained]
        if not turns:
            raise RowRefused("no_answer", "none of the assistant's turns is to be trained")
        if turns[0] == 0:
            raise RowRefused("no_prompt", "the assistant speaks first: there is nothing that it answers")
        return turns

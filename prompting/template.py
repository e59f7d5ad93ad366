"""A tokenizer's chat template: applying it, and what it writes around an answer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from prompting.messages import RowRefused
from sft_errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "Zqxj"
"""A content that no template holds by itself."""
_ERRORS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""Templates are programs in somebody else's hands: what they raise is about the conversation that they were given."""

_TAG = re.compile(r"<[^<>\s]{1,40}>")
_EXCHANGE = ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": _PROBE})

Messages = Sequence[Mapping[str, Any]]


class ChatTemplate:
    """A chat template in use: texts of conversations, and the end that it writes behind an answer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        """Args:
            tokenizer: with a chat template.

        Raises:
            ConfigError: if the template cannot render a plain exchange of a question and an answer.
        """
        self._tokenizer = tokenizer
        self._call_arguments_are_text = False
        added = tokenizer.added_tokens_decoder.values()
        self.specials = {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)} - {""}
        longest_first = sorted(self.specials, key=len, reverse=True)
        self._special_token = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self.tail = self._find_tail()
        """All that it writes behind a last answer."""
        self.end_marker = self.tail[: self.end_in(self.tail)] if self.tail.strip() else ""
        """The part of it that ends the answer (`<|im_end|>`); empty if the template ends it with nothing."""
        self.opener_that_ends = "" if self.end_marker else self._find_opener()
        """Where nothing else ends an answer: the special token with which the next turn of the user begins."""

    def apply(self, messages: Messages, tools: Sequence[Any] | None, *, add_generation_prompt: bool = False) -> str:
        """The text of a conversation.

        Raises:
            RowRefused: `template_refused`.
        """
        try:
            return self._apply_any_arguments(messages, tools, add_generation_prompt)
        except _ERRORS as error:
            raise RowRefused("template_refused", f"the chat template refuses it: {_one_line(error)}") from None

    def apply_to_all(self, conversations: Sequence[Messages]) -> list[str | RowRefused]:
        """The texts of conversations without tools; for each that the template refuses, the reason."""
        try:
            # One call for many conversations spares most of what a call costs.
            return self._tokenizer.apply_chat_template(
                [_plain(messages) for messages in conversations], tokenize=False, add_generation_prompt=False
            )
        except _ERRORS:
            results: list[str | RowRefused] = []
            for messages in conversations:
                try:
                    results.append(self.apply(messages, None))
                except RowRefused as refusal:
                    results.append(refusal)
            return results

    def end_in(self, text: str) -> int:
        """Where the end of an answer stops in what is written behind it: behind the last special token, else behind
        all but white space; behind the white space where there is nothing else."""
        ends = [found.end() for found in self._special_token.finditer(text)]
        return ends[-1] if ends else len(text.rstrip()) or len(text)

    def marker_at(self, text: str, position: int) -> str:
        """The special token, or what looks like one (`<|user|>`), that begins there; empty if none does."""
        found = self._special_token.match(text, position) or _TAG.match(text, position)
        return found.group() if found else ""

    def end_tokens(self) -> list[str]:
        """The special tokens that end an answer, those of the end marker first."""
        tokens = self._special_token.findall(self.end_marker)
        if self.end_marker.strip() and not tokens:
            tokens = [self.end_marker.strip()]
        return tokens + [self.opener_that_ends] * bool(self.opener_that_ends)

    def whole_up_to(self, text: str, start: int, end: int) -> int:
        """The last place from `start` to `end` that cuts neither a special token, nor `<tag>`, nor `[tag]`, nor a word.

        Two texts that are alike up to `end` may part in the middle of a marker: what is alike of it means nothing.
        """
        for found in self._special_token.finditer(text, start):
            if found.start() >= end:
                break
            if found.end() > end:
                end = found.start()
        for opening, closing in ("<>", "[]"):
            begun = text.rfind(opening, start, end)
            if begun >= 0 and closing not in text[begun:end] and closing in text[end : end + 40]:
                end = begun
        while start < end < len(text) and text[end - 1].isalnum() and text[end].isalnum():
            end -= 1
        return end

    def _apply_any_arguments(self, messages: Messages, tools: Sequence[Any] | None, add_generation_prompt: bool) -> str:
        """Most templates take a call's arguments as an object, some only as JSON text: those fail on an object."""
        has_calls = any(message.get("tool_calls") for message in messages)
        if not (has_calls and self._call_arguments_are_text):
            try:
                return self._apply(messages, tools, add_generation_prompt)
            except _ERRORS:
                if not has_calls:
                    raise
        text = self._apply([_with_text_arguments(message) for message in messages], tools, add_generation_prompt)
        self._call_arguments_are_text = True
        return text

    def _apply(self, messages: Messages, tools: Sequence[Any] | None, add_generation_prompt: bool) -> str:
        return self._tokenizer.apply_chat_template(
            _plain(messages),
            tools=list(tools) if tools else None,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )

    def _find_opener(self) -> str:
        try:
            text = self._apply([*_EXCHANGE, {"role": "user", "content": "Hello"}], None, False)
        except _ERRORS:
            return ""
        return self.marker_at(text, text.rfind(_PROBE) + len(_PROBE))

    def _find_tail(self) -> str:
        try:
            try:
                text = self._apply(_EXCHANGE, None, False)
            except _ERRORS:
                # Some templates insist on a system turn.
                text = self._apply([{"role": "system", "content": "Help."}, *_EXCHANGE], None, False)
        except _ERRORS as error:
            raise ConfigError(
                f"chat_template: it cannot render a question and its answer: {_one_line(error)}. Mend it, or choose "
                "another with chat_template."
            ) from None
        _, probe, tail = text.rpartition(_PROBE)
        if not probe:
            raise ConfigError("chat_template: it does not write the assistant's content. Mend it, or choose another.")
        return tail


def _plain(messages: Messages) -> list[dict[str, Any]]:
    return [dict(message) for message in messages]


def _with_text_arguments(message: Mapping[str, Any]) -> dict[str, Any]:
    if not message.get("tool_calls"):
        return dict(message)
    calls = []
    for call in message["tool_calls"]:
        arguments = call["function"]["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append({**call, "function": {**call["function"], "arguments": text}})
    return {**message, "tool_calls": calls}


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:120]

"""A tokenizer's chat template: apply it, and find what it writes around an answer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from jinja2 import TemplateError

from sft.common.errors import ConfigError
from sft.prompting.control_tokens import special_tokens
from sft.prompting.limits import check_length, template_limits
from sft.prompting.messages import RowRefused

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE, _NEXT = "Zqxj", "Wvyk"
"""Contents that no template contains."""
_PART = "is_text_part"
"""A key in a content part. A template that writes it does not support parts, it prints their Python representation."""
_ERRORS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    SyntaxError,
    AssertionError,
)
"""Templates are third-party programs: any of these exceptions is about the conversation that they received."""

_TAG = r"<[^<>\s]{1,40}>"
"""Looks like a special token (`<|user|>`), whether or not the tokenizer knows it."""
_BRACKETS = r"\[[^\[\]\s]{1,40}\]"
_QUESTION = {"role": "user", "content": "Hello"}
_ANSWER = {"role": "assistant", "content": _PROBE}

Messages = Sequence[Mapping[str, Any]]


class ChatTemplate:
    """A chat template: the texts of conversations, and the end that it writes after an answer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", kwargs: Mapping[str, Any] | None = None):
        """
        Args:
            tokenizer: A tokenizer with a chat template.
            kwargs: Arguments that the template gets every time.

        Raises:
            ConfigError: If the template cannot render a question and an answer within the limits.
        """
        self._tokenizer = tokenizer
        self._kwargs = dict(kwargs or {})
        self._contents_are_parts = False
        self.source = str(tokenizer.chat_template)
        """Its program text; of several templates, all."""
        known = [re.escape(token) for token in sorted(special_tokens(tokenizer), key=len, reverse=True)]
        self._special_token = re.compile("|".join(known) or "(?!)")
        self._marker = re.compile("|".join([*known, _TAG]))
        self._atom = re.compile("|".join([*known, _TAG, _BRACKETS, r"\w+"]))
        with template_limits(tokenizer):
            self.tail, before = self._find_tail()
            """The text that it writes after a last answer."""
            between = self._after_probe([*before, _QUESTION, _ANSWER, {"role": "user", "content": _NEXT}])
            between = between.partition(_NEXT)[0]
            self._openings = self._find_openings(before)
            asked, prompt, answered = self._around_question(before)
            self.next_header = self._find_next_header(between, asked, prompt)
            """The part of the tail that begins another answer: some templates end every conversation like a prompt."""
            asked_common = common_length(asked.removesuffix(self.next_header), prompt, 0)
            answered_common = common_length(answered, prompt, 0)
            header_start = self.last_boundary(prompt, 0, asked_common)
            self.header = prompt[header_start : self.last_boundary(prompt, 0, answered_common)]
            """The text that begins an answer, both in a prompt and in a conversation."""
            self.end_marker = ""
            tail = self.tail.removesuffix(self.next_header)
            self.end_marker = tail[: self.end_in(tail)] if tail.strip() else ""
            """The part of the tail that ends the answer (`<|im_end|>`); empty if there is none."""
            self.end_by_opener = "" if self.end_marker else self.marker_at(between.lstrip(), 0)
            """If there is no end marker: the marker that begins the next turn, and so ends an answer."""

    def apply(self, messages: Messages, tools: Sequence[Any] | None, *, add_generation_prompt: bool = False) -> str:
        """The text of a conversation.

        Raises:
            RowRefused: `template_refused`.
        """
        try:
            return self._apply_any_arguments(messages, tools, add_generation_prompt)
        except _ERRORS as error:
            raise RowRefused("template_refused", f"the chat template raised an error: {_one_line(error)}") from None

    def apply_to_all(self, conversations: Sequence[Messages]) -> list[str | RowRefused]:
        """The texts of conversations without tools, or why the template refuses them."""
        try:
            # One call for many conversations avoids most of the overhead of a call.
            texts = self._tokenizer.apply_chat_template(
                [self._plain(messages) for messages in conversations],
                **self._kwargs,
                tokenize=False,
                add_generation_prompt=False,
            )
            for messages, text in zip(conversations, texts, strict=True):
                check_length(self._tokenizer, text, messages, None)
            return cast("list[str | RowRefused]", texts)
        except _ERRORS:
            results: list[str | RowRefused] = []
            for messages in conversations:
                try:
                    results.append(self.apply(messages, None))
                except RowRefused as refusal:
                    results.append(refusal)
            return results

    def end_in(self, text: str) -> int:
        """Length of the end of an answer in the text that follows it.

        It extends through the end marker or the last special token; without these, through the last character that is
        not white space, or through all white space if there is nothing else.
        """
        stripped = len(text.rstrip()) or len(text)
        if self.end_marker and text.rstrip().endswith(self.end_marker.strip()):
            return stripped
        ends = [found.end() for found in self._special_token.finditer(text)]
        return ends[-1] if ends else stripped

    def end_before_header(self, first: str, second: str) -> str:
        """The end of an answer, from two texts that begin with it and continue with headers of different roles.

        Headers of all roles may share their beginning (`<|im_start|>`), which is found among the openings of texts.
        """
        shared = first[: self.last_boundary(first, 0, common_length(first, second, 0))]
        ends = [found.end() for found in self._marker.finditer(shared)]
        end = shared[: ends[-1]] if ends else ""
        for opening in self._openings:
            if end.endswith(opening) and end.removesuffix(opening).strip():
                return end.removesuffix(opening)
        return end

    def marker_at(self, text: str, position: int) -> str:
        """The special token, or text that looks like one (`<|user|>`), at a position; empty if there is none."""
        found = self._marker.match(text, position)
        return found.group() if found else ""

    def end_tokens(self) -> list[str]:
        """The tokens that end an answer, those of the end marker first."""
        tokens = self._special_token.findall(self.end_marker)
        if self.end_marker.strip() and not tokens:
            tokens = [self.end_marker.strip()]
        return tokens + [self.end_by_opener] * bool(self.end_by_opener)

    def last_boundary(self, text: str, start: int, end: int) -> int:
        """The last position from `start` to `end` that splits no special token, `<tag>`, `[tag]` or word.

        Two texts that are equal up to `end` may differ from the middle of a marker on; its common part means nothing.
        """
        for found in self._atom.finditer(text, start):
            if found.end() > end:
                return min(end, found.start())
        return end

    def _apply_any_arguments(self, messages: Messages, tools: Sequence[Any] | None, add_generation_prompt: bool) -> str:
        """Pass arguments of tool calls as objects, or as JSON text if the template fails on objects."""
        try:
            return self._apply(messages, tools, add_generation_prompt)
        except _ERRORS:
            if not any(message.get("tool_calls") for message in messages):
                raise
        return self._apply([_with_text_arguments(message) for message in messages], tools, add_generation_prompt)

    def _apply(self, messages: Messages, tools: Sequence[Any] | None, add_generation_prompt: bool) -> str:
        text = self._tokenizer.apply_chat_template(
            self._plain(messages),
            **self._kwargs,
            tools=list(tools) if tools else None,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
        check_length(self._tokenizer, cast(str, text), messages, tools)
        return cast(str, text)

    def _plain(self, messages: Messages) -> list[dict[str, Any]]:
        if not self._contents_are_parts:
            # Not copied: the environment of templates does not let them change a message.
            return cast("list[dict[str, Any]]", list(messages))
        return [{**m, "content": [{"type": "text", "text": m["content"], _PART: True}]} for m in messages]

    # What the template writes around an answer

    def _find_tail(self) -> tuple[str, Messages]:
        """The tail, and the messages required before a question: some templates need a system message.

        Templates of vision models may accept contents only as lists of parts.
        """
        problem = ""
        for before in ((), ({"role": "system", "content": "Help."},)):
            for self._contents_are_parts in (False, True):
                try:
                    text = self._apply([*before, _QUESTION, _ANSWER], None, False)
                except _ERRORS as error:
                    problem = problem or f"it cannot render a question and an answer: {_one_line(error)}"
                    continue
                _, probe, tail = text.rpartition(_PROBE)
                if probe and _PART not in text:
                    return tail, before
                problem = problem or "it does not write the assistant's content"
        raise ConfigError(f"chat_template: {problem}. Fix it, or choose another with chat_template.")

    def _after_probe(self, messages: Messages, *, add_generation_prompt: bool = False) -> str:
        try:
            return self._apply(messages, None, add_generation_prompt).rpartition(_PROBE)[2]
        except _ERRORS:
            return ""

    def _find_openings(self, before: Messages) -> list[str]:
        """The markers at the beginning of a text: begin-of-text, what begins every turn, or both."""
        try:
            text = self._apply([*before, _QUESTION], None, True).lstrip()
        except _ERRORS:
            return []
        first = self.marker_at(text, 0)
        second = self.marker_at(text[len(first) :].lstrip(), 0) if first else ""
        return [marker for marker in (first, second) if marker and marker != self._tokenizer.eos_token]

    def _around_question(self, before: Messages) -> tuple[str, str, str]:
        """The text after a question at the end of a conversation, at the end of a prompt, and before an answer."""
        question = {"role": "user", "content": _PROBE}
        answer = {"role": "assistant", "content": _NEXT}
        return (
            self._after_probe([*before, question]),
            self._after_probe([*before, question], add_generation_prompt=True),
            self._after_probe([*before, question, answer]).partition(_NEXT)[0],
        )

    def _find_next_header(self, between: str, asked: str, prompt: str) -> str:
        end = self.end_before_header(self.tail, between)
        further = self.tail.removeprefix(end)
        is_always_there = end and asked.endswith(further) and prompt.startswith(asked)
        is_end_of_text = not further.strip() or (self._tokenizer.eos_token or "\0") in further
        return further if is_always_there and not is_end_of_text else ""


def common_length(first: str, second: str, offset: int) -> int:
    """Length of the common prefix of `first` and `second[offset:]`."""
    if second.startswith(first, offset):
        return len(first)
    limit = min(len(first), len(second) - offset)
    return next((i for i in range(limit) if first[i] != second[offset + i]), limit)


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

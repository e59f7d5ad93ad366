"""Record formats: the columns of each format, and the conversion of its records to conversations.

The format of a dataset is chosen once, by its columns: the first one in `FORMATS` whose columns all exist.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sft.common.data_records import Conversation
from sft.prompting.given_tokens import MASKS, given_tokens
from sft.prompting.messages import (
    RowRefused,
    checked_text,
    content_text,
    conversation_of,
    kind_of,
    openai_messages,
    sharegpt_messages,
    text_field,
)

UNANSWERABLE = "unanswerable"
"""Reason of a refusal: a question without an answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordFormat:
    """A layout of training examples as records."""

    name: str
    columns: frozenset[str]
    """Required columns."""
    optional: frozenset[str] = frozenset()
    """Optional columns that it reads."""
    convert: Callable[[Mapping[str, Any]], Conversation]
    """Converts a record to a conversation; raises RowRefused."""
    description: str
    has_unanswerable: bool = False
    """Whether rows may be questions without an answer."""

    is_tokenized: bool = False
    """Whether its rows are token ids."""

    @property
    def is_chat(self) -> bool:
        return self.name != "text" and not self.is_tokenized


def find_format(columns: Collection[str]) -> RecordFormat | None:
    """The format of a dataset with these columns, or None."""
    return next((known for known in FORMATS if known.columns <= set(columns)), None)


def with_answer_to_unanswerable(record_format: RecordFormat, answer: str | None) -> RecordFormat:
    """The format with an answer to questions that have none; unchanged if all of its questions have one."""
    if answer is None or not record_format.has_unanswerable:
        return record_format
    return replace(record_format, convert=partial(_from_squad, unanswerable=answer))


def format_named(name: str) -> RecordFormat:
    """The format of that name."""
    return next(known for known in FORMATS if known.name == name)


def _from_messages(record: Mapping[str, Any]) -> Conversation:
    messages = openai_messages(record.get("messages"))
    return conversation_of(_with_system(record, messages, "messages"), "messages", _tools(record))


def _from_conversations(record: Mapping[str, Any]) -> Conversation:
    messages = sharegpt_messages(record.get("conversations"))
    return conversation_of(_with_system(record, messages, "conversations"), "conversations", _tools(record))


def _from_squad(record: Mapping[str, Any], unanswerable: str | None = None) -> Conversation:
    """A question about a context. `unanswerable` is the answer if the row says that the context has none."""
    context, question = text_field(record, "context"), text_field(record, "question")
    answers = _squad_answers(record.get("answers"))
    if isinstance(answers, list | tuple) and not answers:
        if unanswerable is None:
            raise RowRefused(UNANSWERABLE, "'answers' is empty: the question has no answer in its context (SQuAD 2.0)")
        return _exchange(record, f"{context}\n\n{question}", unanswerable)
    return _exchange(record, f"{context}\n\n{question}", _first_answer(answers))


def _from_alpaca(record: Mapping[str, Any]) -> Conversation:
    instruction = text_field(record, "instruction")
    further = text_field(record, "input", required=False)
    prompt = f"{instruction}\n\n{further}" if further.strip() else instruction
    return _exchange(record, prompt, text_field(record, "output", answer=True))


def _from_prompt_completion(record: Mapping[str, Any]) -> Conversation:
    """Prompt and completion, as text or as lists of messages. Assistant messages in a prompt are not trained.

    Raises:
        RowRefused: `wrong_type` if one of them says that it is trained, or another field is not as expected.
    """
    if isinstance(record.get("prompt"), list) or isinstance(record.get("completion"), list):
        prompt = [_as_context(message, i) for i, message in enumerate(openai_messages(record.get("prompt"), "prompt"))]
        messages = (*_with_system(record, prompt, "prompt"), *openai_messages(record.get("completion"), "completion"))
        return conversation_of(messages, "completion", _tools(record))
    return _exchange(record, text_field(record, "prompt"), text_field(record, "completion", answer=True))


def _as_context(message: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    """A message of a prompt, which is not trained."""
    if message.get("train"):
        raise RowRefused("wrong_type", f"prompt[{index}]: a message of a prompt is context and cannot be trained")
    return {**message, "train": False} if message["role"] == "assistant" else message


def _from_question_answer(record: Mapping[str, Any]) -> Conversation:
    return _exchange(record, text_field(record, "question"), text_field(record, "answer", answer=True))


def _from_input_output(record: Mapping[str, Any]) -> Conversation:
    return _exchange(record, text_field(record, "input"), text_field(record, "output", answer=True))


def _from_text(record: Mapping[str, Any]) -> Conversation:
    value = record.get("text")
    if isinstance(value, str) and not value.strip():
        raise RowRefused("empty_text", "'text' is empty")
    return Conversation(text=text_field(record, "text"))


FORMATS = (
    RecordFormat(
        name="input_ids",
        columns=frozenset({"input_ids"}),
        optional=frozenset({"labels", "attention_mask", *MASKS}),
        convert=given_tokens,
        description=f"input_ids (+ labels, {', '.join(MASKS)})",
        is_tokenized=True,
    ),
    RecordFormat(
        name="messages",
        columns=frozenset({"messages"}),
        optional=frozenset({"system", "tools"}),
        convert=_from_messages,
        description='messages: [{"role": "user", "content": ...}, ...]',
    ),
    RecordFormat(
        name="conversations",
        columns=frozenset({"conversations"}),
        optional=frozenset({"system", "tools"}),
        convert=_from_conversations,
        description='conversations: [{"from": "human", "value": ...}, ...]',
    ),
    RecordFormat(
        name="squad",
        columns=frozenset({"context", "question", "answers"}),
        optional=frozenset({"system"}),
        convert=_from_squad,
        description="context + question + answers",
        has_unanswerable=True,
    ),
    RecordFormat(
        name="alpaca",
        columns=frozenset({"instruction", "output"}),
        optional=frozenset({"input", "system"}),
        convert=_from_alpaca,
        description="instruction (+ input) + output",
    ),
    RecordFormat(
        name="prompt_completion",
        columns=frozenset({"prompt", "completion"}),
        optional=frozenset({"system", "tools"}),
        convert=_from_prompt_completion,
        description="prompt + completion",
    ),
    RecordFormat(
        name="question_answer",
        columns=frozenset({"question", "answer"}),
        optional=frozenset({"system"}),
        convert=_from_question_answer,
        description="question + answer",
    ),
    RecordFormat(
        name="input_output",
        columns=frozenset({"input", "output"}),
        optional=frozenset({"system"}),
        convert=_from_input_output,
        description="input + output",
    ),
    RecordFormat(
        name="text",
        columns=frozenset({"text"}),
        convert=_from_text,
        description="text (every token is trained)",
    ),
)


def _exchange(record: Mapping[str, Any], prompt: str, answer: str) -> Conversation:
    turns = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    return Conversation(messages=(*_system(record), *turns))


def _system(record: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The system turn of the column `system`: text, or a list of text parts."""
    text = content_text({"content": record.get("system")}, "'system'", may_be_null=True)
    return ({"role": "system", "content": text},) if text.strip() else ()


def _with_system(
    record: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], name: str
) -> Sequence[Mapping[str, Any]]:
    """The messages after the system turn of the column `system`, which they may repeat.

    Raises:
        RowRefused: `two_system_prompts` if they begin with another system turn.
    """
    system = _system(record)
    if not system or messages[0]["role"] != "system":
        return (*system, *messages)
    if messages[0]["content"].strip() != system[0]["content"].strip():
        raise RowRefused(
            "two_system_prompts",
            f"the column 'system' and the system turn {name}[0] have different texts; keep one of them",
        )
    return messages


def _tools(record: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """The tools that the assistant may call, as objects. Some exports store the list as JSON text."""
    tools = record.get("tools")
    if not tools:
        return None
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise RowRefused("wrong_type", "'tools' is text that is not JSON") from None
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowRefused("wrong_type", f"'tools' must be a list of objects, found {kind_of(tools)}")
    return tuple(tools) or None


def _squad_answers(answers: Any) -> Any:
    """The texts of SQuAD's `{"text": [...]}`; a list of texts or of such objects is accepted too."""
    if isinstance(answers, str):
        with suppress(ValueError, RecursionError):  # CSV keeps the object as JSON text
            parsed = json.loads(answers)
            answers = parsed if isinstance(parsed, dict | list) else answers
    return answers.get("text") if isinstance(answers, Mapping) else answers


def _first_answer(answers: Any) -> str:
    first = answers[0] if isinstance(answers, list | tuple) else answers
    if isinstance(first, Mapping):
        first = first.get("text")
    if first is None:
        raise RowRefused("empty_answer", "'answers' contains no answer")
    if not isinstance(first, str):
        raise RowRefused("wrong_type", f"'answers' must contain text, found {kind_of(first)}")
    if not first.strip():
        raise RowRefused("empty_answer", "'answers' begins with an empty answer")
    return checked_text(first, "answers")

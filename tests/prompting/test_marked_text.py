"""Long conversations: turns are located with work linear in the messages, where rendered prefixes show them."""

from __future__ import annotations

import random

import pytest

from sft.common.data_records import Conversation
from sft.prompting import marked_text
from sft.prompting.messages import RowRefused
from sft.prompting.rendering import ChatRenderer
from sft.prompting.template import ChatTemplate
from tests.support import messages
from tests.support.chat_templates import ASKS, END, LOOP, TOOL_TURNS, TOOLS, TURNS
from tests.support.prompts import FAMILIES

NUMBERED = LOOP + "[Round {{ loop.index0 // 2 }}] <|{{ m.role }}|>{{ m.content }}<|end|>" + END
TEMPLATES = {
    **TURNS,
    **{f"tools: {name}": template for name, template in TOOL_TURNS.items()},
    **{name: template for name, (template, *_) in FAMILIES.items()},
    "numbered": NUMBERED + ASKS + "<|assistant|>{% endif %}",
    "trims": LOOP + "<|{{ m.role }}|>{{ m.content | trim }}<|end|>" + END + ASKS + "<|assistant|>{% endif %}",
    "shouts": LOOP
    + "<|{{ m.role }}|>{{ m.content | replace(' ', '_') }}<|end|>"
    + END
    + ASKS
    + "<|assistant|>{% endif %}",
}


def conversation(kind: str, count: int) -> Conversation:
    """About `count` messages; equal ones for the same arguments."""
    rng = random.Random(f"{kind} {count}")

    def text() -> str:
        words = " ".join(rng.choice("q a1 <b> é user | ok don't".split()) for _ in range(rng.randint(1, 4)))
        return words + ("\n" if kind == "edges" and rng.random() < 0.3 else "")

    messages = []
    while len(messages) < count:
        messages.append({"role": "user", "content": text()})
        if kind == "tools" and rng.random() < 0.4:
            function = {"name": "look", "arguments": {"a": text(), "n": rng.randint(1, 99)}}
            messages.append(
                {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
            )
            messages.append({"role": "tool", "content": text()})
        answer = {"role": "assistant", "content": text()}
        if kind == "thoughts" and rng.random() < 0.5:
            answer["content"] = f"<think>\n{text()}\n</think>\n\n{answer['content']}"
        messages.append(answer)
    return Conversation(messages=tuple(messages), tools=TOOLS if kind == "tools" else None)


def outcome(tokenizer, row: Conversation):
    try:
        return ChatRenderer(tokenizer).render(row)
    except RowRefused as refusal:
        return refusal.problem


@pytest.mark.parametrize("name", TEMPLATES)
def test_turns_are_where_rendered_prefixes_show_them(data_with_template, name, monkeypatch):
    tokenizer = data_with_template(TEMPLATES[name])
    for kind in ("plain", "edges", "thoughts", "tools"):
        row = conversation(kind, 40)
        monkeypatch.setattr(marked_text, "RENDERED_MESSAGES", 1000)
        expected = outcome(tokenizer, row)
        monkeypatch.setattr(marked_text, "RENDERED_MESSAGES", 8)
        assert outcome(tokenizer, row) == expected, kind


@pytest.mark.parametrize("kind", ["plain", "thoughts", "tools"])
@pytest.mark.parametrize("name", ["plain", "hints", "prompt_thinks", "returns", "numbered", "history_without_thoughts"])
def test_the_work_is_linear_in_the_messages(data_with_template, name, kind, monkeypatch):
    rendered = []
    apply = ChatTemplate.apply

    def counted(self, messages, tools, **options):
        rendered[-1] += len(messages)
        return apply(self, messages, tools, **options)

    monkeypatch.setattr(ChatTemplate, "apply", counted)
    tokenizer = data_with_template(TEMPLATES[name])
    for count in (100, 400):
        rendered.append(0)
        outcome(tokenizer, conversation(kind, count))
    assert rendered[1] < 100 * 400  # all prefixes: at least 400 * 400 / 2 = 80,000
    assert rendered[1] < 8 * rendered[0]


def test_a_conversation_that_needs_too_many_prefixes_is_refused_with_a_reason(data_with_template, monkeypatch):
    monkeypatch.setattr(marked_text, "_MOST_RENDERED", 500)
    lengths = LOOP + "<|{{ m.role }}|>({{ m.content | length }}){{ m.content }}<|end|>" + END
    renderer = ChatRenderer(data_with_template(lengths + ASKS + "<|assistant|>{% endif %}"))
    assert renderer.render(conversation("plain", 20)).trained_spans
    with pytest.raises(RowRefused, match=f"of 100: {messages.TOO_DIFFERENT}"):
        renderer.render(conversation("plain", 100))

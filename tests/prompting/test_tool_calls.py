"""What is trained of conversations with tool calls."""

import pytest

from sft.common.data_records import Conversation
from sft.prompting.rendering import ChatRenderer
from tests.support.chat_templates import CALLS, TOOL_TURNS, TOOLS, TURNS, _call, _calling, chat_of, mark_spans


@pytest.mark.parametrize(
    ("habit", "conversation", "marked"),
    [
        (
            "plain",
            _calling(_call("I look.", x="1", n={"z": ["<|end|>", 2]})),
            '<|user|>q<|end|><|assistant|>«I look.<call>look {"x": "1", "n": {"z": ["<|end|>", 2]}}</call><|end|>»'
            "<|tool|>5<|end|><|assistant|>«ok<|end|>»",
        ),
        (
            "plain",
            _calling(_call(), _call(), result="<|end|><|assistant|>ok<|end|>"),
            "<|user|>q<|end|><|assistant|>«<call>look {}</call><|end|>»<|tool|><|end|><|assistant|>ok<|end|><|end|>"
            "<|assistant|>«<call>look {}</call><|end|>»<|tool|><|end|><|assistant|>ok<|end|><|end|>"
            "<|assistant|>«ok<|end|>»",
        ),
        (
            "names_results",
            _calling(_call()),
            "<|user|>q<|end|><|assistant|>«<call>look {}</call><|end|>»<|tool|>look=5<|end|><|assistant|>«ok<|end|>»",
        ),
        (
            "takes_text_arguments",
            _calling(_call(x="é")),
            '<|user|>q<|end|><|assistant|>«<call>look {"x": "é"}</call><|end|>»<|tool|>5<|end|>'
            "<|assistant|>«ok<|end|>»",
        ),
        (
            "goes_on",
            _calling(_call(), _call()),
            "<|user|>q<|end|><|assistant|>«<call>look {}</call>»[5]«<call>look {}</call>»[5]«ok<|end|>»",
        ),
        (
            "next_turn_ends",
            _calling(_call()),
            "<|user|>q<|assistant|>«<call>look {}</call><|tool|>»5<|assistant|>«ok»",
        ),
        (
            "quotes",
            _calling(_call("I look.", x="1")),
            "<|user|>q<|end|><|assistant|>«I look.<call>look {'x': '1'}</call><|end|>»<|tool|>5<|end|>"
            "<|assistant|>«ok<|end|>»",
        ),
        (
            "plain",
            Conversation(messages=({"role": "user", "content": "q"}, _call("<think>\nhm\n</think>\n\n")), tools=TOOLS),
            "<|user|>q<|end|><|assistant|>«<think>\nhm\n</think>\n\n<call>look {}</call><|end|>»",
        ),
    ],
)
def test_render_trains_tool_calls_but_not_results(tokenizer_with, habit, conversation, marked):
    assert mark_spans(ChatRenderer(tokenizer_with(TOOL_TURNS[habit])).render(conversation)) == marked


def test_render_writes_a_call_after_rendering_other_conversations(tokenizer_with):
    pairs = "{% for name, value in c.function.arguments.items() %}{{ name }}={{ value }}{% endfor %}"
    either = "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}" + pairs + "{% endif %}"
    calls = "{% for c in m.tool_calls or [] %}{{ c.function.name }} " + either + "{% endfor %}"
    renderer = ChatRenderer(tokenizer_with(TOOL_TURNS["plain"].replace(CALLS, calls)))
    question, listing = {"role": "user", "content": "q"}, _call()
    listing["tool_calls"][0]["function"]["arguments"] = [1]
    for _ in range(2):
        rendered = renderer.render(Conversation(messages=(question, _call(x="1"))))
        assert mark_spans(rendered) == "<|user|>q<|end|><|assistant|>«look x=1<|end|>»"
        rendered = renderer.render(Conversation(messages=(question, listing)))
        assert mark_spans(rendered) == "<|user|>q<|end|><|assistant|>«look [1]<|end|>»"


def test_render_notes_omitted_content_beside_a_call(tokenizer_with):
    renderer = ChatRenderer(tokenizer_with(TOOL_TURNS["drops_text"]))
    rendered = renderer.render(_calling(_call("I look.")))
    assert mark_spans(rendered) == (
        "<|user|>q<|end|><|assistant|>«<call>look {}</call><|end|>»<|tool|>5<|end|><|assistant|>«ok<|end|>»"
    )
    assert rendered.notes == ("content_left_out",)
    assert renderer.render(_calling(_call("<think>hm</think>"))).notes == ("thoughts_left_out",)
    assert renderer.render(_calling(_call())).notes == ()


def test_render_notes_omitted_tools(tokenizer_with):
    conversation = chat_of("q", "a", tools=({"type": "function", "function": {"name": "look_up"}},))
    assert ChatRenderer(tokenizer_with(TURNS["plain"])).render(conversation).notes == ("tools_left_out",)

"""What is trained of a conversation, by chat templates that each have one habit which could lead a masker astray.

The templates are written for these tests. Expected texts are literal, with the trained characters in «».
"""

import random

import pytest

import sft.prompting.rendering
from sft.common.data_records import Conversation
from sft.common.errors import ConfigError
from sft.data.rows import NOTE_FLAGS
from sft.prompting.messages import RowRefused
from sft.prompting.rendering import ChatRenderer
from sft.prompting.turns import NOTES
from tests.support.parts import build_tokenizer

LOOP = "{% for m in messages %}"
END = "{% endfor %}"
ASKS = "{% if add_generation_prompt %}"
CALLS = (
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>"
    "{% endfor %}"
)
TURNS = {
    "plain": LOOP + "<|{{ m.role }}|>{{ m.content }}<|end|>" + END + ASKS + "<|assistant|>{% endif %}",
    # The prompt's header is there whether it is asked for or not.
    "always_asks": LOOP + "<|start|>{{ m.role }}<|sep|>{{ m.content }}<|end|>" + END + "<|start|>assistant<|sep|>",
    "always_asks_briefly": LOOP + "<|{{ m.role }}|>{{ m.content }}<|end|>" + END + "<|assistant|>",
    # An answer that ends the conversation has another end than others.
    "returns": LOOP + "<|start|>{{ m.role }}<|say|>{{ m.content }}{% if loop.last and m.role == 'assistant' and not "
    "add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}" + END + ASKS + "<|start|>assistant{% endif %}",
    "ends_between": LOOP + "<|start|>{{ m.role }}\n{{ m.content }}{{ '\n<|end|>\n' if not loop.last or "
    "add_generation_prompt }}" + END + ASKS + "<|start|>assistant\n{% endif %}",
    # Nothing but the next turn ends an answer.
    "next_turn_ends": LOOP + "<|{{ m.role }}|>\n{{ m.content }}" + END + ASKS + "<|assistant|>{% endif %}",
    "words_only": LOOP + "### {{ m.role }}:\n{{ m.content }}\n" + END + ASKS + "### assistant:\n{% endif %}",
    # The prompt has other white space than the conversation.
    "spaced_prompt": LOOP + "{{ '\n\n' }}### {{ m.role }}:\n{{ m.content }}<|end|>" + END + ASKS + "### assistant:\n"
    "{% endif %}",
    # The last question gets a hint.
    "hints": LOOP + "<|{{ m.role }}|>{{ m.content }}{{ ' /brief' if loop.last and m.role == 'user' }}<|end|>" + END
    + ASKS + "<|assistant|>{% endif %}",
    # The prompt begins thoughts that no answer of the conversation has.
    "prompt_thinks": LOOP + "<|{{ m.role }}|>{{ m.content }}<|end|>" + END + ASKS + "<|assistant|><think>\n{% endif %}",
    "history_without_thoughts": LOOP + "<|{{ m.role }}|>{% if m.role == 'assistant' %}{% if loop.last %}<think>"
    "{{ m.reasoning_content or '' }}</think>{% endif %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}"
    "{% endif %}<|end|>" + END + ASKS + "<|assistant|>{% endif %}",
    "trims_answers": LOOP + "<|{{ m.role }}|>{{ m.content | trim if m.role == 'assistant' else m.content }}<|end|>\n"
    + END + ASKS + "<|assistant|>{% endif %}",
    # A special token with a bracket in it.
    "brackets": LOOP + "[~[{{ m.role }}\n{{ m.content }}[~]\n" + END + ASKS + "[~[assistant\n{% endif %}",
    "parts": LOOP + "<|{{ m.role }}|>{% for part in m.content %}{{ part.text }}{% endfor %}<|end|>" + END
    + ASKS + "<|assistant|>{% endif %}",
    # Turns of one role in a row are one turn.
    "merges": LOOP + "{% if loop.first or m.role != loop.previtem.role %}<|{{ m.role }}|>{% endif %}{{ m.content }}"
    "{% if loop.last or m.role != loop.nextitem.role %}<|end|>{% endif %}" + END + ASKS + "<|assistant|>{% endif %}",
    # With a prompt it leaves a last answer open.
    "goes_on": LOOP + "<|{{ m.role }}|>{{ m.content }}{% if not (loop.last and add_generation_prompt and m.role == "
    "'assistant') %}<|end|>{% endif %}{% if loop.last and add_generation_prompt and m.role != 'assistant' %}"
    "<|assistant|>{% endif %}" + END,
    # A question is looked at before it is written.
    "looks": LOOP + "<|{% if m.content.startswith('<result>') %}tool{% else %}{{ m.role }}{% endif %}|>{{ m.content }}"
    "<|end|>" + END + ASKS + "<|assistant|>{% endif %}",
    "compares": LOOP + "<|{{ m.role }}|>{{ 'nothing' if m.content == 'x' else m.content }}<|end|>" + END
    + ASKS + "<|assistant|>{% endif %}",
    # It takes no conversation of an odd number of turns, unless as a prompt.
    "pairs": "{% if messages | length % 2 and not add_generation_prompt %}{{ raise_exception('no') }}{% endif %}"
    + LOOP + "<|{{ m.role }}|>{{ m.content }}<|end|>" + END + ASKS + "<|assistant|>{% endif %}",
}  # fmt: skip
MARKERS = ["<|user|>", "<|assistant|>", "<|system|>", "<|start|>", "<|sep|>", "<|end|>", "<|return|>", "<|say|>"]
MARKERS += ["<|tool|>", "[~[", "[~]"]


@pytest.fixture(scope="module")
def tokenizers():
    """One that knows the templates' markers as special tokens, and one that does not."""
    own = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    knowing, other = build_tokenizer(None, **own), build_tokenizer(None, **own)
    knowing.add_special_tokens({"additional_special_tokens": MARKERS})
    return {"known": knowing, "unknown": other}


@pytest.fixture(params=["known", "unknown"])
def tokenizer_with(request, tokenizers):
    """A tokenizer by its template; all of them knowing its markers, or not."""

    def build(template):
        tokenizer = tokenizers[request.param]
        tokenizer.chat_template = template
        return tokenizer

    return build


def _chat(*contents, roles="ua", **options):
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    roles = (roles * len(contents))[: len(contents)]
    messages = tuple({"role": names[role], "content": content} for role, content in zip(roles, contents, strict=True))
    return Conversation(messages=messages, **options)


def _marked(rendered):
    text = rendered.text
    for start, end in reversed(rendered.trained_spans):
        text = f"{text[:start]}«{text[start:end]}»{text[end:]}"
    return text


TWO = ("Hi", "Yes", "Bye", "No")
WHOLE = {
    "plain": "<|user|>Hi<|end|><|assistant|>«Yes<|end|>»<|user|>Bye<|end|><|assistant|>«No<|end|>»",
    "always_asks": "<|start|>user<|sep|>Hi<|end|><|start|>assistant<|sep|>«Yes<|end|>»<|start|>user<|sep|>Bye<|end|>"
    "<|start|>assistant<|sep|>«No<|end|>»<|start|>assistant<|sep|>",
    "always_asks_briefly": "<|user|>Hi<|end|><|assistant|>«Yes<|end|>»<|user|>Bye<|end|><|assistant|>«No<|end|>»"
    "<|assistant|>",
    "returns": "<|start|>user<|say|>Hi<|end|><|start|>assistant«<|say|>Yes<|end|>»<|start|>user<|say|>Bye<|end|>"
    "<|start|>assistant«<|say|>No<|return|>»",
    "ends_between": "<|start|>user\nHi\n<|end|>\n<|start|>assistant\n«Yes\n<|end|>»\n<|start|>user\nBye\n<|end|>\n"
    "<|start|>assistant\n«No»",
    "next_turn_ends": "<|user|>\nHi<|assistant|>«\nYes<|user|>»\nBye<|assistant|>«\nNo»",
    "words_only": "### user:\nHi\n### assistant:\n«Yes\n»### user:\nBye\n### assistant:\n«No\n»",
    "spaced_prompt": "\n\n### user:\nHi<|end|>\n\n### assistant:\n«Yes<|end|>»\n\n### user:\nBye<|end|>\n\n"
    "### assistant:\n«No<|end|>»",
    "hints": "<|user|>Hi<|end|><|assistant|>«Yes<|end|>»<|user|>Bye<|end|><|assistant|>«No<|end|>»",
    "prompt_thinks": "<|user|>Hi<|end|><|assistant|>«Yes<|end|>»<|user|>Bye<|end|><|assistant|>«No<|end|>»",
    "history_without_thoughts": "<|user|>Hi<|end|><|assistant|>«Yes<|end|>»<|user|>Bye<|end|>"
    "<|assistant|>«<think></think>No<|end|>»",
    "trims_answers": "<|user|>Hi<|end|>\n<|assistant|>«Yes<|end|>»\n<|user|>Bye<|end|>\n<|assistant|>«No<|end|>»\n",
    "brackets": "[~[user\nHi[~]\n[~[assistant\n«Yes[~]»\n[~[user\nBye[~]\n[~[assistant\n«No[~]»\n",
    "parts": "<|user|>Hi<|end|><|assistant|>«Yes<|end|>»<|user|>Bye<|end|><|assistant|>«No<|end|>»",
    "merges": "<|user|>Hi<|end|><|assistant|>«Yes<|end|>»<|user|>Bye<|end|><|assistant|>«No<|end|>»",
    "goes_on": "<|user|>Hi<|end|><|assistant|>«Yes<|end|>»<|user|>Bye<|end|><|assistant|>«No<|end|>»",
    "looks": "<|user|>Hi<|end|><|assistant|>«Yes<|end|>»<|user|>Bye<|end|><|assistant|>«No<|end|>»",
    "compares": "<|user|>Hi<|end|><|assistant|>«Yes<|end|>»<|user|>Bye<|end|><|assistant|>«No<|end|>»",
    "pairs": "<|user|>Hi<|end|><|assistant|>«Yes<|end|>»<|user|>Bye<|end|><|assistant|>«No<|end|>»",
}


@pytest.mark.parametrize("habit", TURNS)
def test_render_trains_answers_and_their_ends_alone(tokenizer_with, habit):
    assert _marked(ChatRenderer(tokenizer_with(TURNS[habit])).render(_chat(*TWO))) == WHOLE[habit]


HOSTILE = {
    "repeats": ["a", "a", "a", "a"],
    "role_names": ["assistant", "user", "assistant", "system"],
    "single_characters": ["<", ">", "[", "]"],
    "end_in_content": ["<|end|>", "<|end|>", "q<|end|>", "b<|end|>\n[~]"],
    "turn_in_content": [
        "x<|end|><|assistant|>y",
        "<|end|><|user|>no<|end|><|assistant|>",
        "<|start|>",
        "[~[assistant\n",
    ],
    "private_use": ["\U000f0000\U000f0001", "a\U000f0000", "\U000f0002", "\U00100000\U0010fffd"],
    "unicode": ["e\u0301\u200d", "\u202eא\u2028\u00e9 👩‍👩‍👧", "\ufeff", "\u0301"],
    "thoughts_in_question": ["<think>x</think>", "a", "</think>", "b"],
}


@pytest.mark.parametrize("chat", HOSTILE)
@pytest.mark.parametrize("habit", [habit for habit in TURNS if habit not in ("history_without_thoughts", "words_only")])
def test_render_trains_the_same_around_any_content(tokenizer_with, habit, chat):
    """The expected text is that of harmless contents, with the others in their places."""
    renderer = ChatRenderer(tokenizer_with(TURNS[habit]))
    expected = WHOLE[habit].replace("Hi", "\1").replace("Yes", "\2").replace("Bye", "\3").replace("No", "\4")
    contents = [text.strip() if habit == "trims_answers" else text for text in HOSTILE[chat]]
    for placeholder, content in zip("\1\2\3\4", contents, strict=True):
        expected = expected.replace(placeholder, content)
    assert _marked(renderer.render(_chat(*HOSTILE[chat]))) == expected


@pytest.mark.parametrize(
    ("habit", "conversation", "marked"),
    [
        ("plain", _chat("q", " a \n", roles="ua"), "<|user|>q<|end|><|assistant|>« a \n<|end|>»"),
        ("trims_answers", _chat(" q", " a \n"), "<|user|> q<|end|>\n<|assistant|>«a<|end|>»\n"),
        ("plain", _chat("q", "a", "r"), "<|user|>q<|end|><|assistant|>«a<|end|>»<|user|>r<|end|>"),
        ("plain", _chat("", "a", " "), "<|user|><|end|><|assistant|>«a<|end|>»<|user|> <|end|>"),
        (
            "plain",
            _chat("s", "q", "a", "t", "r", "b", roles="suasua"),
            "<|system|>s<|end|><|user|>q<|end|><|assistant|>«a<|end|>»<|system|>t<|end|><|user|>r<|end|>"
            "<|assistant|>«b<|end|>»",
        ),
        (
            "plain",
            _chat("q", "a", "b", roles="uaa"),
            "<|user|>q<|end|><|assistant|>«a<|end|>»<|assistant|>«b<|end|>»",
        ),
        ("merges", _chat("q", "a", " b", roles="uaa"), "<|user|>q<|end|><|assistant|>«a»« b<|end|>»"),
        (
            "goes_on",
            _chat("q", "a", "b", roles="uaa"),
            "<|user|>q<|end|><|assistant|>«a<|end|>»<|assistant|>«b<|end|>»",
        ),
        (
            "looks",
            _chat("<result>5</result>", "a", "<result>", "b"),
            "<|tool|><result>5</result><|end|><|assistant|>«a<|end|>»<|tool|><result><|end|><|assistant|>«b<|end|>»",
        ),
        (
            "compares",
            _chat("x", "a", "y", "b"),
            "<|user|>nothing<|end|><|assistant|>«a<|end|>»<|user|>y<|end|><|assistant|>«b<|end|>»",
        ),
        (
            "prompt_thinks",
            _chat("q", "<think>\nhm</think>a", "r", "<think>hm</think>b"),
            "<|user|>q<|end|><|assistant|><think>\n«hm</think>a<|end|>»<|user|>r<|end|>"
            "<|assistant|>«<think>hm</think>b<|end|>»",
        ),
        (
            "history_without_thoughts",
            _chat("q", "<think>a"),
            "<|user|>q<|end|><|assistant|>«<think></think><think>a<|end|>»",
        ),
    ],
)  # fmt: skip
def test_render_trains_turns_of_other_shapes(tokenizer_with, habit, conversation, marked):
    assert _marked(ChatRenderer(tokenizer_with(TURNS[habit])).render(conversation)) == marked


def test_render_finds_every_turn_of_a_long_conversation(tokenizer_with):
    conversation = _chat(*(str(number % 7) for number in range(100)))
    rendered = ChatRenderer(tokenizer_with(TURNS["plain"])).render(conversation)
    answers = [rendered.text[start:end] for start, end in rendered.trained_spans]
    assert answers == [f"{number % 7}<|end|>" for number in range(1, 100, 2)]


def test_render_notes_thoughts_that_are_left_out(tokenizer_with):
    renderer = ChatRenderer(tokenizer_with(TURNS["history_without_thoughts"]))
    thinks = {"role": "assistant", "content": "a", "reasoning_content": "hm"}
    messages = ({"role": "user", "content": "q"}, thinks)
    whole = renderer.render(Conversation(messages=messages))
    assert (_marked(whole), whole.notes) == ("<|user|>q<|end|><|assistant|>«<think>hm</think>a<|end|>»", ())
    history = renderer.render(Conversation(messages=messages * 2))
    assert _marked(history) == (
        "<|user|>q<|end|><|assistant|>«a<|end|>»<|user|>q<|end|><|assistant|>«<think>hm</think>a<|end|>»"
    )
    assert history.notes == ()
    gone = renderer.render(_chat("q", "<think>ho</think>a", "r", "b"))
    assert gone.notes == ("thoughts_left_out",)
    assert set(NOTES) == set(NOTE_FLAGS)


# Tools

TOOLS = ({"type": "function", "function": {"name": "look", "parameters": {}}},)
TOOL_TURNS = {
    "plain": LOOP + "<|{{ m.role }}|>{{ m.content }}" + CALLS + "<|end|>" + END + ASKS + "<|assistant|>{% endif %}",
    # A result is written with the name that the call has.
    "names_results": LOOP + "<|{{ m.role }}|>{% if m.role == 'tool' %}{{ messages[loop.index0 - 1].tool_calls[0]"
    ".function.name }}={% endif %}{{ m.content }}" + CALLS + "<|end|>" + END + ASKS + "<|assistant|>{% endif %}",
    "drops_text": LOOP + "<|{{ m.role }}|>{% if m.tool_calls %}" + CALLS + "{% else %}{{ m.content }}{% endif %}<|end|>"
    + END + ASKS + "<|assistant|>{% endif %}",
    "takes_text_arguments": LOOP + "<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ '<call>' + c.function.name + ' ' + c.function.arguments + '</call>' }}{% endfor %}<|end|>" + END
    + ASKS + "<|assistant|>{% endif %}",
    # After a result an answer has no header, though the prompt has one.
    "goes_on": LOOP + "{% if loop.first or m.role == 'user' or loop.previtem.role == 'user' %}<|{{ m.role }}|>"
    "{% endif %}{{ '[' + m.content + ']' if m.role == 'tool' else m.content }}" + CALLS + "{% if m.role == 'user' or "
    "m.role == 'assistant' and loop.last %}<|end|>{% endif %}" + END + ASKS + "<|assistant|>{% endif %}",
    "next_turn_ends": LOOP + "<|{{ m.role }}|>{{ m.content }}" + CALLS + END + ASKS + "<|assistant|>{% endif %}",
    # Arguments are written in a way that no mark survives.
    "quotes": LOOP + "<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} "
    "{{ c.function.arguments | string }}</call>{% endfor %}<|end|>" + END + ASKS + "<|assistant|>{% endif %}",
    "drops_calls": LOOP + "<|{{ m.role }}|>{{ m.content }}<|end|>" + END + ASKS + "<|assistant|>{% endif %}",
    # A text beside a call comes behind the result, once there is one.
    "moves_text": LOOP + "<|{{ m.role }}|>{% if m.tool_calls %}" + CALLS + "{{ m.content if loop.last }}{% else %}"
    "{{ m.content }}{% endif %}"
    "{% if m.role == 'tool' %}{{ loop.previtem.content }}{% endif %}<|end|>" + END + ASKS + "<|assistant|>{% endif %}",
}  # fmt: skip


def _call(text="", **arguments):
    function = {"name": "look", "arguments": arguments}
    return {"role": "assistant", "content": text, "tool_calls": [{"type": "function", "function": function}]}


def _calling(*calls, result="5"):
    messages = [{"role": "user", "content": "q"}]
    for call in calls:
        messages += [call, {"role": "tool", "content": result}]
    return Conversation(messages=(*messages, {"role": "assistant", "content": "ok"}), tools=TOOLS)


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
)  # fmt: skip
def test_render_trains_calls_and_no_results(tokenizer_with, habit, conversation, marked):
    assert _marked(ChatRenderer(tokenizer_with(TOOL_TURNS[habit])).render(conversation)) == marked


def test_render_writes_a_call_whatever_was_rendered_before(tokenizer_with):
    pairs = "{% for name, value in c.function.arguments.items() %}{{ name }}={{ value }}{% endfor %}"
    either = "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}" + pairs + "{% endif %}"
    calls = "{% for c in m.tool_calls or [] %}{{ c.function.name }} " + either + "{% endfor %}"
    renderer = ChatRenderer(tokenizer_with(TOOL_TURNS["plain"].replace(CALLS, calls)))
    question, listing = {"role": "user", "content": "q"}, _call()
    listing["tool_calls"][0]["function"]["arguments"] = [1]
    for _ in range(2):
        rendered = renderer.render(Conversation(messages=(question, _call(x="1"))))
        assert _marked(rendered) == "<|user|>q<|end|><|assistant|>«look x=1<|end|>»"
        rendered = renderer.render(Conversation(messages=(question, listing)))
        assert _marked(rendered) == "<|user|>q<|end|><|assistant|>«look [1]<|end|>»"


def test_render_notes_a_text_beside_a_call_that_is_left_out(tokenizer_with):
    renderer = ChatRenderer(tokenizer_with(TOOL_TURNS["drops_text"]))
    rendered = renderer.render(_calling(_call("I look.")))
    assert _marked(rendered) == (
        "<|user|>q<|end|><|assistant|>«<call>look {}</call><|end|>»<|tool|>5<|end|><|assistant|>«ok<|end|>»"
    )
    assert rendered.notes == ("content_left_out",)
    assert renderer.render(_calling(_call("<think>hm</think>"))).notes == ("thoughts_left_out",)
    assert renderer.render(_calling(_call())).notes == ()


def test_render_notes_tools_that_are_left_out(tokenizer_with):
    conversation = _chat("q", "a", tools=({"type": "function", "function": {"name": "look_up"}},))
    assert ChatRenderer(tokenizer_with(TURNS["plain"])).render(conversation).notes == ("tools_left_out",)


@pytest.mark.parametrize(
    ("reason", "template", "conversation", "message"),
    [
        (
            "tool_calls_left_out",
            TOOL_TURNS["drops_calls"],
            _calling(_call("I look.")),
            "the chat template does not write its",
        ),
        (
            "tool_calls_left_out",
            TOOL_TURNS["drops_calls"],
            _calling(_call()),
            "the chat template does not write its tool calls",
        ),
        (
            "turn_not_found",
            TOOL_TURNS["moves_text"],
            _calling(_call("I look.")),
            "the chat template writes another message inside it",
        ),
        (
            "turn_not_found",
            LOOP + "{{ m.content[:4] }}|" + END,
            _chat("q", "long text"),
            "the chat template omits its end",
        ),
        (
            "turn_not_found",
            LOOP + "{{ '\n' + m.role }}: {{ m.content }}" + END + ASKS + "What?{% endif %}",
            _chat("q", "a"),
            r"the conversation does not continue with the prompt's 'What\?'",
        ),
        (
            "turn_not_found",
            LOOP + "{{ m.content }}{{ m.content | length }}" + END,
            _chat("q", "ab"),
            "cannot be located in the output",
        ),
    ],
)
def test_render_refuses_a_turn_of_which_it_cannot_tell(tokenizer_with, reason, template, conversation, message):
    renderer = ChatRenderer(tokenizer_with(template))
    with pytest.raises(RowRefused, match=f"message 2: .*{message}") as caught:
        renderer.render(conversation)
    assert caught.value.problem.reason == reason


# Which turns


def test_render_trains_the_last_turn_alone_if_told(tokenizer_with):
    renderer = ChatRenderer(tokenizer_with(TURNS["plain"]), only_last_turn=True)
    text = "<|user|>q<|end|><|assistant|>a<|end|><|user|>r<|end|><|assistant|>«b<|end|>»"
    assert _marked(renderer.render(_chat("q", "a", "r", "b"))) == text
    assert _marked(renderer.render(_chat("q", "a", "r", "b", "s"))) == text + "<|user|>s<|end|>"
    with pytest.raises(RowRefused) as caught:
        renderer.render(_chat("q", "a", "r", "b", untrained=frozenset({3})))
    assert caught.value.problem.reason == "no_answer"


def test_render_leaves_out_the_turns_that_the_row_leaves_out(tokenizer_with):
    renderer = ChatRenderer(tokenizer_with(TURNS["plain"]))
    for _ in range(2):  # by marks, then by the shape
        rendered = renderer.render(_chat("q", "a", "r", "b", untrained=frozenset({1})))
        assert _marked(rendered) == "<|user|>q<|end|><|assistant|>a<|end|><|user|>r<|end|><|assistant|>«b<|end|>»"
    first = _chat("a", "q", "b", roles="aua", untrained=frozenset({0}))
    assert _marked(renderer.render(first)) == "<|assistant|>a<|end|><|user|>q<|end|><|assistant|>«b<|end|>»"


def test_render_is_not_held_up_by_a_turn_that_is_not_trained(tokenizer_with):
    moves = tokenizer_with(TOOL_TURNS["moves_text"])
    conversation = _calling(_call("I look."))
    end = "<|tool|>5I look.<|end|><|assistant|>«ok<|end|>»"
    assert _marked(ChatRenderer(moves, only_last_turn=True).render(conversation)).endswith(end)


@pytest.mark.parametrize(
    ("habit", "marked"),
    [
        ("next_turn_ends", "<|user|>\nHi<|assistant|>«\nYes<|user|>»\nBye<|assistant|>«\nNo</s>»"),
        ("words_only", "### user:\nHi\n### assistant:\n«Yes\n»### user:\nBye\n### assistant:\n«No\n</s>»"),
        ("plain", WHOLE["plain"]),
    ],
)
def test_render_adds_an_end_where_the_template_has_none(tokenizer_with, habit, marked):
    renderer = ChatRenderer(tokenizer_with(TURNS[habit]), add_end_token=True)
    for _ in range(2):
        assert _marked(renderer.render(_chat(*TWO))) == marked
    assert not _marked(renderer.render(_chat(*TWO, "q"))).endswith("</s>")


def test_chat_renderer_refuses_a_template_that_shows_parts_as_they_are_in_memory(tokenizer_with):
    with pytest.raises(ConfigError, match="it does not write the assistant's content"):
        ChatRenderer(tokenizer_with(LOOP + "{{ m.content[:3] }}" + END))


def test_end_token_ids_are_those_of_the_end_and_of_the_text(tokenizers):
    tokenizer = tokenizers["known"]
    end, back, user, eos = tokenizer.convert_tokens_to_ids(["<|end|>", "<|return|>", "<|user|>", "</s>"])
    expected = {"plain": [end, eos], "returns": [back, eos], "next_turn_ends": [user, eos], "ends_between": [end, eos]}
    for habit, ids in expected.items():
        tokenizer.chat_template = TURNS[habit]
        assert ChatRenderer(tokenizer).end_token_ids() == ids, habit


# The quick way


def _random_content(rng):
    pieces = ["a", "b c", " ", "\n", "Hello", "<think>", "</think>", "<think>\n", "<result>", "\u00a0", "x", *MARKERS]
    if rng.random() < 0.5:
        return rng.choice(["Hi", "Well, well.", "x"])
    return "".join(rng.choice(pieces) for _ in range(rng.randint(1, 5)))


@pytest.mark.parametrize("habit", TURNS)
def test_render_of_a_known_shape_equals_that_of_a_new_one(tokenizer_with, habit):
    """What was rendered before changes nothing."""
    rng = random.Random(habit)
    tokenizer = tokenizer_with(TURNS[habit])
    used = ChatRenderer(tokenizer)
    for _ in range(60):
        roles = rng.choice(["ua", "sua", "uaua", "uaa", "uau"])
        conversation = _chat(*(_random_content(rng) for _ in roles), roles=roles)
        (quick,), (fresh,) = used.render_all([conversation]), ChatRenderer(tokenizer).render_all([conversation])
        if isinstance(fresh, RowRefused):
            assert quick.problem == fresh.problem
        else:
            assert quick == fresh


def test_render_all_looks_at_each_shape_once(tokenizer_with, monkeypatch):
    looked_at = []
    find_turns = sft.prompting.rendering.find_turns
    monkeypatch.setattr(
        sft.prompting.rendering,
        "find_turns",
        lambda template, conversation, text: looked_at.append(text) or find_turns(template, conversation, text),
    )
    renderer = ChatRenderer(tokenizer_with(TURNS["plain"]))
    rows = [_chat(f"q{number}", f"a{number}") for number in range(20)] + [_chat("q", "a", "r", "b")] * 5
    rendered = renderer.render_all(rows)
    assert len(looked_at) == 2
    assert [_marked(row) for row in rendered[:20]] == [
        f"<|user|>q{number}<|end|><|assistant|>«a{number}<|end|>»" for number in range(20)
    ]

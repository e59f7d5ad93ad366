"""Records to text and trained characters, for templates of several families, and text to tokens and labels.

The templates are written for these tests; each has the one habit of its family that could lead a masker astray.
"""

import pickle

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sft.common.data_records import Conversation, RenderedText
from sft.common.errors import ConfigError
from sft.prompting.formats import FORMATS, find_format
from sft.prompting.messages import RowRefused, openai_messages, sharegpt_messages
from sft.prompting.rendering import ChatRenderer, render_text
from sft.prompting.templates import resolve_chat_template, shipped_template_names
from sft.prompting.tokenizing import RowTokenizer

SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|header|>", "<|end_header|>", "<|eot|>", "<start_of_turn>"]
SPECIALS += ["<end_of_turn>", "[INST]", "[/INST]", "<|user|>", "<|assistant|>", "<|end|>"]
CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|header|>' + m.role + '<|end_header|>\n\n' + m.content | trim }}"
    "{{ '<|eot|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|header|>assistant<|end_header|>\n\n' }}{% endif %}"
)
MODEL_ROLE = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
EOS_AT_THE_END = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
STRIPS_THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% set answer = m.content.split('</think>')[-1] %}"
    "{% if m.role != 'assistant' %}{{ m.content }}{% elif not loop.last %}{{ answer | trim }}"
    "{% elif '</think>' in m.content %}{{ m.content }}{% else %}{{ '<think>\n\n</think>\n\n' + m.content }}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ '\n<call>' + call.function.name + '</call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PROMPT_THINKS = CHATML.replace("assistant\n'", "assistant\n<think>\n'")
FAMILIES = {
    "chatml": (CHATML, "{}<|im_end|>", ""),
    "headers": (HEADERS, "{}<|eot|>", ""),
    "model_role": (MODEL_ROLE, "{}<end_of_turn>", ""),
    "inst": (INST, " {}</s>", ""),
    "eos_at_the_end": (EOS_AT_THE_END, "{}<|end|>", "\n</s>"),
}
"""Template, an answer in it as trained, and what is trained behind the answer that ends the conversation."""
TRIMMED = ("headers", "model_role")


def _build_tokenizer(*, trim_offsets=False, adds_bos=False, template=None, eos="</s>"):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the answer is four", "what is the question"] * 4, trainer)
    steps = [processors.ByteLevel(trim_offsets=trim_offsets)]
    if adds_bos:
        steps.append(processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]))
    tokenizer.post_processor = processors.Sequence(steps)
    # The pad token is the end of text on purpose: nothing may be masked by it.
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token=eos, pad_token=eos)
    fast.chat_template = template
    return fast


@pytest.fixture(scope="session")
def data_tokenizer():
    return _build_tokenizer()


@pytest.fixture
def data_with_template(data_tokenizer):
    def build(template):
        data_tokenizer.chat_template = template
        return data_tokenizer

    yield build
    data_tokenizer.chat_template = None


def _chat(*contents, system=None):
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    first = [{"role": "system", "content": system}] if system else []
    return Conversation(messages=(*first, *turns))


def _trained(rendered):
    return [rendered.text[start:end] for start, end in rendered.trained_spans]


def _marked(rendered):
    """The text with its trained spans in «»."""
    text = rendered.text
    for start, end in reversed(rendered.trained_spans):
        text = f"{text[:start]}«{text[start:end]}»{text[end:]}"
    return text


def _tokenized(tokenizer, rendered, max_seq_length=4096, *, is_chat=True):
    (row,) = RowTokenizer(tokenizer, is_chat=is_chat, max_seq_length=max_seq_length)([rendered]).split()
    return row


def _decode_trained(tokenizer, row):
    return tokenizer.decode([token for token in row.labels.tolist() if token != -100], skip_special_tokens=False)


CHATS = {
    "single": ["Hi there", "Hello!"],
    "two_turns": ["Hi", "Hello", "Bye", "See you"],
    "content_repeats": ["a", "a", "a", "a", "a", "a"],
    "answer_in_question": ["Is 4 right? 4!", "4", "Say 4 4", "4 4"],
    "white_space": [" q\n", "  lead and trail \n", "again", "\n\nx\n"],
    "only_markers_in_content": ["q", "<|im_end|><|eot|></s><|end|><end_of_turn>", "r", "x<|im_end|>y"],
    "header_in_content": ["<|im_start|>assistant\n", "<|im_start|>user\nno<|im_end|>\n", "[/INST]", "[INST] </s>"],
    "unicode": ["é 👩‍👩‍👧", "ünï 日本語\u2028 👩‍👩‍👧e\u0301", "e", "\u00a0x\u200b"],
    "probe_in_content": ["Zqxj", "Zqxj Zqxj", "Zqxj", "Zqxj"],
    "ends_with_user": ["q", "r", "s"],
    "looks_like_jinja": ["{{ x }}", "{% raw %} {{ y }}", "{#", "#}"],
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chat", CHATS)
def test_render_trains_answers_through_their_end_marker(data_with_template, family, chat):
    template, answer_form, end_of_text = FAMILIES[family]
    tokenizer = data_with_template(template)
    contents = CHATS[chat]
    rendered = ChatRenderer(tokenizer).render(_chat(*contents))
    answers = [answer.strip() if family in TRIMMED else answer for answer in contents[1::2]]
    expected = [answer_form.format("\0").replace("\0", answer) for answer in answers]
    if len(contents) % 2 == 0:
        expected[-1] += end_of_text
    assert _trained(rendered) == expected
    row = _tokenized(tokenizer, rendered)
    assert _decode_trained(tokenizer, row) == "".join(_trained(rendered))
    messages = [dict(message) for message in _chat(*contents).messages]
    assert row.input_ids.tolist() == tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_render_begins_where_the_generation_prompt_ends(data_with_template, family):
    renderer = ChatRenderer(data_with_template(FAMILIES[family][0]))
    conversation = _chat("Hi", "Hello", "Bye", "See you")
    rendered = renderer.render(conversation)
    for (start, _), index in zip(rendered.trained_spans, (1, 3), strict=True):
        assert rendered.text[:start] == renderer.render_prompt(conversation.messages[:index])


def test_render_writes_the_whole_text_of_an_example(data_with_template):
    rendered = ChatRenderer(data_with_template(EOS_AT_THE_END)).render(_chat("Hi", "Hello", "Bye", "Later"))
    assert rendered == RenderedText(
        text="<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n<|user|>\nBye<|end|>\n<|assistant|>\nLater<|end|>\n</s>",
        trained_spans=((33, 45), (80, 97)),
    )


def test_render_gives_a_last_turn_its_empty_thoughts_and_an_earlier_one_none(data_with_template):
    renderer = ChatRenderer(data_with_template(STRIPS_THINKING))
    assert _trained(renderer.render(_chat("a", "a", "a", "a"))) == ["a<|im_end|>", "<think>\n\n</think>\n\na<|im_end|>"]
    thinking = "<think>\nhm\n</think>\n\nb"
    assert _trained(renderer.render(_chat("a", thinking))) == [thinking + "<|im_end|>"]
    assert _trained(renderer.render(_chat("a", "<|im_end|>", "b", thinking))) == [
        "<|im_end|><|im_end|>",
        thinking + "<|im_end|>",
    ]


def test_render_finds_tool_calls_of_a_template_that_strips_thinking(data_with_template):
    call = {"type": "function", "function": {"name": "look", "arguments": {"x": 1}}}
    messages = (
        {"role": "user", "content": "w?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "5"},
        {"role": "assistant", "content": "It is 5."},
    )
    rendered = ChatRenderer(data_with_template(STRIPS_THINKING)).render(Conversation(messages=messages))
    assert _trained(rendered) == ["\n<call>look</call><|im_end|>", "<think>\n\n</think>\n\nIt is 5.<|im_end|>"]


LATE_SYSTEM = (  # writes the system text into the last question, as some templates do
    "{{ bos_token }}{% set s = messages[0].content if messages[0].role == 'system' else '' %}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + (s if loop.last or loop.index == messages | length - 1 else '') }}"
    "{{ m.content + ' [/INST]' }}{% elif m.role == 'assistant' %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
ENDS_LAST_ONLY = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% if loop.last and m.role == 'assistant' %}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize(
    ("template", "conversation", "marked"),
    [
        (
            STRIPS_THINKING,
            _chat("a", "<think>\nx\n</think>\n\nb", "c", "d"),
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»\n"
            "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n«<think>\n\n</think>\n\nd<|im_end|>»\n",
        ),
        (LATE_SYSTEM, _chat("a", "b", "c", "d", system="S"), "<s>[INST] a [/INST]«b</s>»[INST] Sc [/INST]«d</s>»"),
        (
            PROMPT_THINKS,
            _chat("a", "b", "c", "<think>\nhm\n</think>\nd"),
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»\n"
            "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n<think>\n«hm\n</think>\nd<|im_end|>»\n",
        ),
        (ENDS_LAST_ONLY, _chat("a", "b", "c", "d"), "user: a\nassistant: «b\n»user: c\nassistant: «d\n</s>»"),
    ],
)
def test_render_marks_turns_of_templates_that_treat_the_last_one_otherwise(
    data_with_template, template, conversation, marked
):
    rendered = ChatRenderer(data_with_template(template)).render(conversation)
    assert _marked(rendered) == marked


@pytest.mark.parametrize(
    ("template", "conversation", "reason", "message"),
    [
        (
            MODEL_ROLE,
            _chat("a", "b", system="S"),
            "template_refused",
            "the chat template raised an error: No system role",
        ),
        (
            CHATML,
            Conversation(messages=_chat("a", "b").messages[1:]),
            "no_prompt",
            "the conversation begins with an assistant message",
        ),
        (CHATML, _chat("a", "\ud800"), "not_unicode", "an unpaired surrogate"),
        ("{% for m in messages %}{{ 1 // (m.content | length - 1) }}{{ m.content }}{% endfor %}", _chat("x", "y"))
        + ("template_refused", "division"),
    ],
)
def test_render_refuses_what_it_cannot_tell_apart(data_with_template, template, conversation, reason, message):
    renderer = ChatRenderer(data_with_template(template))
    with pytest.raises(RowRefused, match=message) as caught:
        renderer.render(conversation)
    assert caught.value.problem.reason == reason


@pytest.mark.parametrize(
    ("template", "expected"),
    [(template, form.format("").strip() + end_of_text) for template, form, end_of_text in FAMILIES.values()]
    + [("{% for m in messages %}{{ m.content }}\n\n{% endfor %}", "")]
    + [("{% for m in messages %}{{ m.content }}\n### End\n{% endfor %}", "\n### End")],
)
def test_chat_renderer_knows_the_end_marker(data_with_template, template, expected):
    assert ChatRenderer(data_with_template(template)).end_marker == expected


def test_chat_renderer_works_with_a_template_that_insists_on_a_system_turn(data_with_template):
    insists = "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    renderer = ChatRenderer(data_with_template(insists))
    assert _trained(renderer.render(_chat("a", "b", system="S"))) == ["b<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}", r"chat_template: it cannot render a question and an answer: .*\. Fix it"),
        ("{{ nothing.there }}", r"cannot render a question and an answer: 'nothing' is undefined"),
        ("{{ raise_exception('never') }}", r"cannot render a question and an answer: never"),
        ("hello", r"chat_template: it does not write the assistant's content"),
    ],
)
def test_chat_renderer_refuses_a_broken_template(data_with_template, template, message):
    with pytest.raises(ConfigError, match=message):
        ChatRenderer(data_with_template(template))


def _convert(record):
    return find_format(record).convert(record)


PLAIN_EXPECTED = "User:\nWhat?\n\nAssistant:\nFour</s>\n\n"
CALL = {"name": "f", "arguments": '{"x": 1}'}


@pytest.mark.parametrize(
    ("name", "record", "text", "trained"),
    [
        ("messages", {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Four"}]})
        + (PLAIN_EXPECTED, ["Four</s>"]),
        (
            "messages",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "at?"}]},
                    {"role": "assistant", "content": ["Fo", {"text": "ur"}]},
                ]
            },
            PLAIN_EXPECTED,
            ["Four</s>"],
        ),
        ("messages", {"messages": '[{"role":"user","content":"What?"},{"role":"assistant","content":"Four"}]'})
        + (PLAIN_EXPECTED, ["Four</s>"]),
        ("conversations", {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Four"}]})
        + (PLAIN_EXPECTED, ["Four</s>"]),
        (
            "conversations",
            {"system": "Be.", "conversations": [{"from": "User", "value": "What?"}, {"from": "GPT", "value": "Four"}]},
            "Be.\n\n" + PLAIN_EXPECTED,
            ["Four</s>"],
        ),
        ("alpaca", {"instruction": "What?", "input": "", "output": "Four"}, PLAIN_EXPECTED, ["Four</s>"]),
        ("alpaca", {"instruction": "What?", "output": "Four"}, PLAIN_EXPECTED, ["Four</s>"]),
        ("alpaca", {"instruction": "Wh", "input": "at?", "output": "Four"})
        + ("User:\nWh\n\nat?\n\nAssistant:\nFour</s>\n\n", ["Four</s>"]),
        ("prompt_completion", {"prompt": "What?", "completion": "Four"}, PLAIN_EXPECTED, ["Four</s>"]),
        (
            "prompt_completion",
            {
                "prompt": [{"role": "user", "content": "What?"}],
                "completion": [{"role": "assistant", "content": "Four"}],
            },
            PLAIN_EXPECTED,
            ["Four</s>"],
        ),
        ("question_answer", {"question": "What?", "answer": "Four", "id": 7}, PLAIN_EXPECTED, ["Four</s>"]),
        ("input_output", {"input": "What?", "output": "Four"}, PLAIN_EXPECTED, ["Four</s>"]),
        ("squad", {"context": "C.", "question": "Q?", "answers": {"text": ["Four", "4"], "answer_start": [0, 1]}})
        + ("User:\nC.\n\nQ?\n\nAssistant:\nFour</s>\n\n", ["Four</s>"]),
        ("squad", {"context": "C.", "question": "Q?", "answers": [{"text": "Four"}]})
        + ("User:\nC.\n\nQ?\n\nAssistant:\nFour</s>\n\n", ["Four</s>"]),
        ("text", {"text": " What? "}, " What? ", [" What? "]),
    ],
)
def test_formats_give_the_expected_text_and_trained_characters(data_with_template, name, record, text, trained):
    tokenizer = data_with_template(resolve_chat_template("plain", begins_with_bos=False))
    assert find_format(record).name == name
    conversation = _convert(record)
    is_chat = name != "text"
    rendered = ChatRenderer(tokenizer).render(conversation) if is_chat else render_text(conversation)
    assert rendered.text == text
    assert _trained(rendered) == trained
    row = _tokenized(tokenizer, rendered, is_chat=is_chat)
    assert _decode_trained(tokenizer, row) == "".join(trained) + ("" if is_chat else "</s>")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"messages", "text", "prompt"}, "messages"),
        ({"question", "answers", "context", "title"}, "squad"),
        ({"instruction", "input", "output"}, "alpaca"),
        ({"question", "answer", "text"}, "question_answer"),
        ({"question", "answers"}, None),
        ({"Text"}, None),
        (set(), None),
    ],
)
def test_find_format_goes_by_columns(columns, expected):
    found = find_format(columns)
    assert (found and found.name) == expected


def test_formats_read_only_columns_that_they_name():
    for known in FORMATS:
        seen = set()

        class Recorder(dict):
            def get(self, key, default=None, seen=seen):
                seen.add(key)
                return super().get(key, default)

        turns = [{"role": "user", "content": "x", "from": "human", "value": "x"}]
        turns += [{"role": "assistant", "content": "x", "from": "gpt", "value": "x"}]
        lists = dict.fromkeys(("messages", "conversations"), turns)
        known.convert(Recorder({name: lists.get(name, "x") for name in known.columns}))
        assert known.columns <= seen <= known.columns | known.optional, known.name


U, A = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": []}, "no_answer"),
        ({"messages": None}, "missing_field"),
        ({"messages": 3}, "wrong_type"),
        ({"messages": "hello"}, "wrong_type"),
        ({"messages": DEEP}, "wrong_type"),
        ({"messages": "1" * 5000}, "wrong_type"),
        ({"messages": [U]}, "no_answer"),
        ({"messages": [U, "a"]}, "wrong_type"),
        ({"messages": [U, None]}, "wrong_type"),
        ({"messages": [U, {**A, "content": ""}]}, "empty_answer"),
        ({"messages": [U, {**A, "content": " \n"}]}, "empty_answer"),
        ({"messages": [U, {**A, "content": None}]}, "empty_answer"),
        ({"messages": [U, {**A, "content": []}]}, "empty_answer"),
        ({"messages": [U, {**A, "content": 4}]}, "wrong_type"),
        ({"messages": [U, {**A, "content": {"text": "x"}}]}, "wrong_type"),
        ({"messages": [U, {**A, "content": [{"type": "image_url", "image_url": "x"}]}]}, "wrong_type"),
        ({"messages": [U, {**A, "content": "\udc00"}]}, "not_unicode"),
        ({"messages": [{"role": "user"}, A]}, "missing_field"),
        ({"messages": [{**U, "role": "person"}, A]}, "unknown_role"),
        ({"messages": [{**U, "role": ["user"]}, A]}, "unknown_role"),
        ({"messages": [{**U, "role": None}, A]}, "unknown_role"),
        ({"messages": [{**U, "role": 10**4000}, A]}, "unknown_role"),
        ({"messages": [U, {**A, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}, "wrong_type"),
        ({"messages": [U, {**A, "tool_calls": [{"function": {}}]}]}, "wrong_type"),
        ({"messages": [U, {**A, "tool_calls": ["f"]}]}, "wrong_type"),
        ({"messages": [U, {**A, "tool_calls": 3}]}, "wrong_type"),
        ({"messages": [U, A], "tools": 3}, "wrong_type"),
        ({"messages": [U, A], "tools": "nonsense"}, "wrong_type"),
        ({"messages": [U, A], "tools": DEEP}, "wrong_type"),
        ({"messages": [U, A], "tools": ["x"]}, "wrong_type"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "unknown_role"),
        ({"conversations": [{"value": "x"}]}, "unknown_role"),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": ""}]}, "empty_answer"),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt"}]}, "missing_field"),
        ({"conversations": [{"from": "function_call", "value": "f(x)"}]}, "wrong_type"),
        ({"conversations": [{"from": "human", "value": "x"}], "system": 3}, "wrong_type"),
        ({"question": "q", "answer": ""}, "empty_answer"),
        ({"question": "q", "answer": "\u2003\n"}, "empty_answer"),
        ({"question": "q", "answer": None}, "empty_answer"),
        ({"question": "q", "answer": 4}, "wrong_type"),
        ({"question": "q", "answer": True}, "wrong_type"),
        ({"question": "q", "answer": b"x"}, "wrong_type"),
        ({"question": {"nested": "q"}, "answer": "a"}, "wrong_type"),
        ({"question": " ", "answer": "a"}, "empty_prompt"),
        ({"question": None, "answer": "a"}, "empty_prompt"),
        ({"question": "q\ud83d", "answer": "a"}, "not_unicode"),
        ({"prompt": "p", "completion": [A]}, "wrong_type"),
        ({"prompt": [U], "completion": [U]}, "no_answer"),
        ({"instruction": "i", "input": 3, "output": "o"}, "wrong_type"),
        ({"context": "c", "question": "q", "answers": {"text": []}}, "empty_answer"),
        ({"context": "c", "question": "q", "answers": {"text": [" "]}}, "empty_answer"),
        ({"context": "c", "question": "q", "answers": {}}, "empty_answer"),
        ({"context": "c", "question": "q", "answers": 3}, "wrong_type"),
        ({"context": "c", "question": "q", "answers": [[]]}, "wrong_type"),
        ({"text": ""}, "empty_text"),
        ({"text": "\n\t"}, "empty_text"),
        ({"text": None}, "empty_prompt"),
        ({"text": ["x"]}, "wrong_type"),
    ],
)
def test_formats_refuse_a_record_with_its_reason(record, reason):
    with pytest.raises(RowRefused) as caught:
        _convert(record)
    assert caught.value.problem.reason == reason
    assert "\n" not in caught.value.problem.message
    assert len(caught.value.problem.message) < 200


def test_find_format_convert_names_a_missing_field():
    with pytest.raises(RowRefused, match="no field 'answer'; fields: question, id") as caught:
        find_format({"question", "answer"}).convert({"question": "q", "id": 1})
    assert caught.value.problem.reason == "missing_field"


def test_openai_messages_brings_tool_calls_to_one_form():
    messages = [
        {"role": "user", "content": "u", "name": None},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": CALL}]},
        {"role": "function", "content": "5", "tool_call_id": "c1"},
    ]
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}, "id": "c1"}
    assert openai_messages(messages) == (
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "5", "tool_call_id": "c1"},
    )


@pytest.mark.parametrize(
    ("wishes", "untrained"),
    [
        ([{}, {}], set()),
        ([{"train": False}, {"train": True}], {1}),
        ([{"weight": 0}, {"weight": 1}], {1}),
        ([{"weight": 0.0}, {"weight": None}], {1}),
        ([{"train": True, "weight": 0}, {"train": False, "weight": 0}], {1, 3}),
        ([{}, {"train": False, "content": ""}], {3}),
    ],
)
@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_formats_leave_turns_out_as_the_messages_say(name, wishes, untrained):
    turns = [{"role": "user", "content": "u", "train": False}, A, {"role": "user", "content": "v", "weight": 0}, A]
    turns[1], turns[3] = {**A, **wishes[0]}, {**A, **wishes[1]}
    conversation = _convert({name: turns})
    assert conversation.untrained == untrained
    assert all(set(message) == {"role", "content"} for message in conversation.messages)


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({**U, "train": True}, r"messages\[0\]: only assistant messages can be trained; this one has the role 'user'"),
        ({**U, "weight": 1}, r"messages\[0\]: only assistant messages can be trained; this one has the role 'user'"),
        ({**A, "train": 1}, r"messages\[0\]: train must be true or false, found 1"),
        ({**A, "train": "yes"}, r"messages\[0\]: train must be true or false, found 'yes'"),
        ({**A, "weight": True}, r"messages\[0\]: weight must be 1 or 0, found True"),
        ({**A, "weight": 0.5}, r"messages\[0\]: weight must be 1 or 0, found 0.5"),
    ],
)
def test_openai_messages_refuses_a_wish_that_it_cannot_keep(turn, message):
    with pytest.raises(RowRefused, match=message) as caught:
        openai_messages([turn])
    assert caught.value.problem.reason == "wrong_type"


def test_formats_train_the_completion_alone_of_prompts_with_answers():
    conversation = _convert({"prompt": [U, A, U], "completion": [A, U, A]})
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 3
    assert conversation.untrained == {1}


def test_sharegpt_messages_understands_function_calls_and_roles():
    messages = [
        {"from": "system", "value": "s"},
        {"role": "user", "content": "u"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "5"},
    ]
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert sharegpt_messages(messages) == (
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "5"},
    )


def test_row_refused_travels_between_processes():
    refused = pickle.loads(pickle.dumps(RowRefused("wrong_type", "found a list")))
    assert (refused.problem.reason, refused.problem.message) == ("wrong_type", "found a list")


def _row(tokenizer, text, spans=None, **options):
    return _tokenized(tokenizer, RenderedText(text=text, trained_spans=spans or ((0, len(text)),)), **options)


def test_row_tokenizer_gives_literal_ids_and_labels(data_tokenizer):
    h, i = data_tokenizer.convert_tokens_to_ids(["h", "i"])
    assert (h, i) == (85, 86)
    row = _row(data_tokenizer, "hi<|im_end|>hi</s>", ((2, 14),))
    assert row.input_ids.tolist() == [85, 86, 3, 85, 86, 1]
    assert row.labels.tolist() == [-100, -100, 3, 85, 86, -100]
    assert (row.input_ids.dtype, row.labels.dtype, row.num_supervised) == (np.int32, np.int32, 3)


@pytest.mark.parametrize(
    ("adds_bos", "text", "expected"),
    [
        (False, "hi", [85, 86, 1]),
        (False, "hi</s>", [85, 86, 1]),
        (True, "hi", [0, 85, 86, 1]),
        (True, "<s>hi", [0, 85, 86, 1]),
        (True, "<s>hi</s>", [0, 85, 86, 1]),
        (False, "</s>hi", [1, 85, 86, 1]),
    ],
)
def test_row_tokenizer_completes_plain_text_once(adds_bos, text, expected):
    row = _row(_build_tokenizer(adds_bos=adds_bos), text, is_chat=False)
    assert row.input_ids.tolist() == expected
    assert row.labels.tolist()[1:] == expected[1:]


def test_row_tokenizer_adds_no_begin_of_text_to_a_chat():
    tokenizer = _build_tokenizer(adds_bos=True, template=HEADERS)
    row = _tokenized(tokenizer, ChatRenderer(tokenizer).render(_chat("hi", "hi")))
    assert row.input_ids.tolist().count(0) == 1
    assert row.labels.tolist()[-3:] == [85, 86, 6]


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_row_tokenizer_trains_every_character_of_an_answer(trim_offsets):
    tokenizer = _build_tokenizer(trim_offsets=trim_offsets, template=CHATML)
    answer = " \n\n  the answer\n\n\tis 日本 👩‍👩‍👧 \n "
    row = _tokenized(tokenizer, ChatRenderer(tokenizer).render(_chat("\n hi \n", answer)))
    assert _decode_trained(tokenizer, row) == answer + "<|im_end|>"


def test_row_tokenizer_trains_answers_of_a_tokenizer_that_rewrites_text():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], show_progress=False
    )
    tokenizer.train_from_iterator(["the answer is four é hi ▁the▁answer"] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = INST
    rendered = ChatRenderer(fast).render(_chat("e\u0301 hi", "the e\u0301", "hi", "four"))
    row = _tokenized(fast, rendered)
    trained = [token for token in row.labels.tolist() if token != -100]
    assert "".join(fast.convert_ids_to_tokens(trained)) == "▁the▁é</s>▁four</s>"


@pytest.mark.parametrize(
    ("max_seq_length", "expected"),
    [
        (6, ([85, 86, 85, 86, 1], [-100, -100, 85, 86, 1], False, False)),
        (5, ([85, 86, 85, 86, 1], [-100, -100, 85, 86, 1], False, False)),
        (4, ([85, 86, 85, 86], [-100, -100, 85, 86], True, True)),
        (3, ([85, 86, 85], [-100, -100, 85], True, True)),
        (2, "nothing_left_after_truncation"),
    ],
)
def test_row_tokenizer_cuts_at_the_end_and_says_so(data_tokenizer, max_seq_length, expected):
    row = _row(data_tokenizer, "hihi</s>", ((2, 8),), max_seq_length=max_seq_length)
    if isinstance(expected, str):
        assert row.problem.reason == expected
    else:
        assert (row.input_ids.tolist(), row.labels.tolist(), row.was_truncated, row.lost_end) == expected


def test_row_tokenizer_keeps_the_end_of_a_row_cut_after_its_answer(data_tokenizer):
    row = _row(data_tokenizer, "hihi</s>", ((0, 2),), max_seq_length=3)
    assert (row.was_truncated, row.lost_end) == (True, False)


@pytest.mark.parametrize("spans", [((0, 1),), ((2, 2),)])
def test_row_tokenizer_refuses_a_row_without_a_trained_token(data_tokenizer, spans):
    assert _row(data_tokenizer, "hihi", spans).problem.reason == "nothing_to_train"


def test_resolve_chat_template_takes_name_file_and_text(tmp_path):
    assert shipped_template_names() == ["chatml", "plain"]
    plain = resolve_chat_template("plain", begins_with_bos=False)
    assert resolve_chat_template("plain", begins_with_bos=True) == "{{- bos_token -}}\n" + plain
    assert resolve_chat_template("{{ messages }}", begins_with_bos=True) == "{{ messages }}"
    (tmp_path / "mine.jinja").write_text("mine")
    assert resolve_chat_template(str(tmp_path / "mine.jinja"), begins_with_bos=True) == "mine"
    with pytest.raises(ConfigError, match=r"chat_template: 'chatm' is neither .* Did you mean 'chatml'\?"):
        resolve_chat_template("chatm", begins_with_bos=False)


@pytest.mark.parametrize(
    ("name", "text", "trained"),
    [
        ("plain", "S\n\nUser:\nq\n\nAssistant:\na</s>\n\nUser:\nr\n\nAssistant:\nb</s>\n\n", ["a</s>", "b</s>"]),
        (
            "chatml",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
            "<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n",
            ["a<|im_end|>", "b<|im_end|>"],
        ),
    ],
)
def test_shipped_templates_write_and_train(data_with_template, name, text, trained):
    tokenizer = data_with_template(resolve_chat_template(name, begins_with_bos=False))
    rendered = ChatRenderer(tokenizer).render(_chat("q", "a", "r", "b", system="S"))
    assert (rendered.text, _trained(rendered)) == (text, trained)


@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_formats_keep_tool_calls_beside_a_text(key):
    call = {"type": "function", "function": {"name": "look", "arguments": {"x": 1}}}
    said = {"messages": ("role", "user", "assistant", "content"), "conversations": ("from", "human", "gpt", "value")}
    who, asks, answers, what = said[key]
    turns = [{who: asks, what: "w?"}, {who: answers, what: "I look.", "tool_calls": [call]}]
    silent = [turns[0], {who: answers, what: "", "tool_calls": [call]}]
    old = [turns[0], {who: answers, what: "", "function_call": {"name": "look", "arguments": '{"x": 1}'}}]
    for record in ({key: turns}, {key: silent}, *([{key: old}] if key == "messages" else [])):
        assert _convert(record).messages[1]["tool_calls"] == [call]


def test_render_notes_a_prompt_that_goes_further_also_on_the_quick_path(data_with_template):
    renderer = ChatRenderer(data_with_template(PROMPT_THINKS))
    first, second = renderer.render(_chat("a", "b")), renderer.render(_chat("c", "d"))
    assert first.notes == second.notes == ("prompt_goes_further",)
    assert _trained(second) == ["d<|im_end|>"]

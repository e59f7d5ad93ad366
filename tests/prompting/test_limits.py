"""A chat template ends the run if it does not end itself, wants too much memory, or writes too much."""

from __future__ import annotations

import resource
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from transformers import AutoTokenizer

from sft.common.data_records import Conversation
from sft.common.errors import ConfigError
from sft.common.threads import CHECKPOINT_THREAD
from sft.prompting import limits
from sft.prompting.limits import render_chat, template_limits
from sft.prompting.rendering import ChatRenderer
from tests.support import messages
from tests.support.paths import REPOSITORY
from tests.support.prompts import CHATML, conversation_with, trained_texts

TINY_CHAT = REPOSITORY / "examples" / "tiny-chat"
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
FORK = "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"
ENDLESS = {
    "loops": LOOP,
    "macro that calls itself twice": FORK,
    "recursive loop": "{% for x in [0, 1] recursive %}{% if loop.depth < 60 %}{{ loop([0, 1]) }}{% endif %}"
    + "{% endfor %}",
    "a constant power": "{{ 3 ** (10 ** 9) }}",
    "filters": "{% for i in range(99999) %}{{ range(99999) | map('string') | join | length }}{% endfor %}",
    "only in prompts": "{% if add_generation_prompt %}" + LOOP + "{% endif %}",
}
HUGE = {
    "a constant": "{{ 'a' * 10**10 }}",
    "a variable": "{% set n = 10**10 %}{{ 'a' * n }}",
    "a list": "{% set x = [0] * 10**10 %}",
    "doubling": DOUBLING + "{{ ns.s }}",
    "padding": "{{ 'a'.ljust(10**10) }}",
    "a filter": "{{ 'a' | center(10**10) }}",
    "a format": "{{ '%10000000000d' | format(1) }}",
    "replacing": "{% set s = 'a' * 10**6 %}{{ s | replace('a', s) }}",
}
LONG = {
    "a long text": "{{ 'a' * (2 * 10**6) }}",
    "of its own": "a" * (2 * 10**6),
    "many pieces": "{% for i in range(2000) %}{{ 'a' * 1000 }}{% endfor %}",
}


@pytest.fixture
def short_of_time(monkeypatch):
    monkeypatch.setattr(limits, "_SECONDS", 0.1)


@pytest.fixture
def short_of_memory(monkeypatch):
    monkeypatch.setattr(limits, "_BYTES", 256 << 20)


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_end_is_one_line(data_with_template, short_of_time, name):
    with pytest.raises(ConfigError, match="^chat_template: " + messages.ENDLESS_TEMPLATE.format(seconds=0)) as caught:
        ChatRenderer(data_with_template(ENDLESS[name] + CHATML))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", HUGE)
def test_a_template_that_wants_too_much_memory_is_one_line(data_with_template, short_of_memory, name):
    with pytest.raises(ConfigError, match="^chat_template: " + messages.HUGE_TEMPLATE.format(size=0)):
        ChatRenderer(data_with_template(HUGE[name] + CHATML))


@pytest.mark.parametrize("name", LONG)
def test_a_template_that_writes_too_much_is_one_line(data_with_template, name):
    with pytest.raises(ConfigError, match="^chat_template: " + messages.LONG_TEMPLATE.format(count=r"2,000,\d\d\d")):
        ChatRenderer(data_with_template(LONG[name] + CHATML))


@pytest.mark.parametrize(
    "template",
    [
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "-" * 50_000 + "1 }}",
    ],
    ids=["recursive macro", "range", "nested loops", "nested parentheses", "signs"],
)
def test_a_template_that_python_refuses_is_one_line(data_with_template, template):
    with pytest.raises(
        ConfigError, match="^chat_template: " + messages.pattern(messages.CANNOT_RENDER, error=".*")
    ) as caught:
        ChatRenderer(data_with_template(template + CHATML))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("bad", [LOOP, "{{ 'a' * 10**10 }}", "{{ 'a' * (2 * 10**6) }}"])
@pytest.mark.parametrize("number", [0, 2])
def test_a_row_on_which_a_template_does_not_end_stops_the_run(
    data_with_template, short_of_time, short_of_memory, bad, number
):
    renderer = ChatRenderer(data_with_template("{% if 'STOP' in messages[0].content %}" + bad + "{% endif %}" + CHATML))
    rows = [conversation_with("a", "b") for _ in range(3)]
    rows[number] = conversation_with("STOP", "b")
    with pytest.raises(
        ConfigError,
        match="^chat_template: " + messages.BAD_TEMPLATE,
    ):
        renderer.render_all(rows)
    with pytest.raises(ConfigError):
        renderer.render_prompt(rows[number].messages)
    assert trained_texts(renderer.render(conversation_with("a", "b"))) == ["b<|im_end|>"]


def test_the_message_names_the_folder_of_a_template_that_was_not_set(short_of_time, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((TINY_CHAT / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_bytes((TINY_CHAT / "tokenizer_config.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text(LOOP)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="^chat_template: " + messages.TEMPLATE_OF_FOLDER.format(path=tmp_path)):
        render_chat(tokenizer, [{"role": "user", "content": "a"}])


def test_long_conversations_may_take_longer(data_with_template):
    tokenizer = data_with_template(CHATML)
    long = [Conversation(messages=tuple({"role": r, "content": "x" * 10_000} for r in ("user", "assistant") * 500))]
    seen = []
    with template_limits(tokenizer, [one.messages for one in long]):
        seen.append(signal.getitimer(signal.ITIMER_PROF)[0])
        seen.append(resource.getrlimit(resource.RLIMIT_DATA)[0])
    assert seen[0] > 150
    assert seen[1] > 3 << 30


def test_nothing_is_limited_afterwards(data_with_template, short_of_time):
    before = signal.getsignal(signal.SIGPROF), resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(ConfigError):
        ChatRenderer(data_with_template(LOOP + CHATML))
    ChatRenderer(data_with_template(CHATML)).render(conversation_with("a", "b"))
    assert (signal.getsignal(signal.SIGPROF), resource.getrlimit(resource.RLIMIT_DATA)) == before
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_another_thread_renders_without_a_limit_of_time(data_with_template):
    tokenizer, texts = data_with_template(CHATML), []
    thread = threading.Thread(target=lambda: texts.append(render_chat(tokenizer, [{"role": "user", "content": "a"}])))
    thread.start()
    thread.join()
    assert texts == ["<|im_start|>user\na<|im_end|>\n"]


def test_waiting_is_not_limited(data_with_template, monkeypatch):
    monkeypatch.setattr(limits, "_SECONDS", 0.02)
    with template_limits(data_with_template(CHATML)):
        time.sleep(0.1)
        left, _ = signal.getitimer(signal.ITIMER_PROF)
    assert left > 0


def test_memory_is_not_limited_while_a_thread_writes_checkpoints():
    tokenizer = AutoTokenizer.from_pretrained(TINY_CHAT)
    unlimited = resource.getrlimit(resource.RLIMIT_DATA)
    with ThreadPoolExecutor(1, CHECKPOINT_THREAD) as writer:
        assert writer.submit(len, b"").result() == 0
        with template_limits(tokenizer):
            assert resource.getrlimit(resource.RLIMIT_DATA) == unlimited
    with template_limits(tokenizer):
        assert resource.getrlimit(resource.RLIMIT_DATA) != unlimited

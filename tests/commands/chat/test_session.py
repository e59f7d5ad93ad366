"""Chats in a terminal: history, commands, control characters, Ctrl-C."""

from __future__ import annotations

import io
import os
import pty
import select
import subprocess
import sys
import time

import pytest

from sft.commands.chat.options import Sampling
from sft.commands.chat.responder import Responder
from sft.commands.chat.session import ChatSession, answer_once
from sft.common.text import visible
from tests.support import messages
from tests.support.paths import REPOSITORY
from tests.support.saved_models import ESCAPE, QUESTION, greedy_answer, loaded, save_endless_model


@pytest.mark.parametrize("keeps_history", [True, False])
def test_a_question_is_sent_with_or_without_the_history(model_folder, monkeypatch, keeps_history):
    lines = iter(["Say hello.", QUESTION, "/exit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    heard = []

    class Listening(Responder):
        def answer(self, messages, *further, **named):
            heard.append([message["content"] for message in messages])
            return super().answer(messages, *further, **named)

    model, tokenizer = loaded(model_folder("llama"))
    responder = Listening(model.eval(), tokenizer, name="model", is_chat=True)
    talk = ChatSession([responder], "Be short.", Sampling(max_new_tokens=8), io.StringIO(), keeps_history=keeps_history)
    assert talk.run() == 0
    answer = greedy_answer(model, tokenizer, "Say hello.", system="Be short.").removesuffix("\n")
    before = ["Say hello.", answer] if keeps_history else []
    assert heard == [["Be short.", "Say hello."], ["Be short.", *before, QUESTION]]


def test_control_characters_are_escaped_on_a_terminal_only(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert visible("a\tb\n\x1b[31m\r\u202e\x07") == "a\tb\n\\x1b[31m\\r\\u202e\\x07"
    model, tokenizer = loaded(save_endless_model(tmp_path))
    responder = Responder(model.eval(), tokenizer, name="model", is_chat=True)
    for out, expected in ((Terminal(), "\\x1b[31mred" * 2 + "\n"), (io.StringIO(), ESCAPE * 2 + "\n")):
        answer_once([responder], "Hi", None, Sampling(max_new_tokens=2), out)
        assert out.getvalue() == expected


class InTerminal:
    """The command behind a pseudo-terminal."""

    def __init__(self, *arguments: str):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "chat.py", *arguments],
            cwd=REPOSITORY,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "dumb"},
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)

    def type(self, text: str) -> None:
        time.sleep(0.5)  # Python's readline misses a signal that comes between its prompt and its waiting for input
        os.write(self.master, text.encode())

    def read_until(self, wanted: str, seconds: float = 120) -> str:
        seen, until = "", time.monotonic() + seconds
        while wanted not in seen:
            ready, _, _ = select.select([self.master], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"{wanted!r} did not come; seen: {seen!r}"
            seen += os.read(self.master, 4096).decode("utf-8", errors="replace")
        return seen

    def leave(self) -> int:
        try:
            return self.process.wait(timeout=60)
        finally:
            os.close(self.master)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C on it is a signal to this process


def test_a_chat_in_a_terminal(tmp_path):
    talk = InTerminal(save_endless_model(tmp_path), "--max_new_tokens", "90000", "--device", "cpu", "--system", "Hm.")
    assert messages.CHAT.format(decoding="greedy") in talk.read_until("you> ")
    talk.type("/system\n")
    assert messages.SYSTEM_PROMPT.format(text="Hm.") in talk.read_until("you> ")
    talk.type("/sytsem Be short.\n")
    assert messages.UNKNOWN_COMMAND.format(name="/sytsem") in talk.read_until("you> ")
    talk.type("Say hello.\n")
    seen = talk.read_until("\\x1b[31mred\\x1b[31mred")
    assert "model> " in seen
    talk.type("\x03")
    seen += talk.read_until("you> ")
    assert messages.ANSWER_STOPPED in seen
    assert ESCAPE not in seen
    talk.type("/system Be brief.\n")
    assert messages.NEW_CONVERSATION in talk.read_until("you> ")
    talk.type("\x03")
    assert messages.CTRL_C_AGAIN in talk.read_until("you> ")
    talk.type("\x04")
    assert talk.leave() == 0


@pytest.mark.slow
def test_ctrl_c_twice_at_the_prompt_exits_with_130(model_folder):
    talk = InTerminal(model_folder("gpt2"), "--device", "cpu")
    assert messages.TEXT_COMPLETION in talk.read_until("text> ")
    talk.type("\x03")
    talk.read_until("text> ")
    talk.type("\x03")
    assert talk.leave() == 130

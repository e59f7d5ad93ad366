"""A chat: questions from a terminal, a command line or a pipe; answers are streamed."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from sft.commands.chat.options import Sampling
from sft.commands.chat.responder import Answer, Responder
from sft.common.errors import UserError
from sft.common.standard_streams import check_output
from sft.common.text import counted, visible

logger = logging.getLogger("sft.chat")

HELP = """\
/system TEXT   start a new conversation with this system prompt (without TEXT: show the current one)
/reset         start a new conversation
/exit          quit; Ctrl-D does the same
//TEXT         send TEXT with one leading slash
Ctrl-C         stop an answer; at the prompt, twice: quit"""


def answer_once(
    responders: Sequence[Responder], prompt: str, system: str | None, sampling: Sampling, out: TextIO
) -> None:
    """Answer one question, and write the answer alone to `out`; several answers are preceded by the model's name.

    Raises:
        UserError: if it cannot be answered.
        KeyboardInterrupt: if the answer was stopped.
    """
    write = _writer(out)
    for index, responder in enumerate(responders):
        if len(responders) > 1:
            write(("\n" if index else "") + f"{responder.name}:\n")
        messages = [*_system_messages(system), {"role": "user", "content": prompt}]
        answer = responder.answer(messages, sampling, turn=0, write=write)
        write("\n")
        for line in _remarks(answer, responder, sampling):
            logger.info(line)
        if answer.end_reason == "stopped":
            raise KeyboardInterrupt


class ChatSession:
    """A conversation in a terminal, with one model or with several that get the same questions."""

    def __init__(
        self,
        responders: Sequence[Responder],
        system: str | None,
        sampling: Sampling,
        out: TextIO,
        *,
        keeps_history: bool = True,
    ):
        """
        Args:
            responders: the models, in the order in which they answer.
            system: first system prompt.
            sampling: how tokens are chosen.
            out: the terminal.
            keeps_history: whether the models see the earlier turns.
        """
        self._responders, self._system, self._sampling = responders, system, sampling
        self._write = _writer(out)
        self._is_chat = responders[-1].is_chat
        self._keeps_history = keeps_history and self._is_chat
        self._start_conversation()

    def run(self) -> int:
        """Read and answer questions until the user quits. Returns the exit code."""
        _enable_line_editing()
        mode = "Chat" if self._keeps_history else "Each question is answered on its own"
        if not self._is_chat:
            mode = "Text completion: each line is continued on its own"
        self._write(f"{mode}; {_describe(self._sampling)}. /help lists the commands, Ctrl-D quits.\n")
        was_interrupted = False
        while True:
            try:
                line = input("\nyou> " if self._is_chat else "\ntext> ")
                line.encode("utf-8")  # a terminal with another encoding may yield lone surrogates
            except EOFError:
                self._write("\n")
                return 0
            except KeyboardInterrupt:
                if was_interrupted:
                    self._write("\n")
                    return 130
                was_interrupted = True
                self._write("\n(Press Ctrl-C again to quit, or Ctrl-D.)\n")
                continue
            except UnicodeError:
                self._write("(The input is not UTF-8: check the encoding of the terminal.)\n")
                continue
            was_interrupted = False
            if self._handle_line(line.strip()):
                return 0

    def _handle_line(self, line: str) -> bool:
        """Run a command or answer a question. Returns whether to quit."""
        if not line:
            return False
        if line.startswith("/") and not line.startswith("//"):
            name, _, rest = line.partition(" ")
            commands: dict[str, Callable[[str], None]] = {
                "/help": lambda _: self._write(HELP + "\n"),
                "/reset": lambda _: self._reset(),
                "/system": self._set_system,
            }
            if name in ("/exit", "/quit"):
                return True
            if name in commands:
                commands[name](rest.strip())
            else:
                self._write(f"(Unknown command {name}; /help lists the commands. To send this text, write //.)\n")
            return False
        self._ask(line[1:] if line.startswith("//") else line)
        return False

    def _ask(self, question: str) -> None:
        """Append each model's answer to its own history. A refused question leaves the history unchanged."""
        self._turn += 1
        for responder, history in zip(self._responders, self._histories, strict=True):
            self._write(f"{responder.name}> ")
            messages = [*history, {"role": "user", "content": question}]
            try:
                answer = responder.answer(messages, self._sampling, turn=self._turn, write=self._write)
            except UserError as error:
                self._write(f"({' '.join(error.problems)})\n")
                continue
            self._write("\n")
            for line in _remarks(answer, responder, self._sampling):
                self._write(f"({line})\n")
            if self._keeps_history and answer.text:
                history += [messages[-1], {"role": "assistant", "content": answer.text}]
            if answer.end_reason == "stopped":
                return

    def _set_system(self, text: str) -> None:
        if not self._is_chat:
            self._write("(There is no system prompt: the model continues text.)\n")
        elif not text:
            self._write(f"(System prompt: {self._system or 'none'})\n")
        else:
            self._system = text
            self._reset()

    def _reset(self) -> None:
        self._start_conversation()
        self._write("(New conversation.)\n")

    def _start_conversation(self) -> None:
        self._turn = 0
        self._histories: list[list[dict[str, Any]]] = [_system_messages(self._system) for _ in self._responders]


def _system_messages(system: str | None) -> list[dict[str, Any]]:
    return [{"role": "system", "content": system}] if system else []


def _writer(out: TextIO) -> Callable[[str], None]:
    """Return a function that writes and flushes. On a terminal control characters are escaped; files get the text."""
    is_terminal = out.isatty()

    def write(text: str) -> None:
        out.write(visible(text) if is_terminal else text)
        out.flush()
        check_output()  # an answer that nobody receives is not continued

    return write


def _remarks(answer: Answer, responder: Responder, sampling: Sampling) -> list[str]:
    """Return what the user should know about an answer besides its text."""
    remarks = []
    exceeds = f"exceeds the context length of {responder.name} ({responder.context_length} tokens); dropped: the first"
    if answer.num_dropped_turns:
        remarks.append(f"The conversation {exceeds} {counted(answer.num_dropped_turns, 'turn')}.")
    if answer.num_dropped_tokens:
        remarks.append(f"The text {exceeds} {counted(answer.num_dropped_tokens, 'token')}.")
    if answer.end_reason == "stopped":
        remarks.append("Stopped.")
    elif answer.end_reason == "max_new_tokens":
        remarks.append(f"Truncated after {sampling.max_new_tokens} tokens; --max_new_tokens sets the limit.")
    elif answer.end_reason == "context length":
        remarks.append(f"Truncated at the context length of {responder.name} ({responder.context_length} tokens).")
    elif not answer.text:
        remarks.append("The answer is empty.")
    return remarks


def _describe(sampling: Sampling) -> str:
    if not sampling.temperature:
        return "greedy decoding: the same question gets the same answer"
    return f"temperature {sampling.temperature:g}, top_p {sampling.top_p:g}, seed {sampling.seed}"


def _enable_line_editing() -> None:
    """Enable arrow keys and earlier lines at the prompt, if this Python has readline, which `input` then uses."""
    if sys.stdin.isatty():
        try:
            import readline  # noqa: F401  (optional: not part of every Python)
        except ImportError:
            return

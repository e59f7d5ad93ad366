"""The talk: questions from a terminal, a command line or a pipe; answers while they come."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any, TextIO

from sft.commands.chat.options import Sampling
from sft.commands.chat.speaker import Answer, Speaker
from sft.commands.chat.text_stream import shown
from sft.common.errors import UserError
from sft.common.text import counted

logger = logging.getLogger("sft.talk")

HELP = """\
/system TEXT   begin anew, with this system prompt (without TEXT: show it)
/reset         begin anew
/exit          leave, as Ctrl-D does
//TEXT         say TEXT with one slash before it
Ctrl-C         stop an answer; at the prompt, twice: leave"""


def answer_once(speakers: list[Speaker], prompt: str, system: str | None, sampling: Sampling, out: TextIO) -> None:
    """One question, and nothing but its answer on `out`; of several speakers with their names above.

    Raises:
        UserError: if it cannot be answered.
        KeyboardInterrupt: if the answer was stopped.
    """
    write = _writer(out)
    for index, speaker in enumerate(speakers):
        if len(speakers) > 1:
            write(("\n" if index else "") + f"{speaker.name}:\n")
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        answer = speaker.answer(messages, sampling, turn=0, write=write)
        write("\n")
        for line in _remarks(answer, speaker, sampling):
            logger.info(line)
        if answer.ending == "stopped":
            raise KeyboardInterrupt


class Talk:
    """A conversation in a terminal, with one speaker or several who hear the same questions."""

    def __init__(
        self,
        speakers: list[Speaker],
        system: str | None,
        sampling: Sampling,
        out: TextIO,
        *,
        keeps_history: bool = True,
    ):
        """Args:
        speakers: who answers, in this order.
        system: the system prompt to begin with.
        sampling: how they answer.
        out: the terminal.
        keeps_history: whether each question comes with those before it.
        """
        self._speakers, self._system, self._sampling, self._out = speakers, system, sampling, out
        self._say = _writer(out)
        self._is_chat = speakers[-1].is_chat
        self._keeps_history = keeps_history and self._is_chat
        self._begin_anew()

    def run(self) -> int:
        """Until the person leaves; returns the exit status."""
        _edit_lines()
        how = "Chat" if self._keeps_history else "Each question by itself"
        if not self._is_chat:
            how = "Text is continued, each line by itself"
        self._say(f"{how}; {_described(self._sampling)}. /help tells more, Ctrl-D leaves.\n")
        interrupted_before = False
        while True:
            try:
                line = input("\nyou> " if self._is_chat else "\ntext> ")
                line.encode("utf-8")  # a terminal that speaks another encoding gives halves of characters
            except EOFError:
                self._say("\n")
                return 0
            except KeyboardInterrupt:
                if interrupted_before:
                    self._say("\n")
                    return 130
                interrupted_before = True
                self._say("\n(Ctrl-C once more leaves, as Ctrl-D does.)\n")
                continue
            except UnicodeError:
                self._say("(That is not UTF-8 text: look at the terminal's encoding.)\n")
                continue
            interrupted_before = False
            if self._command(line.strip()):
                return 0

    def _command(self, line: str) -> bool:
        """Does what a line says; returns whether that is to leave."""
        if not line:
            return False
        if line.startswith("/") and not line.startswith("//"):
            name, _, rest = line.partition(" ")
            commands: dict[str, Callable[[str], None]] = {
                "/help": lambda _: self._say(HELP + "\n"),
                "/reset": lambda _: self._reset(),
                "/system": self._set_system,
            }
            if name in ("/exit", "/quit"):
                return True
            if name in commands:
                commands[name](rest.strip())
            else:
                self._say(f"(No command {name}; /help lists them. To say it, write //.)\n")
            return False
        self._ask(line[1:] if line.startswith("//") else line)
        return False

    def _ask(self, question: str) -> None:
        """Each speaker's answer, into its own history. One that is refused is as if it had not been asked."""
        self._turn += 1
        for speaker, history in zip(self._speakers, self._histories, strict=True):
            self._say(f"{speaker.name}> ")
            messages = [*history, {"role": "user", "content": question}]
            try:
                answer = speaker.answer(messages, self._sampling, turn=self._turn, write=self._say)
            except UserError as error:
                self._say(f"({' '.join(error.problems)})\n")
                continue
            self._say("\n")
            for line in _remarks(answer, speaker, self._sampling):
                self._say(f"({line})\n")
            if self._keeps_history and answer.text:
                history += [messages[-1], {"role": "assistant", "content": answer.text}]
            if answer.ending == "stopped":
                return

    def _set_system(self, text: str) -> None:
        if not self._is_chat:
            self._say("(Text is continued here: there is no system prompt.)\n")
        elif not text:
            self._say(f"(System prompt: {self._system or 'none'})\n")
        else:
            self._system = text
            self._reset()

    def _reset(self) -> None:
        self._begin_anew()
        self._say("(The conversation begins anew.)\n")

    def _begin_anew(self) -> None:
        self._turn = 0
        begin = [{"role": "system", "content": self._system}] if self._system else []
        self._histories: list[list[dict[str, Any]]] = [list(begin) for _ in self._speakers]


def _writer(out: TextIO) -> Callable[[str], None]:
    """Writes at once. What a model says must not act on a terminal; into a file or a pipe it goes as it is."""
    is_terminal = out.isatty()

    def write(text: str) -> None:
        out.write(shown(text) if is_terminal else text)
        out.flush()

    return write


def _remarks(answer: Answer, speaker: Speaker, sampling: Sampling) -> list[str]:
    """What a person should know of an answer beside its text."""
    remarks = []
    if answer.num_turns_left_out:
        remarks.append(
            f"The conversation is longer than the {speaker.num_positions:,} positions of {speaker.name}: the first "
            f"{counted(answer.num_turns_left_out, 'turn')} were left out."
        )
    if answer.num_tokens_left_out:
        remarks.append(
            f"The text is longer than the {speaker.num_positions:,} positions of {speaker.name}: the first "
            f"{counted(answer.num_tokens_left_out, 'token')} were left out."
        )
    if answer.ending == "stopped":
        remarks.append("Stopped.")
    elif answer.ending == "max_new_tokens":
        remarks.append(f"Cut at {sampling.max_new_tokens} tokens; --max_new_tokens allows more.")
    elif answer.ending == "positions":
        remarks.append(f"Cut: the {speaker.num_positions:,} positions of {speaker.name} end here.")
    elif not answer.text:
        remarks.append("An empty answer.")
    return remarks


def _described(sampling: Sampling) -> str:
    if not sampling.temperature:
        return "greedy: the same question has the same answer"
    return f"temperature {sampling.temperature:g}, top_p {sampling.top_p:g}, seed {sampling.seed}"


def _edit_lines() -> None:
    """Arrow keys and earlier lines at the prompt, where this Python can."""
    if sys.stdin.isatty():
        try:
            import readline  # noqa: F401  (input() uses it once it is imported)
        except ImportError:
            return

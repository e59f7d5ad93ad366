"""Limits of what a chat template may use: processor time, memory, and the length of the text that it writes.

A template is a third-party program, which may loop without end (`range` in `range`), or ask for ten gigabytes in one
operation, already while it is compiled. The operating system keeps count, so a usual template costs nothing: a timer of
processor time, which a slow or busy machine does not shorten, and a limit on the memory of this process. Both grow with
the conversations, and neither decides what becomes of a row: the run ends.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Any

from sft.common.errors import ConfigError
from sft.common.threads import checkpoint_thread_exists

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SECONDS, _SECONDS_PER_MESSAGE, _SECONDS_PER_CHARACTER = 10.0, 0.02, 2e-5
"""Processor time. Usual templates take less than a hundredth of it."""
_BYTES, _BYTES_PER_CHARACTER = 2 << 30, 200
_CHARACTERS, _CHARACTERS_PER_CHARACTER = 1_000_000, 100
"""Length of a rendered text: so much, and so much more per character of the conversation."""
_MEMORY = Path("/proc/self/statm")
_FIX = "Fix it, or choose another with chat_template."

Messages = Sequence[Mapping[str, Any]]


class _OutOfTime(BaseException):
    """Not an `Exception`: Jinja drops those while it compiles constant expressions."""


def template_name(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The beginning of a message about the tokenizer's chat template: the setting, and whose template it is."""
    is_own = tokenizer.chat_template == tokenizer.init_kwargs.get("chat_template")
    return f"chat_template: the template of {tokenizer.name_or_path}" if is_own else "chat_template: the template"


@contextmanager
def template_limits(tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[Messages] = ()) -> Iterator[None]:
    """Limit the processor time and the memory that rendering conversations may take. Not to be nested.

    Time is limited in the main thread only, where Python runs handlers of signals.

    Raises:
        ConfigError: If rendering takes more.
    """
    num_messages = sum(map(len, conversations))
    num_characters = sum(map(_num_characters, conversations))
    seconds = _SECONDS + _SECONDS_PER_MESSAGE * num_messages + _SECONDS_PER_CHARACTER * num_characters
    num_bytes = _BYTES + _BYTES_PER_CHARACTER * num_characters
    try:
        with _limited_time(seconds), _limited_memory(num_bytes):
            yield
    except _OutOfTime:
        found = f"does not end: it has taken {seconds:.0f} seconds of processor time{_for(conversations)}"
    except MemoryError:
        found = f"needs too much memory: more than {num_bytes / 2**30:.0f} GiB{_for(conversations)}"
    else:
        return
    raise ConfigError(f"{template_name(tokenizer)} {found}. {_FIX}")


def check_length(
    tokenizer: "PreTrainedTokenizerBase", text: str, messages: Messages, tools: Sequence[Any] | None
) -> None:
    """Check that a rendered text is not far longer than its conversation.

    Raises:
        ConfigError: If it is.
    """
    if len(text) <= _CHARACTERS or len(text) <= _CHARACTERS_PER_CHARACTER * _num_characters(messages):
        return
    given = len(json.dumps([messages, tools], ensure_ascii=False, default=str))
    if len(text) > _CHARACTERS + _CHARACTERS_PER_CHARACTER * given:
        raise ConfigError(
            f"{template_name(tokenizer)} writes too much: {len(text):,} characters for a conversation of {given:,}. "
            f"{_FIX}"
        )


def render_chat(tokenizer: "PreTrainedTokenizerBase", messages: Messages) -> str:
    """A conversation as the tokenizer's chat template writes it, within the limits.

    Raises:
        ConfigError: If it takes more.
    """
    with template_limits(tokenizer, [messages]):
        text = str(tokenizer.apply_chat_template([dict(message) for message in messages], tokenize=False))
    check_length(tokenizer, text, messages, None)
    return text


def _num_characters(messages: Messages) -> int:
    """Length of the contents, which are text or lists of parts."""
    return sum(len(message.get("content") or "") for message in messages)


def _for(conversations: Sequence[Messages]) -> str:
    if not conversations:
        return " for a question and an answer"
    num_messages = sum(map(len, conversations))
    return f" for {num_messages:,} messages in {len(conversations):,} conversations"


@contextmanager
def _limited_time(seconds: float) -> Iterator[None]:
    if not hasattr(signal, "setitimer") or current_thread() is not main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGPROF, stop)
    try:
        # Again every second: code that catches everything would continue.
        signal.setitimer(signal.ITIMER_PROF, seconds, 1.0)
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _limited_memory(num_bytes: int) -> AbstractContextManager[None]:
    """Memory is not limited without /proc (macOS), nor where a thread writes checkpoints: the limit is of the process.

    The length of the text and the time still are.
    """
    can_limit = resource is not None and _MEMORY.exists() and not checkpoint_thread_exists()
    return _limited_data(num_bytes) if can_limit else nullcontext()


@contextmanager
def _limited_data(num_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    used = int(_MEMORY.read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    wanted = [limit for limit in (soft, hard, used + num_bytes) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

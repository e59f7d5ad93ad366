"""Locate the assistant turns in a rendered conversation by marks (`sft/prompting/marking.py`).

The template renders the conversation up to a turn with a generation prompt: the literal text after the last mark leads
to the beginning of the turn. It renders the conversation through the turn: the literal text after the last mark ends
the turn. Both literals are located in the text of the complete conversation at the same marks, so it does not matter
whether the template omits, strips or moves something elsewhere. Contents are never searched for.

If the conversation continues differently from its prompt, the turn begins where they differ, or after the header
between the marks. If it ends differently from a last turn, its end is what following turns of both roles share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft.common.data_records import Conversation
from sft.prompting.marked_text import MarkedText, PrefixEnds, PrefixRenderer
from sft.prompting.marking import PLACEMENTS, FoundMark, Mark, Marker, MarkPlacement, answer_in
from sft.prompting.messages import THOUGHTS, RowRefused
from sft.prompting.template import ChatTemplate, common_length

Span = tuple[int, int]
PROMPT_GOES_FURTHER = "prompt_goes_further"
NOTES = ("thoughts_left_out", "content_left_out", "tools_left_out", PROMPT_GOES_FURTHER)
"""What a template omits from a text that is trained nevertheless (`content_left_out`: content beside tool calls), and
whether a generation prompt is longer (`<think>`) than the text before a trained turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundTurns:
    """The positions of the assistant turns in the text of a conversation."""

    spans: Mapping[int, "Span | RowRefused"]
    """Index of an assistant message -> `[start, end)`, or why it was not located."""
    notes: tuple[str, ...] = ()
    marks: tuple[FoundMark, ...] = ()
    """The marks in the text, if every string was marked at its edges; otherwise empty."""
    unmatched_prompts: tuple[str, ...] = ()
    """Ends of generation prompts that this text does not contain (`<think>` before a turn without thoughts)."""


def find_turns(template: ChatTemplate, conversation: Conversation, text: str) -> FoundTurns:
    """Locate the assistant turns.

    Args:
        template: The chat template.
        conversation: The conversation.
        text: The text that the template renders for it.
    """
    finder = _TurnFinder(template, conversation, text)
    spans: dict[int, Span | RowRefused] = {}
    for index, message in enumerate(conversation.messages):
        if message["role"] != "assistant":
            continue
        if index == 0:
            spans[0] = RowRefused(
                "no_prompt", "the conversation begins with an assistant message, so there is no prompt"
            )
            continue
        try:
            start, end = finder.find(index)
        except RowRefused as refusal:
            spans[index] = refusal
            continue
        # A turn that continues the previous one begins where that ends.
        before = spans.get(index - 1)
        spans[index] = (max(start, before[1]), end) if isinstance(before, tuple) else (start, end)
    return FoundTurns(
        spans=spans,
        notes=finder.notes(),
        marks=tuple(finder.marks) if finder.placement == PLACEMENTS[0] else (),
        unmatched_prompts=tuple(finder.unmatched_prompts),
    )


class _TurnFinder:
    """The search in one conversation."""

    def __init__(self, template: ChatTemplate, conversation: Conversation, text: str):
        self._template = template
        self._messages = conversation.messages
        self._tools = conversation.tools
        self._text = text
        self._notes: set[str] = set()
        self.unmatched_prompts: set[str] = set()
        self._render = PrefixRenderer(template, conversation.tools)
        self._marked, self._prefix_ends, self.placement = self._mark_conversation()

    @property
    def marks(self) -> Sequence[FoundMark]:
        """The marks in the text; empty if no placement of marks keeps the template's output."""
        return self._marked.marks

    @property
    def _ends(self) -> PrefixEnds:
        assert self._prefix_ends is not None  # used for turns with marks only
        return self._prefix_ends

    def find(self, index: int) -> Span:
        """`[start, end)` of the turn of message `index`.

        Raises:
            RowRefused: `turn_not_found`.
        """
        own = self._marked.of_message(index)
        if not own:
            self._check_complete(index, own)
            return self._find_by_prefix(index)
        start = self._find_start(index, own)
        end = self._find_end(index, own)
        if end <= start or self._marked.is_written_between(index, start, end):
            raise _not_found(index, "the chat template writes another message inside it")
        self._check_complete(index, [found for found in own if start <= found.position <= end])
        return start, end

    def notes(self) -> tuple[str, ...]:
        if self._tools and not any(_tool_name(tool) in self._text for tool in self._tools):
            self._notes.add("tools_left_out")
        if any(m["role"] == "assistant" and self._lost_thoughts(index, m) for index, m in enumerate(self._messages)):
            self._notes.add("thoughts_left_out")
        if any(prompt.strip() for prompt in self.unmatched_prompts):
            self._notes.add(PROMPT_GOES_FURTHER)
        return tuple(note for note in NOTES if note in self._notes)

    # The complete text

    def _mark_conversation(self) -> tuple[MarkedText, PrefixEnds | None, MarkPlacement]:
        """The marked text of the conversation, with the first placement that does not change the template's output."""
        for placement in PLACEMENTS:
            try:
                marker = Marker(self._messages, placement, self._text)
                text, marks = marker.split(self._template.apply(marker.messages, self._tools))
            except RowRefused:
                continue
            if text == self._text:
                marked = MarkedText(self._text, marks)
                return marked, PrefixEnds(self._render, marker, marked), placement
        return MarkedText(self._text, ()), None, PLACEMENTS[0]

    def _check_complete(self, index: int, own: Sequence[FoundMark]) -> None:
        """Refuse a turn if the template omits a part of it that the model must produce.

        Thoughts may be missing, also those at the beginning of a content (`<think>...</think>`). Content beside tool
        calls may be missing: what the model must produce are the calls.
        """
        message = self._messages[index]
        calls = message.get("tool_calls") or ()
        closed = {found.mark.kind for found in own if not found.mark.is_opening}
        is_marked = self._prefix_ends is not None and self.placement.calls
        names = (call["function"]["name"] for call in calls)
        if calls and not ("call" in closed if is_marked else all(name in self._text for name in names)):
            raise RowRefused(
                "tool_calls_left_out", f"message {index + 1}: the chat template does not write its tool calls"
            )
        if self._prefix_ends and answer_in(message.get("content") or "") and "content" not in closed:
            if not calls:
                raise _not_found(index, "the chat template omits its end")
            self._notes.add("content_left_out")

    # The turns

    def _find_start(self, index: int, own: Sequence[FoundMark]) -> int:
        origin, literal = self._prompt_from_last_mark(index, own)
        if self._text.startswith(literal, origin) and (literal.strip() or not self._template.header.strip()):
            return origin + len(literal)
        common, cut = _aligned(literal, self._text, origin, own[0].position)
        if literal[common:].strip() or not literal.strip():
            cut = self._template.last_boundary(self._text, origin, cut)
            common, cut = _aligned(literal, self._text, origin, cut)
            ended = self._ended(index)
            header = literal[self._template.last_boundary(literal, 0, common_length(ended, literal, 0)) :]
            if common <= len(literal) - len(header):
                self.unmatched_prompts.add(literal)
                written = self._text[origin : own[0].position]
                return origin + self._find_header(index, written, header, ended, cut - origin)
        self.unmatched_prompts.add(literal[common:])
        return cut

    def _prompt_from_last_mark(self, index: int, own: Sequence[FoundMark]) -> tuple[int, str]:
        """The position in the text of the last mark of the prompt, and the text after that mark in the prompt."""
        prompt = self._ends.find(index, add_generation_prompt=True)
        if prompt.last is None:
            return 0, prompt.literal
        before = [position for position in self._marked.positions_of(prompt.last) if position <= own[0].position]
        if not before:
            raise _not_found(index, "the chat template moves the text before it")
        return before[-1], prompt.literal

    def _ended(self, index: int) -> str:
        """The text that the template writes after the last mark before the turn, without a generation prompt."""
        return self._ends.find(index).literal.removesuffix(self._template.next_header)

    def _find_header(self, index: int, written: str, header: str, ended: str, common: int) -> int:
        """The beginning of a turn in the text `written` before it, if that does not begin like the prompt's header.

        The prompt may end with a hint for the last question only, a turn may continue the previous one, or a prompt may
        have no header. Text that may be content is never searched.

        Raises:
            RowRefused: `turn_not_found`.
        """
        is_literal = self.placement.openings and self.placement.other_roles == "edges"
        for known in (header, self._template.header):
            if is_literal and known.strip() and written.count(known) == 1:
                return written.index(known) + len(known)
        if ended.strip() and written.startswith(ended):
            return len(ended)
        if is_literal and not written.strip():
            return common_length(ended, written, 0)
        if is_literal and not header and written[:common].strip():
            return common
        raise _not_found(index, f"the conversation does not continue with the prompt's {(header or ended)[:40]!r}")

    def _find_end(self, index: int, own: Sequence[FoundMark]) -> int:
        is_last = index == len(self._messages) - 1
        last, tail = (own[-1], "") if is_last else self._last_mark(index, own)
        rest = self._text[last.position : self._marked.next_other(index, last.position)]
        if is_last:
            return last.position + self._template.end_in(rest.removesuffix(self._template.next_header))
        if not rest.startswith(tail):
            tail = rest[: self._template.last_boundary(rest, 0, common_length(tail, rest, 0))]
        if not (tail.strip() and self._template.end_marker):
            tail = self._other_end(index, last.mark, rest, tail)
        return last.position + self._template.end_in(tail)

    def _last_mark(self, index: int, own: Sequence[FoundMark]) -> tuple[FoundMark, str]:
        """The last mark of the turn, and the text that the template writes after it if no further turn follows.

        The name of a called function may occur in the text once more, with the answer of the tool.
        """
        try:
            through = self._ends.find(index + 1)
        except RowRefused:
            # The template may not accept a conversation that ends here.
            return own[-1], self._template.tail.removesuffix(self._template.next_header)
        marks = through.own
        same = [found for found in own if marks and found.mark == marks[-1]]
        if not same or through.last is None or through.last.message != index:
            raise _not_found(index, "the chat template ends it differently from a last message")
        tail = through.literal.removesuffix(self._template.next_header)
        return same[min(marks.count(marks[-1]), len(same)) - 1], tail

    def _other_end(self, index: int, last: Mark, rest: str, tail: str) -> str:
        """The end of a turn if the template ends the last turn differently from other turns, or not at all."""
        try:
            end = self._template.end_before_header(rest, self._asked_after(index, last))
        except RowRefused:
            end = ""
        if len(end) > len(tail.rstrip()):
            return end
        if self._template.end_marker:
            return tail
        # Only the beginning of the next turn ends this one, so the model must produce that to stop.
        return tail + self._template.marker_at(rest, len(tail))

    def _asked_after(self, index: int, mark: Mark) -> str:
        """The text after the last occurrence of a mark, if an answer is asked for after message `index`."""
        asked = self._ends.find(index + 1, add_generation_prompt=True)
        if asked.last == mark:
            return asked.literal
        complete = self._ends.render(index + 1, add_generation_prompt=True)
        positions = complete.positions_of(mark)
        return complete.text[positions[-1] :] if positions else ""

    def _find_by_prefix(self, index: int) -> Span:
        """The turn without marks: only if the text continues exactly as the shorter conversations end."""
        prompt = self._render(self._messages, index, add_generation_prompt=True)
        through = self._text
        if index < len(self._messages) - 1:
            through = self._render(self._messages, index + 1)
        tail, marker = self._template.tail, self._template.end_marker
        if through.endswith(tail):
            through = through[: len(through) - len(tail)] + marker
            if self._text.startswith(prompt) and self._text.startswith(through) and len(prompt) < len(through):
                return len(prompt), len(through)
        raise _not_found(index, "it cannot be located in the output of the chat template")

    def _lost_thoughts(self, index: int, message: Mapping[str, Any]) -> bool:
        own = self._marked.of_message(index)
        position = own[0].position if own else 0  # where they most likely are
        apart = [message[key] for key in THOUGHTS if isinstance(message.get(key), str) and message[key].strip()]
        if any(not self._contains(thoughts.strip(), position) for thoughts in apart):
            return True
        within, closing, _ = (message.get("content") or "").partition("</think>")
        thoughts = within.rpartition("<think>")[2].strip()
        return bool(closing and thoughts) and not self._contains(thoughts, position)

    def _contains(self, part: str, position: int) -> bool:
        return self._text.find(part, position, position + 2 * len(part)) >= 0 or part in self._text


def _aligned(literal: str, text: str, start: int, stop: int) -> tuple[int, int]:
    """Length of the common prefix of `literal` and `text[start:stop]`, ignoring white space: its end in each of them.

    White space that both have at the end is included. Some templates write more or less white space in a prompt.
    """
    there, here, ends = 0, start, (0, start)
    while there < len(literal) and here < stop:
        if literal[there] == text[here]:
            there, here = there + 1, here + 1
            ends = (there, here)
        elif literal[there].isspace():
            there += 1
        elif text[here].isspace():
            here += 1
        else:
            break
    return ends


def _tool_name(tool: Any) -> str:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    return str(function.get("name", "")) if isinstance(function, Mapping) else ""


def _not_found(index: int, why: str) -> RowRefused:
    return RowRefused("turn_not_found", f"message {index + 1}: {why}; its trained text cannot be determined")

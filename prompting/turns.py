"""The assistant's turns in a rendered conversation, found by marks (`prompting/marking.py`).

The template is asked for the conversation up to a turn with a generation prompt: the literal text behind the last mark
of it leads to where the turn begins. It is asked for the conversation through the turn: the literal text behind its
last mark is what ends the turn. Both are looked for in the text of the whole conversation at the same marks, so that it
does not matter whether the template drops, trims or moves something elsewhere. No content is searched for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prompting.marking import PLACINGS, THOUGHTS, MarkedPlace, Marker, Placing, free_plane
from prompting.messages import RowRefused
from prompting.template import ChatTemplate
from sft_types import Conversation

Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundTurns:
    """Where the assistant's turns stand in the text of a conversation."""

    spans: Mapping[int, "Span | RowRefused"]
    """Index of a message of the assistant -> `[start, end)`, or why it is not found."""
    notes: tuple[str, ...] = ()
    places: tuple[MarkedPlace, ...] = ()
    """The marks of the whole text, where every string was marked at its edges; else none."""
    unmet_prompt: str = ""
    """What a generation prompt would go on with where this text does not (`<think>` of a turn without thoughts)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _MarkedText:
    """A text with its marks, and how further prefixes of its conversation are marked."""

    text: str
    places: list[MarkedPlace]
    marker: Marker


def find_turns(template: ChatTemplate, conversation: Conversation, text: str) -> FoundTurns:
    """The turns of the assistant in `text`, which is the template's text of the conversation."""
    finder = _Finder(template, conversation, text)
    spans: dict[int, Span | RowRefused] = {}
    for index, message in enumerate(conversation.messages):
        if message["role"] != "assistant":
            continue
        if index == 0:
            spans[0] = RowRefused("no_prompt", "the assistant speaks first: there is nothing that it answers")
            continue
        try:
            spans[index] = finder.find(index)
        except RowRefused as refusal:
            spans[index] = refusal
    is_fully_marked = finder.marked is not None and finder.placing == PLACINGS[0]
    return FoundTurns(
        spans=spans,
        notes=finder.notes(),
        places=tuple(finder.marked.places) if is_fully_marked else (),
        unmet_prompt=finder.unmet_prompt,
    )


class _Finder:
    """The search in one conversation."""

    def __init__(self, template: ChatTemplate, conversation: Conversation, text: str):
        self._template = template
        self._messages = conversation.messages
        self._tools = conversation.tools
        self._text = text
        self.unmet_prompt = ""
        self.marked, self.placing = self._mark_whole()

    def find(self, index: int) -> Span:
        """`[start, end)` of the turn of message `index`.

        Raises:
            RowRefused: `turn_not_found`.
        """
        own = [place for place in self.marked.places if place.mark.message == index] if self.marked else []
        if not own:
            if self.marked and self.placing == PLACINGS[0]:
                self._check_whole(index, own)
            return self._find_by_prefix(index)
        self._check_whole(index, own)
        start = self._find_start(index, own)
        end = self._find_end(index, own)
        others = [p.position for p in self.marked.places if p.mark.message != index and start < p.position < end]
        if others or end <= start:
            raise _not_found(index, "the chat template writes another turn into it")
        return start, end

    def notes(self) -> tuple[str, ...]:
        notes = []
        if self._tools and not any(_tool_name(tool) in self._text for tool in self._tools):
            notes.append("tools_left_out")
        if any(m["role"] == "assistant" and self._lost_thoughts(i, m) for i, m in enumerate(self._messages)):
            notes.append("thoughts_left_out")
        return tuple(notes)

    # The whole text

    def _mark_whole(self) -> tuple[_MarkedText | None, Placing]:
        """The whole conversation's marked text, by the first placing that does not change what the template writes."""
        plane = free_plane(self._text, sum(2 + 2 * len(m.get("tool_calls") or ()) for m in self._messages))
        if plane is not None:
            for placing in PLACINGS:
                marker = Marker(self._messages, placing, plane)
                try:
                    marked = self._apply_marked(marker, len(self._messages))
                except RowRefused:
                    continue
                if marked.text == self._text:
                    return marked, placing
        return None, PLACINGS[0]

    def _apply_marked(self, marker: Marker, count: int, *, add_generation_prompt: bool = False) -> _MarkedText:
        rendered = self._template.apply(
            marker.messages[:count], self._tools, add_generation_prompt=add_generation_prompt
        )
        text, places = marker.split(rendered)
        return _MarkedText(text=text, places=places, marker=marker)

    def _check_whole(self, index: int, own: Sequence[MarkedPlace]) -> None:
        """Refuses a turn of which the template leaves something out that the model would have to say.

        Thoughts may be missing, in a content too (`<think>...</think>` before the answer): then only the beginning is.
        """
        message = self._messages[index]
        closed = {place.mark.kind for place in own if not place.mark.is_opening}
        if (message.get("content") or "").strip() and "content" not in closed:
            raise _not_found(index, "the chat template leaves out its end")
        calls = message.get("tool_calls") or ()
        is_written = "call" in closed or (
            not self.placing.calls and all(call["function"]["name"] in self._text for call in calls)
        )
        if calls and not is_written:
            raise RowRefused(
                "tool_calls_left_out", f"message {index + 1}: the chat template does not write its tool calls"
            )

    # Its turns

    def _find_start(self, index: int, own: Sequence[MarkedPlace]) -> int:
        prompt = self._apply_marked(self.marked.marker, index, add_generation_prompt=True)
        origin = 0
        literal = prompt.text
        if prompt.places:
            last = prompt.places[-1]
            before = [p.position for p in self.marked.places if p.mark == last.mark and p.position <= own[0].position]
            if not before:
                raise _not_found(index, "the chat template moves what stands before it")
            origin, literal = before[-1], prompt.text[last.position :]
        alike = _common_length(literal, self._text, origin)
        if alike == len(literal):
            return origin + alike
        cut = self._template.whole_up_to(self._text, origin, min(origin + alike, own[0].position))
        self._check_header(index, literal, cut - origin)
        self.unmet_prompt = literal[cut - origin :]
        return cut

    def _check_header(self, index: int, literal: str, alike: int) -> None:
        """Refuses a beginning that has nothing of the generation prompt: where the turn begins is then unknown."""
        without = self._apply_marked(self.marked.marker, index)
        ended = without.text[without.places[-1].position :] if without.places else without.text
        ended_alike = _common_length(ended, literal, 0)
        if alike <= self._template.whole_up_to(literal, 0, ended_alike) and alike < len(literal):
            wanted = literal[alike : alike + 40]
            raise _not_found(index, f"its conversation does not go on with the generation prompt's {wanted!r}")

    def _find_end(self, index: int, own: Sequence[MarkedPlace]) -> int:
        last = own[-1]
        following = [p.position for p in self.marked.places if p.position >= last.position and p.mark.message != index]
        rest = self._text[last.position : min(following, default=len(self._text))]
        tail = rest
        if index < len(self._messages) - 1:
            tail = self._tail_through(index, last)
        alike = _common_length(tail, rest, 0)
        if alike < len(tail):
            alike = self._template.whole_up_to(rest, 0, alike)
        tail = rest[:alike]
        end = last.position + self._template.end_in(tail)
        if not self._template.end_marker.strip():
            # Nothing but the next turn's beginning ends this one: then that is what the model has to say to stop.
            opener = self._template.marker_at(self._text, last.position + alike)
            end = last.position + alike + len(opener) if opener else end
        return end

    def _tail_through(self, index: int, last: MarkedPlace) -> str:
        """What the template writes behind the turn's last mark where no further turn follows."""
        try:
            through = self._apply_marked(self.marked.marker, index + 1)
        except RowRefused:
            # A conversation that ends here may be one that the template does not take.
            return self._template.tail
        same = [place.position for place in through.places if place.mark == last.mark]
        if not same or through.places[-1].mark.message != index:
            raise _not_found(index, "the chat template ends it unlike a last turn")
        return through.text[same[-1] :]

    def _find_by_prefix(self, index: int) -> Span:
        """The turn where no mark tells: only if the text goes on exactly as the shorter conversations end."""
        prompt = self._template.apply(self._messages[:index], self._tools, add_generation_prompt=True)
        through = self._text
        if index < len(self._messages) - 1:
            through = self._template.apply(self._messages[: index + 1], self._tools)
        tail, marker = self._template.tail, self._template.end_marker
        if through.endswith(tail):
            through = through[: len(through) - len(tail)] + marker
            if self._text.startswith(prompt) and self._text.startswith(through) and len(prompt) < len(through):
                return len(prompt), len(through)
        raise _not_found(index, "the chat template writes it in a way that does not tell where it stands")

    def _lost_thoughts(self, index: int, message: Mapping[str, Any]) -> bool:
        apart = [message[key] for key in THOUGHTS if isinstance(message.get(key), str) and message[key].strip()]
        if any(thoughts.strip() not in self._text for thoughts in apart):
            return True
        within, closing, _ = (message.get("content") or "").partition("</think>")
        thoughts = within.rpartition("<think>")[2].strip()
        return bool(closing and thoughts) and thoughts not in self._text


def _common_length(first: str, second: str, offset: int) -> int:
    """How many characters `first` and `second[offset:]` have in common at their beginning."""
    if second.startswith(first, offset):
        return len(first)
    limit = min(len(first), len(second) - offset)
    return next((i for i in range(limit) if first[i] != second[offset + i]), limit)


def _tool_name(tool: Any) -> str:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    return str(function.get("name", "")) if isinstance(function, Mapping) else ""


def _not_found(index: int, why: str) -> RowRefused:
    return RowRefused("turn_not_found", f"message {index + 1}: {why}; what to train of it cannot be told")

"""The assistant's turns in a rendered conversation, found by marks (`sft/prompting/marking.py`).

The template is asked for the conversation up to a turn with a generation prompt: the literal text behind the last mark
of it leads to where the turn begins. It is asked for the conversation through the turn: the literal text behind its
last mark is what ends the turn. Both are looked for in the text of the whole conversation at the same marks, so that it
does not matter whether the template drops, trims or moves something elsewhere. No content is searched for.

Where the conversation goes on otherwise than its prompt, the turn begins where they part, or behind the header that
stands between the marks; where it ends otherwise than a last turn, the end is what further turns of either role share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft.common.data_records import Conversation
from sft.prompting.marking import PLACINGS, THOUGHTS, Mark, MarkedPlace, Marker, Placing, answer_in
from sft.prompting.messages import RowRefused
from sft.prompting.template import ChatTemplate, common_length

Span = tuple[int, int]
PROMPT_GOES_FURTHER = "prompt_goes_further"
NOTES = ("thoughts_left_out", "content_left_out", "tools_left_out", PROMPT_GOES_FURTHER)
"""What a template may leave out of a text that is trained nevertheless (`content_left_out`: beside tool calls), and
whether a generation prompt goes further (`<think>`) than the text of a trained turn does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundTurns:
    """Where the assistant's turns stand in the text of a conversation."""

    spans: Mapping[int, "Span | RowRefused"]
    """Index of a message of the assistant -> `[start, end)`, or why it is not found."""
    notes: tuple[str, ...] = ()
    places: tuple[MarkedPlace, ...] = ()
    """The marks of the whole text, where every string was marked at its edges; else none."""
    unmet_prompts: tuple[str, ...] = ()
    """What generation prompts would go on with where this text does not (`<think>` of a turn without thoughts)."""


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
            start, end = finder.find(index)
        except RowRefused as refusal:
            spans[index] = refusal
            continue
        # A turn that goes on with the one before it begins where that ends.
        before = spans.get(index - 1)
        spans[index] = (max(start, before[1]), end) if isinstance(before, tuple) else (start, end)
    is_fully_marked = finder.marked is not None and finder.placing == PLACINGS[0]
    return FoundTurns(
        spans=spans,
        notes=finder.notes(),
        places=tuple(finder.marked.places) if is_fully_marked else (),
        unmet_prompts=tuple(finder.unmet_prompts),
    )


class _Finder:
    """The search in one conversation."""

    def __init__(self, template: ChatTemplate, conversation: Conversation, text: str):
        self._template = template
        self._messages = conversation.messages
        self._tools = conversation.tools
        self._text = text
        self._notes: set[str] = set()
        self.unmet_prompts: set[str] = set()
        self.marked, self.placing = self._mark_whole()

    def find(self, index: int) -> Span:
        """`[start, end)` of the turn of message `index`.

        Raises:
            RowRefused: `turn_not_found`.
        """
        own = [place for place in self.marked.places if place.mark.message == index] if self.marked else []
        if not own:
            self._check_whole(index, own)
            return self._find_by_prefix(index)
        start = self._find_start(index, own)
        end = self._find_end(index, own)
        others = [p.position for p in self.marked.places if p.mark.message != index and start < p.position < end]
        if others or end <= start:
            raise _not_found(index, "the chat template writes another turn into it")
        self._check_whole(index, [place for place in own if start <= place.position <= end])
        return start, end

    def notes(self) -> tuple[str, ...]:
        if self._tools and not any(_tool_name(tool) in self._text for tool in self._tools):
            self._notes.add("tools_left_out")
        if any(m["role"] == "assistant" and self._lost_thoughts(m) for m in self._messages):
            self._notes.add("thoughts_left_out")
        if any(prompt.strip() for prompt in self.unmet_prompts):
            self._notes.add(PROMPT_GOES_FURTHER)
        return tuple(note for note in NOTES if note in self._notes)

    # The whole text

    def _mark_whole(self) -> tuple[_MarkedText | None, Placing]:
        """The whole conversation's marked text, by the first placing that does not change what the template writes."""
        for placing in PLACINGS:
            try:
                marked = self._apply_marked(Marker(self._messages, placing, self._text), len(self._messages))
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
        A text beside tool calls may be missing: what the model has to write are the calls.
        """
        message = self._messages[index]
        calls = message.get("tool_calls") or ()
        closed = {place.mark.kind for place in own if not place.mark.is_opening}
        is_marked = self.marked is not None and self.placing.calls
        names = (call["function"]["name"] for call in calls)
        if calls and not ("call" in closed if is_marked else all(name in self._text for name in names)):
            raise RowRefused(
                "tool_calls_left_out", f"message {index + 1}: the chat template does not write its tool calls"
            )
        if self.marked and answer_in(message.get("content") or "") and "content" not in closed:
            if not calls:
                raise _not_found(index, "the chat template leaves out its end")
            self._notes.add("content_left_out")

    # Its turns

    def _find_start(self, index: int, own: Sequence[MarkedPlace]) -> int:
        origin, literal = self._prompt_from_last_mark(index, own)
        if self._text.startswith(literal, origin) and (literal.strip() or not self._template.header.strip()):
            return origin + len(literal)
        alike, cut = _aligned(literal, self._text[: own[0].position], origin)
        if literal[alike:].strip() or not literal.strip():
            cut = self._template.whole_up_to(self._text, origin, cut)
            alike, cut = _aligned(literal, self._text[:cut], origin)
            ended = self._ended(index)
            header = literal[self._template.whole_up_to(literal, 0, common_length(ended, literal, 0)) :]
            if alike <= len(literal) - len(header):
                self.unmet_prompts.add(literal)
                written = self._text[origin : own[0].position]
                return origin + self._find_header(index, written, header, ended, cut - origin)
        self.unmet_prompts.add(literal[alike:])
        return cut

    def _prompt_from_last_mark(self, index: int, own: Sequence[MarkedPlace]) -> tuple[int, str]:
        """Where the last mark of the turn's prompt stands in the whole text, and what the prompt has behind it."""
        prompt = self._apply_marked(self.marked.marker, index, add_generation_prompt=True)
        if not prompt.places:
            return 0, prompt.text
        last = prompt.places[-1]
        before = [p.position for p in self.marked.places if p.mark == last.mark and p.position <= own[0].position]
        if not before:
            raise _not_found(index, "the chat template moves what stands before it")
        return before[-1], prompt.text[last.position :]

    def _ended(self, index: int) -> str:
        """What the template writes behind the last mark before the turn, without a generation prompt."""
        without = self._apply_marked(self.marked.marker, index)
        ended = without.text[without.places[-1].position :] if without.places else without.text
        return ended.removesuffix(self._template.next_header)

    def _find_header(self, index: int, written: str, header: str, ended: str, alike: int) -> int:
        """Where a turn begins in what is `written` before it, if that has nothing of the prompt's header.

        The prompt may end with a hint for the last question only; a turn may go on with the one before it; or a prompt
        has no header at all. Nothing is looked for in what may be somebody's content.

        Raises:
            RowRefused: `turn_not_found`.
        """
        is_literal = self.placing.openings and self.placing.others == "edges"
        for known in (header, self._template.header):
            if is_literal and known.strip() and written.count(known) == 1:
                return written.index(known) + len(known)
        if ended.strip() and written.startswith(ended):
            return len(ended)
        if is_literal and not written.strip():
            return common_length(ended, written, 0)
        if is_literal and not header and written[:alike].strip():
            return alike
        raise _not_found(index, f"its conversation does not go on with the prompt's {(header or ended)[:40]!r}")

    def _find_end(self, index: int, own: Sequence[MarkedPlace]) -> int:
        is_last = index == len(self._messages) - 1
        last, tail = (own[-1], "") if is_last else self._last_place(index, own)
        following = [p.position for p in self.marked.places if p.position >= last.position and p.mark.message != index]
        rest = self._text[last.position : min(following, default=len(self._text))]
        if is_last:
            return last.position + self._template.end_in(rest.removesuffix(self._template.next_header))
        if not rest.startswith(tail):
            tail = rest[: self._template.whole_up_to(rest, 0, common_length(tail, rest, 0))]
        if not (tail.strip() and self._template.end_marker):
            tail = self._other_end(index, last.mark, rest, tail)
        return last.position + self._template.end_in(tail)

    def _last_place(self, index: int, own: Sequence[MarkedPlace]) -> tuple[MarkedPlace, str]:
        """Where the last string of the turn ends, and what the template writes behind it if no further turn follows.

        A name that a turn calls may stand once more in the text, with the tool's answer.
        """
        try:
            through = self._apply_marked(self.marked.marker, index + 1)
        except RowRefused:
            # A conversation that ends here may be one that the template does not take.
            return own[-1], self._template.tail.removesuffix(self._template.next_header)
        marks = [place.mark for place in through.places if place.mark.message == index]
        same = [place for place in own if marks and place.mark == marks[-1]]
        if not same or through.places[-1].mark.message != index:
            raise _not_found(index, "the chat template ends it unlike a last turn")
        tail = through.text[through.places[-1].position :].removesuffix(self._template.next_header)
        return same[min(marks.count(marks[-1]), len(same)) - 1], tail

    def _other_end(self, index: int, last: Mark, rest: str, tail: str) -> str:
        """The end of a turn by a template that ends the last turn in another way than others, or with nothing."""
        try:
            asked = self._apply_marked(self.marked.marker, index + 1, add_generation_prompt=True)
            behind = asked.text[max(place.position for place in asked.places if place.mark == last) :]
            end = self._template.end_before_header(rest, behind)
        except (RowRefused, ValueError):
            end = ""
        if len(end) > len(tail.rstrip()):
            return end
        if self._template.end_marker:
            return tail
        # Nothing but the next turn's beginning ends this one: then that is what the model has to say to stop.
        return tail + self._template.marker_at(rest, len(tail))

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

    def _lost_thoughts(self, message: Mapping[str, Any]) -> bool:
        apart = [message[key] for key in THOUGHTS if isinstance(message.get(key), str) and message[key].strip()]
        if any(thoughts.strip() not in self._text for thoughts in apart):
            return True
        within, closing, _ = (message.get("content") or "").partition("</think>")
        thoughts = within.rpartition("<think>")[2].strip()
        return bool(closing and thoughts) and thoughts not in self._text


def _aligned(literal: str, text: str, start: int) -> tuple[int, int]:
    """How far `literal` and `text[start:]` are alike but for white space: the ends in `literal` and in `text`.

    What white space both have in common there belongs to it. Some templates write more or less of it in a prompt.
    """
    there, here, ends = 0, start, (0, start)
    while there < len(literal) and here < len(text):
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
    return RowRefused("turn_not_found", f"message {index + 1}: {why}; what to train of it cannot be told")

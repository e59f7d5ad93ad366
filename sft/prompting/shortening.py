"""Conversations that are too long, shortened to their latest turns that fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sft.common.data_records import Conversation, RenderedText
from sft.prompting.messages import RowRefused
from sft.prompting.tokenizing import RowTooLong, TokenizedRow

Outcome = tuple[RenderedText, TokenizedRow] | RowRefused
"""A conversation's text and tokens, or why it cannot be used."""


def first_turns(conversation: Conversation) -> list[int]:
    """Where a shortened conversation may begin: indices of user messages that an assistant message to train follows.

    The first turns are left out, so the whole conversation is none of them.
    """
    messages = conversation.messages
    trained = [
        index
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and index not in conversation.untrained
    ]
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    return [index for index in users[1:] if trained and index < trained[-1]]


def latest_turns(conversation: Conversation, first: int) -> Conversation:
    """The conversation without the turns before message `first`; messages of the system at its start are kept."""
    messages = conversation.messages
    lead = next((index for index, message in enumerate(messages) if message["role"] not in ("system", "developer")), 0)
    moved = {index: index for index in range(lead)}
    moved |= {index: index - first + lead for index in range(first, len(messages))}
    return replace(
        conversation,
        messages=(*messages[:lead], *messages[first:]),
        untrained=frozenset(moved[index] for index in conversation.untrained if index in moved),
        message_weights={moved[index]: own for index, own in conversation.message_weights.items() if index in moved},
        other_keys={moved[index]: keys for index, keys in conversation.other_keys.items() if index in moved},
    )


@dataclass(kw_only=True, slots=True)
class _Search:
    """The search for the first turn of one conversation that fits."""

    conversation: Conversation
    starts: list[int]
    low: int
    high: int
    """Positions in `starts` that are not tried: `[low, high)`. `starts[high]` fits, if there is one."""
    found: Outcome

    @property
    def middle(self) -> int:
        # The last turns first: if not even these fit, nothing does.
        return self.high - 1 if isinstance(self.found, RowRefused) else (self.low + self.high) // 2


def keep_last_turns(
    conversations: Sequence[Conversation],
    refusals: Sequence[RowTooLong],
    render: Callable[[Sequence[Conversation]], Sequence[Outcome]],
) -> list[Outcome]:
    """The latest turns of each conversation that fit, with the messages of the system before them.

    The first turn is found by bisection, all conversations together: fewer turns are taken to need fewer tokens.

    Args:
        conversations: Conversations that are too long.
        refusals: How long each of them is.
        render: Renders and tokenizes conversations; refuses those that are too long with `RowTooLong`.

    Returns:
        The text and the tokens of each; or a refusal, if not even the last exchange fits, or it cannot be rendered.
    """
    searches = []
    for conversation, refusal in zip(conversations, refusals, strict=True):
        starts = first_turns(conversation)
        searches.append(
            _Search(conversation=conversation, starts=starts, low=0, high=len(starts), found=_nothing_fits(refusal))
        )
    while open_ones := [search for search in searches if search.low < search.high]:
        tried = render([latest_turns(one.conversation, one.starts[one.middle]) for one in open_ones])
        for search, outcome in zip(open_ones, tried, strict=True):
            middle = search.middle
            if not isinstance(outcome, RowRefused):
                search.high, search.found = middle, outcome
            elif isinstance(search.found, RowRefused):
                search.low, search.found = search.high, _nothing_fits(outcome)
            else:
                search.low = middle + 1
    return [
        _with_full_length(search.found, refusal.full_length) for search, refusal in zip(searches, refusals, strict=True)
    ]


def _nothing_fits(refusal: RowRefused) -> RowRefused:
    if not isinstance(refusal, RowTooLong):
        return refusal
    message = refusal.problem.message.replace("it has", "its last exchange has", 1)
    return RowTooLong(refusal.problem.reason, message, refusal.full_length, refusal.loses)


def _with_full_length(outcome: Outcome, full_length: int) -> Outcome:
    """The outcome with the length of the whole conversation."""
    if isinstance(outcome, RowTooLong):
        return RowTooLong(outcome.problem.reason, outcome.problem.message, full_length, outcome.loses)
    if isinstance(outcome, RowRefused):
        return outcome
    text, tokens = outcome
    return text, replace(tokens, full_length=full_length, is_shortened=True)

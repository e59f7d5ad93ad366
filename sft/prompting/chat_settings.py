"""What the settings add to conversations: arguments of the chat template, and a system prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sft.common.data_records import Conversation
from sft.prompting.template_kwargs import row_kwargs

SYSTEM_ROLES = ("system", "developer")
ADDED, REPLACED = "system prompt added", "system prompt replaced"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatSettings:
    """The settings of the conversations of a source."""

    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    system_prompt: str | None = None
    replaces: bool = False
    """Whether a system prompt of the data is replaced."""

    @property
    def key(self) -> str:
        """Equal for equal settings."""
        return json.dumps([self.template_kwargs, self.system_prompt, self.replaces], sort_keys=True, default=str)

    def applied(self, conversation: Conversation, record: Mapping[str, Any]) -> Conversation:
        """A conversation with them.

        Args:
            conversation: made of the row.
            record: the row, which may have arguments of its own.

        Raises:
            RowRefused: `bad_template_kwargs`.
        """
        kwargs = row_kwargs(record, self.template_kwargs)
        if kwargs:
            conversation = replace(conversation, template_kwargs=kwargs)
        messages = conversation.messages
        if self.system_prompt is None or not messages:
            return conversation
        if messages[0]["role"] not in SYSTEM_ROLES:
            added = {"role": "system", "content": self.system_prompt}
            return replace(
                conversation,
                messages=(added, *messages),
                # what belongs to a message by its number moves with it
                untrained=frozenset(index + 1 for index in conversation.untrained),
                other_keys={index + 1: keys for index, keys in conversation.other_keys.items()},
                message_weights={index + 1: weight for index, weight in conversation.message_weights.items()},
                changes=(*conversation.changes, ADDED),
            )
        if not self.replaces or messages[0]["content"] == self.system_prompt:
            return conversation
        first = {**messages[0], "content": self.system_prompt}
        return replace(conversation, messages=(first, *messages[1:]), changes=(*conversation.changes, REPLACED))


NO_SETTINGS = ChatSettings()

"""A model that answers: renders the conversation, keeps it within the model's positions, generates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from sft.commands.chat.options import Sampling
from sft.commands.chat.text_stream import TextStream
from sft.common.errors import ModelError
from sft.prompting.messages import RowRefused
from sft.prompting.rendering import ChatRenderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What was said, and how it came to its end."""

    text: str
    ending: Literal["end token", "max_new_tokens", "positions", "stopped"]
    num_turns_left_out: int = 0
    """Turns of the conversation's beginning that the model could not see any more."""
    num_tokens_left_out: int = 0
    """The same where text is continued."""


class Speaker:
    """One model with its tokenizer. It keeps no history: that is the caller's."""

    def __init__(
        self,
        model: Any,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        name: str,
        is_chat: bool,
        while_it_speaks: Callable[[], AbstractContextManager] = nullcontext,
    ):
        """Args:
        model: any causal language model, in evaluation mode.
        tokenizer: its own, with a chat template where `is_chat`.
        name: how it is called in the terminal.
        is_chat: whether it answers conversations; else it continues text.
        while_it_speaks: what has to hold while it generates (adapters switched off, say).
        """
        self.name, self.is_chat = name, is_chat
        self._model, self._tokenizer, self._while_it_speaks = model, tokenizer, while_it_speaks
        self._renderer = ChatRenderer(tokenizer) if is_chat else None
        configured = model.generation_config.eos_token_id
        ends = self._renderer.end_token_ids() if self._renderer else [tokenizer.eos_token_id]
        more = configured if isinstance(configured, list) else [configured] * (configured is not None)
        self._end_token_ids = list(dict.fromkeys([*ends, *more]))
        self.num_positions: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        """Tokens of a prompt and its answer together that the model was made for; None where it sets no limit."""

    def answer(
        self, messages: Sequence[Message], sampling: Sampling, *, turn: int, write: Callable[[str], None]
    ) -> Answer:
        """Answers a conversation, or continues the text of its last message.

        Args:
            messages: a system message perhaps, then turns of user and assistant; the last one is the user's.
            sampling: how.
            turn: which turn of the conversation it is; the random numbers depend on it and on the seed alone.
            write: called with each piece of the answer. A KeyboardInterrupt ends the answer.

        Raises:
            ModelError: if the template refuses the conversation, or its last message alone is too long.
        """
        if self._renderer is not None:
            token_ids, turns_out, tokens_out = *self._fitting_turns(messages, sampling), 0
        else:
            token_ids, tokens_out = self._fitting_text(messages[-1]["content"], sampling)
            turns_out = 0
        room = sampling.max_new_tokens
        if self.num_positions is not None:
            room = min(room, self.num_positions - len(token_ids))
        stream = TextStream(self._tokenizer, self._end_token_ids, write)
        stopped = False
        try:
            self._generate(token_ids, sampling, room, turn, stream)
        except KeyboardInterrupt:
            stopped = True
        stream.end()
        if stopped:
            ending = "stopped"
        elif stream.ended:
            ending = "end token"
        else:
            ending = "max_new_tokens" if room == sampling.max_new_tokens else "positions"
        return Answer(text=stream.text, ending=ending, num_turns_left_out=turns_out, num_tokens_left_out=tokens_out)

    @torch.no_grad()
    def _generate(self, token_ids: list[int], sampling: Sampling, room: int, turn: int, stream: TextStream) -> None:
        choice: dict[str, Any] = {"do_sample": False}
        if sampling.temperature:
            choice = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
            torch.manual_seed(sampling.seed + turn)
        input_ids = torch.tensor([token_ids], device=self._model.device)
        with self._while_it_speaks():
            self._model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=room,
                eos_token_id=self._end_token_ids,
                pad_token_id=self._tokenizer.pad_token_id,
                streamer=stream,
                **choice,
            )

    def _fitting_turns(self, messages: Sequence[Message], sampling: Sampling) -> tuple[list[int], int]:
        """The token ids of a prompt that leaves room for an answer, and how many of the first turns it leaves out.

        Turns go by pairs, a question with its answer; a system message stays.
        """
        begins = 1 if messages[0]["role"] == "system" else 0
        for first in range(begins, len(messages), 2):
            token_ids = self._tokens_of([*messages[:begins], *messages[first:]])
            if len(token_ids) <= self._most_prompt_tokens(sampling):
                return token_ids, first - begins
        if self.num_positions is not None and len(token_ids) >= self.num_positions:
            raise ModelError(
                f"This message takes {len(token_ids):,} tokens, and {self.name} has {self.num_positions:,} positions "
                "for it and its answer: say it in fewer words."
            )
        return token_ids, first - begins

    def _fitting_text(self, text: str, sampling: Sampling) -> tuple[list[int], int]:
        """The last tokens of a text that leave room for more, and how many of the first are left out."""
        token_ids = self._tokenizer(text)["input_ids"]
        if not token_ids:
            raise ModelError("There is no text to continue.")
        most = self._most_prompt_tokens(sampling)
        left_out = max(0, len(token_ids) - most) if most != float("inf") else 0
        return token_ids[left_out:], left_out

    def _most_prompt_tokens(self, sampling: Sampling) -> float:
        """Longest prompt that leaves an answer its room: all that it may have, or a half of the positions."""
        if self.num_positions is None:
            return float("inf")
        return self.num_positions - min(sampling.max_new_tokens, self.num_positions // 2)

    def _tokens_of(self, messages: Sequence[Message]) -> list[int]:
        try:
            text = self._renderer.render_prompt(messages)
        except RowRefused as refusal:
            raise ModelError(f"{self.name}: {refusal}.") from None
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

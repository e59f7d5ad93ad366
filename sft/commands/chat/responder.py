"""A model that answers: renders the conversation, fits it into the context, generates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from sft.commands.chat.options import Sampling
from sft.commands.chat.text_stream import TextStream
from sft.common.errors import ModelError
from sft.modeling.architecture import num_positions
from sft.modeling.generation_settings import generation_errors_named
from sft.prompting.messages import RowRefused
from sft.prompting.rendering import ChatRenderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
EndReason = Literal["end token", "max_new_tokens", "context length", "stopped"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A generated text, and why it ended."""

    text: str
    end_reason: EndReason
    num_dropped_turns: int = 0
    """First turns of the conversation that did not fit into the context."""
    num_dropped_tokens: int = 0
    """First tokens of a text that did not fit into the context."""


class Responder:
    """One model with its tokenizer. Keeps no history."""

    def __init__(
        self,
        model: Any,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        name: str,
        is_chat: bool,
        during_generation: Callable[[], AbstractContextManager] = nullcontext,
        template_kwargs: Mapping[str, Any] | None = None,
    ):
        """
        Args:
            model: any causal language model, in evaluation mode.
            tokenizer: its tokenizer, with a chat template if `is_chat`.
            name: shown in the terminal.
            is_chat: whether it answers conversations; otherwise it continues text.
            during_generation: context manager around generation, for example one that disables adapters.
            template_kwargs: arguments of the chat template.
        """
        self.name, self.is_chat = name, is_chat
        self._model, self._tokenizer, self._during_generation = model, tokenizer, during_generation
        self._renderer = ChatRenderer(tokenizer, template_kwargs=template_kwargs) if is_chat else None
        configured = model.generation_config.eos_token_id
        token_ids = self._renderer.end_token_ids() if self._renderer else [tokenizer.eos_token_id]
        more = configured if isinstance(configured, list) else [configured] * (configured is not None)
        self._end_token_ids = list(dict.fromkeys([*token_ids, *more]))
        self.context_length = num_positions(model.config)
        """Tokens of a prompt and its answer together; None if the model sets no limit."""

    def answer(
        self, messages: Sequence[Message], sampling: Sampling, *, turn: int, write: Callable[[str], None]
    ) -> Answer:
        """Answer a conversation, or continue the text of its last message.

        Args:
            messages: an optional system message, then turns of user and assistant; the last one is the user's.
            sampling: how tokens are chosen.
            turn: number of the turn; random numbers depend on the turn and the seed only.
            write: called with each piece of the answer. A KeyboardInterrupt ends the answer.

        Raises:
            ModelError: if the template refuses the conversation, or its last message alone is too long.
        """
        num_dropped_turns = num_dropped_tokens = 0
        if self._renderer is not None:
            token_ids, num_dropped_turns = self._fit_turns(messages, sampling)
        else:
            token_ids, num_dropped_tokens = self._fit_text(messages[-1]["content"], sampling)
        max_new_tokens = sampling.max_new_tokens
        if self.context_length is not None:
            max_new_tokens = min(max_new_tokens, self.context_length - len(token_ids))
        stream = TextStream(self._tokenizer, self._end_token_ids, write)
        stopped = False
        try:
            self._generate(token_ids, sampling, max_new_tokens, turn, stream)
        except KeyboardInterrupt:
            stopped = True
        stream.end()
        end_reason: EndReason
        if stopped:
            end_reason = "stopped"
        elif stream.ended:
            end_reason = "end token"
        else:
            end_reason = "max_new_tokens" if max_new_tokens == sampling.max_new_tokens else "context length"
        return Answer(
            text=stream.text,
            end_reason=end_reason,
            num_dropped_turns=num_dropped_turns,
            num_dropped_tokens=num_dropped_tokens,
        )

    @torch.no_grad()
    def _generate(
        self, token_ids: list[int], sampling: Sampling, max_new_tokens: int, turn: int, stream: TextStream
    ) -> None:
        options: dict[str, Any] = {"do_sample": False}
        if sampling.temperature:
            options = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
            torch.manual_seed(sampling.seed + turn)
        input_ids = torch.tensor([token_ids], device=self._model.device)
        with self._during_generation(), generation_errors_named(self._model):
            self._model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=max_new_tokens,
                eos_token_id=self._end_token_ids,
                pad_token_id=self._tokenizer.pad_token_id,
                return_dict_in_generate=False,
                tokenizer=self._tokenizer,  # for `stop_strings` of the model
                streamer=stream,
                **options,
            )

    def _fit_turns(self, messages: Sequence[Message], sampling: Sampling) -> tuple[list[int], int]:
        """Drop the first turns until the prompt leaves room for an answer.

        Turns are dropped in pairs, a question with its answer; a system message is kept.

        Returns:
            Token ids of the prompt, and the number of dropped turns.
        """
        start = 1 if messages[0]["role"] == "system" else 0
        for first in range(start, len(messages), 2):
            token_ids = self._tokenize_messages([*messages[:start], *messages[first:]])
            if len(token_ids) <= self._max_prompt_tokens(sampling):
                return token_ids, first - start
        if self.context_length is not None and len(token_ids) >= self.context_length:
            raise ModelError(
                f"This message takes {len(token_ids):,} tokens, but {self.name} has a context length of "
                f"{self.context_length:,} tokens for message and answer: use a shorter message."
            )
        return token_ids, first - start

    def _fit_text(self, text: str, sampling: Sampling) -> tuple[list[int], int]:
        """Drop the first tokens of a text until it leaves room for more.

        Returns:
            The remaining token ids, and the number of dropped tokens.
        """
        token_ids = self._tokenizer(text)["input_ids"]
        if not token_ids:
            raise ModelError("There is no text to continue.")
        limit = self._max_prompt_tokens(sampling)
        num_dropped = max(0, len(token_ids) - int(limit)) if limit != float("inf") else 0
        return token_ids[num_dropped:], num_dropped

    def _max_prompt_tokens(self, sampling: Sampling) -> float:
        """Return the longest prompt that leaves room for `max_new_tokens`, or for half of the context if less."""
        if self.context_length is None:
            return float("inf")
        return self.context_length - min(sampling.max_new_tokens, self.context_length // 2)

    def _tokenize_messages(self, messages: Sequence[Message]) -> list[int]:
        assert self._renderer is not None  # only called for chats
        try:
            text = self._renderer.render_prompt(messages)
        except RowRefused as refusal:
            raise ModelError(f"{self.name}: {refusal}.") from None
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

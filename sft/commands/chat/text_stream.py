"""Tokens to text while they come, and text to a terminal on which it must not act."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from sft.common.text import escaped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HALF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"


def shown(text: str) -> str:
    """The text as a terminal may have it: lines and tabs stay, what else would act or hide there is written out."""
    return "".join(character if character in "\n\t" else escaped(character) for character in text)


class TextStream:
    """A streamer for transformers' `generate`: hands on the text of each token as soon as it is whole.

    A character of several bytes may be several tokens, and what a token reads as can depend on the one before: so the
    last few tokens are read together, and only what that adds is handed on.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", end_token_ids: Collection[int], write: Callable[[str], None]
    ):
        """Args:
        tokenizer: of the model.
        end_token_ids: tokens that end an answer; not a part of its text.
        write: called with each piece of text.
        """
        self._tokenizer, self._ends, self._write = tokenizer, frozenset(end_token_ids), write
        self._is_prompt = True
        self._tokens: list[int] = []
        self._before, self._read = 0, 0
        self.text = ""
        """All that was handed on."""
        self.ended = False
        """Whether an end token came."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer so far, its end not counted."""
        return len(self._tokens)

    def put(self, token_ids: Any) -> None:
        """Takes the prompt first, then token after token, as `generate` hands them over."""
        if self._is_prompt:
            self._is_prompt = False
            return
        for token in token_ids.reshape(-1).tolist():
            self.ended = self.ended or token in self._ends
            if not self.ended:
                self._tokens.append(token)
                self._hand_on(at_end=False)

    def end(self) -> None:
        """Hands on what is left, half a character too."""
        self._hand_on(at_end=True)

    def _hand_on(self, *, at_end: bool) -> None:
        known = self._decoded(self._tokens[self._before : self._read])
        text = self._decoded(self._tokens[self._before :])
        if len(text) > len(known) and (at_end or not text.endswith(_HALF_A_CHARACTER)):
            self._before, self._read = self._read, len(self._tokens)
            self.text += text[len(known) :]
            self._write(text[len(known) :])

    def _decoded(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)

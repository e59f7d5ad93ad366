"""Streams tokens as text."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE_CHARACTER = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """A streamer for transformers' `generate` that writes the text of each token as soon as it is complete.

    A character of several bytes may take several tokens, and the text of a token may depend on the one before: so the
    last few tokens are decoded together, and only the new text is written.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", end_token_ids: Collection[int], write: Callable[[str], None]
    ):
        """
        Args:
            tokenizer: of the model.
            end_token_ids: tokens that end an answer; they are not part of its text.
            write: called with each piece of text.
        """
        self._tokenizer, self._end_token_ids, self._write = tokenizer, frozenset(end_token_ids), write
        self._is_prompt = True
        self._tokens: list[int] = []
        self._start, self._num_written = 0, 0
        """First token that is decoded, and number of tokens whose text was written."""
        self.text = ""
        """All text so far."""
        self.ended = False
        """Whether an end token was generated."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer so far, without the end token."""
        return len(self._tokens)

    def put(self, token_ids: Any) -> None:
        """Receive the prompt first, then one token after the other, from `generate`."""
        if self._is_prompt:
            self._is_prompt = False
            return
        for token in token_ids.reshape(-1).tolist():
            self.ended = self.ended or token in self._end_token_ids
            if not self.ended:
                self._tokens.append(token)
                self._write_new_text(at_end=False)

    def end(self) -> None:
        """Write the remaining text, an incomplete character included."""
        self._write_new_text(at_end=True)

    def _write_new_text(self, *, at_end: bool) -> None:
        known = self._decode(self._tokens[self._start : self._num_written])
        text = self._decode(self._tokens[self._start :])
        if len(text) > len(known) and (at_end or not text.endswith(_INCOMPLETE_CHARACTER)):
            self._start, self._num_written = self._num_written, len(self._tokens)
            self.text += text[len(known) :]
            self._write(text[len(known) :])

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))

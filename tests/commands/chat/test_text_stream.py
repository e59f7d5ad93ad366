"""Tokens streamed as text."""

from __future__ import annotations

from sft.commands.chat.text_stream import TextStream
from tests.support.small_models import build_tokenizer


def test_text_is_streamed_completely_in_pieces_of_complete_characters():
    tokenizer = build_tokenizer()
    text = "Grüße, 你好 👋🏽 — fin.\nTwo plus two"
    pieces: list[str] = []
    stream = TextStream(tokenizer, {2}, pieces.append)
    import torch

    stream.put(torch.tensor([[1, 5, 7]]))  # the prompt
    for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], 2]:
        stream.put(torch.tensor([token]))
    stream.end()
    assert "".join(pieces) == stream.text == text
    assert stream.ended
    assert len(pieces) > 10
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)

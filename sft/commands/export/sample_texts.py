"""Texts on which an exported model is compared with the model that was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sft.prompting.limits import render_chat
from sft.reporting.run_record import RunRecord

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TOKENS = 64
"""Per text."""
MAX_TEXTS = 8
_GENERAL_SAMPLES = (
    ("What is the capital of France?", "Paris is the capital of France."),
    ("Write a line of Python that adds 2 and 3.", "print(2 + 3)"),
    ("Wie heißt du, und was magst du?", "Ich bin ein Sprachmodell. Ich mag Äpfel, Bücher und 你好."),
    ("A train leaves at 9:40 and arrives at 11:05. How long does it take?", "1 hour and 25 minutes, so 85 minutes."),
)
"""Question and answer."""


def tokenize_samples(record: RunRecord, tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """Return the token ids of the run's sample prompts with their answers, and of some general questions."""
    samples = [
        (str(sample["prompt"]), str(sample["after"]))
        for sample in record.summary.get("samples") or []
        if isinstance(sample, dict) and sample.get("prompt") and sample.get("after")
    ]
    pairs = [*samples[: MAX_TEXTS - len(_GENERAL_SAMPLES)], *_GENERAL_SAMPLES]
    rows = [tokenizer(_render(pair, tokenizer), add_special_tokens=False)["input_ids"][:MAX_TOKENS] for pair in pairs]
    return [row for row in rows if row]


def _render(pair: tuple[str, str], tokenizer: "PreTrainedTokenizerBase") -> str:
    question, answer = pair
    if not tokenizer.chat_template:
        return f"{question} {answer}"
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return render_chat(tokenizer, turns)

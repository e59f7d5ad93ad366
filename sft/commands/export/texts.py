"""The texts on which an exported model is compared with what was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sft.reporting.run_record import RunRecord

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST = 64
"""Tokens of each."""
MOST = 8
_SHIPPED = (
    ("What is the capital of France?", "Paris is the capital of France."),
    ("Write a line of Python that adds 2 and 3.", "print(2 + 3)"),
    ("Wie heißt du, und was magst du?", "Ich bin ein Sprachmodell. Ich mag Äpfel, Bücher und 你好."),
    ("A train leaves at 9:40 and arrives at 11:05. How long does it take?", "1 hour and 25 minutes, so 85 minutes."),
)  # fmt: skip


def comparison_rows(record: RunRecord, tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """Token ids of some texts: the run's samples with their answers, and some that ship."""
    samples = [
        (str(sample["prompt"]), str(sample["after"]))
        for sample in record.summary.get("samples") or []
        if isinstance(sample, dict) and sample.get("prompt") and sample.get("after")
    ]
    pairs = [*samples[: MOST - len(_SHIPPED)], *_SHIPPED]
    rows = [tokenizer(_as_text(pair, tokenizer), add_special_tokens=False)["input_ids"][:LONGEST] for pair in pairs]
    return [row for row in rows if row]


def _as_text(pair: tuple[str, str], tokenizer: "PreTrainedTokenizerBase") -> str:
    question, answer = pair
    if not tokenizer.chat_template:
        return f"{question} {answer}"
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return tokenizer.apply_chat_template(turns, tokenize=False)

"""The README.md of an exported model: what the run recorded, and what its owner has to fill in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Template

from sft.commands.export.card_metadata import SCORES, card_metadata, public_name
from sft.common.markdown import Markdown, escape_markdown, markdown_table
from sft.common.text import share_text
from sft.reporting.run_record import RunRecord
from sft.reporting.summary import installed_versions
from sft.reporting.templates import markdown_environment

MAX_SAMPLES = 3
_FORMATS = {
    "loss": "{:.4f}".format,
    "perplexity": "{:,.2f}".format,
    "token_accuracy": share_text,
    "sequence_accuracy": share_text,
}
_SETTINGS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_ratio",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "max_seq_length",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "seed",
    "packing",
    "train_on",
    "lora_config",
    "quantization_config",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CardFacts:
    """What a card is made of."""

    name: str
    """Of the model."""
    base: str | None
    """Base model; None if it is not known."""
    record: RunRecord
    is_checkpoint: bool
    """Whether the model is a checkpoint, to which the evaluation at the end of the run does not apply."""
    chat_example: str | None
    """A conversation as the chat template renders it; None without a template."""
    exported: Sequence[str]
    """Sentences on how the folder was made, and how that was checked."""


def model_card(facts: CardFacts) -> str:
    """The text of the card."""
    record = facts.record
    return _template().render(
        metadata=Markdown(card_metadata(facts.name, facts.base, record, has_scores=not facts.is_checkpoint)),
        name=facts.name,
        origin=_origin(facts.base, record),
        chat_example=facts.chat_example,
        data=_data(record),
        metrics=None if facts.is_checkpoint else _metrics(record),
        samples=[] if facts.is_checkpoint else list(_samples(record)),
        settings=_settings(record),
        exported=facts.exported,
        versions=_versions(record),
    )


@cache
def _template() -> Template:
    environment = markdown_environment(Path(__file__).with_name("templates"))
    return environment.get_template("model_card.md.jinja")


def _origin(base: str | None, record: RunRecord) -> Markdown:
    origin = "Fine-tuned; the base model is not recorded"
    if base:
        origin = f"Fine-tuned from {escape_markdown(public_name(base))}"
    settings, train = record.settings, record.summary.get("train") or {}
    if not settings:
        return Markdown(f"{origin}.")
    method = "LoRA adapters" if settings.get("lora_config") else "all weights"
    if settings.get("quantization_config"):
        method += " on a quantized base model"
    steps = f", {train['steps']:,} steps" if isinstance(train.get("steps"), int) else ""
    return Markdown(f"{origin} by supervised fine-tuning: {method}{steps}.")


def _data(record: RunRecord) -> dict[str, str] | None:
    data = record.summary.get("data")
    if not isinstance(data, Mapping):
        return None
    train = data.get("train") or {}
    rows = [_source_row(split, source) for split, source in _sources(data)]
    return {
        "sources": markdown_table(("split", "source", "format", "rows read", "rows used", "rows dropped"), rows),
        "tokens": f"{train.get('tokens', 0):,} training tokens, {train.get('supervised_tokens', 0):,} of them "
        "supervised.",
    }


def _sources(data: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for split in ("train", "validation"):
        for source in (data.get(split) or {}).get("sources") or []:
            yield split, source


def _source_row(split: str, source: Mapping[str, Any]) -> tuple[str, ...]:
    dropped = sum((source.get("rows_dropped") or {}).values())
    numbers = (source["rows_read"], source["rows_used"], dropped)
    return split, public_name(str(source["name"])), source["format_name"], *(f"{number:,}" for number in numbers)


def _metrics(record: RunRecord) -> Markdown | None:
    before, after = record.summary.get("eval_before") or {}, record.summary.get("eval_after") or {}
    rows = [
        (label, *(_number(scores.get(key), key) for scores in (before, after)))
        for key, label in SCORES.items()
        if key in before or key in after
    ]
    return markdown_table(("", "before", "after"), rows) if rows else None


def _number(value: Any, key: str) -> str:
    return _FORMATS[key](value) if isinstance(value, int | float) else "-"


def _samples(record: RunRecord) -> Iterator[str]:
    for sample in (record.summary.get("samples") or [])[:MAX_SAMPLES]:
        texts = {label: str(sample.get(label) or "") for label in ("prompt", "before", "after")}
        yield "\n".join(f"{label:<6}  {text}" for label, text in texts.items())


def _settings(record: RunRecord) -> Markdown | None:
    given = [key for key in _SETTINGS if _is_set(record.settings.get(key))]
    rows: list[tuple[str, str]] = [(Markdown(f"`{key}`"), _setting_text(record.settings[key])) for key in given]
    batch = (record.summary.get("batch_plan") or {}).get("global_batch_size")
    if batch is not None:
        rows.insert(0, ("rows per step", str(batch)))
    return markdown_table(("setting", "value"), rows) if rows else None


def _is_set(value: Any) -> bool:
    return value not in (None, False, -1, 0, [], {})


def _setting_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items() if _is_set(item))
    return str(value)


def _versions(record: RunRecord) -> Markdown:
    trained, here = record.summary.get("versions") or {}, installed_versions()
    rows = [(name, str(trained.get(name, "-")), here.get(name, "-")) for name in sorted({*trained, *here})]
    return markdown_table(("", "training", "export"), rows)

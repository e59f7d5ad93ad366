"""The README.md of an exported model: what is known of it, and what its owner has to fill in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sft.common.text import printable, share_text
from sft.reporting.run_record import RunRecord
from sft.reporting.summary import installed_versions

_FIGURES = (
    ("loss", "validation loss", "{:.4f}".format),
    ("perplexity", "perplexity", "{:,.2f}".format),
    ("token_accuracy", "tokens right", share_text),
    ("sequence_accuracy", "answers right", share_text),
)
_SETTINGS = (
    "learning_rate", "lr_scheduler_type", "warmup_ratio", "warmup_steps", "num_train_epochs", "max_steps",
    "max_seq_length", "weight_decay", "max_grad_norm", "optim", "seed", "packing", "train_on", "lora_config",
    "quantization_config",
)  # fmt: skip
_TO_FILL_IN = """\
## To be filled in

- [ ] `license` at the head of this file: the base model's and the data's licences decide what it may be.
- [ ] Licence and origin of the data:
- [ ] What the model is for, and what it is not for:
- [ ] Known limits, and how it was tried beyond the figures above:
- [ ] Contact:
"""


def model_card(
    name: str,
    base: str | None,
    record: RunRecord,
    *,
    is_checkpoint: bool,
    chat_example: str | None,
    exported: Sequence[str],
) -> str:
    """The text of the card.

    Args:
        name: of the model.
        base: what it was trained from; None if nobody knows.
        record: of the run.
        is_checkpoint: of the middle of a run: its figures are not the run's.
        chat_example: a conversation as the chat template writes it; None without a template.
        exported: sentences on how the folder was made, and how that was checked.
    """
    sections = [
        _head(base),
        f"# {name}\n",
        _made_from(base, record),
        _use(is_chat=chat_example is not None),
        _data(record),
        "" if is_checkpoint else _figures(record),
        "" if is_checkpoint else _samples(record),
        _settings(record),
        _template(chat_example),
        "## Export\n\n" + "\n".join(f"- {_plain(sentence)}" for sentence in exported) + "\n",
        _versions(record),
        _TO_FILL_IN,
    ]
    return "\n".join(section for section in sections if section)


def name_of(place: str) -> str:
    """A model's name as a card may show it: a folder's own name, without where it lies on somebody's disk."""
    return Path(place).name if Path(place).exists() or place.startswith(("/", ".", "~")) else place


def _head(base: str | None) -> str:
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["sft"]}
    if base is not None and name_of(base) == base:  # the Hub takes names of its own models alone
        head["base_model"] = base
    return f"---\nlicense: unknown  # fill in\n{yaml.safe_dump(head, sort_keys=False)}---\n"


def _made_from(base: str | None, record: RunRecord) -> str:
    start = f"Fine-tuned from `{_plain(name_of(base))}`" if base else "Fine-tuned; what from is not recorded"
    settings, train = record.settings, record.summary.get("train") or {}
    how = "all weights" if not settings.get("lora_config") else "low-rank adapters (LoRA)"
    if settings.get("quantization_config"):
        how += " on a quantized base"
    if not settings:
        return f"{start}.\n"
    steps = f", {train['steps']:,} steps" if isinstance(train.get("steps"), int) else ""
    return f"{start} by supervised fine-tuning: {how}{steps}.\n"


def _use(*, is_chat: bool) -> str:
    said = '[{"role": "user", "content": "Hello!"}]' if is_chat else '"Once upon a time"'
    return (
        "## Use\n\n```python\nfrom transformers import pipeline\n\n"
        'generate = pipeline("text-generation", model="PATH_OR_NAME_OF_THIS_MODEL")\n'
        f'print(generate({said}, max_new_tokens=256)[0]["generated_text"])\n```\n'
    )


def _data(record: RunRecord) -> str:
    data = record.summary.get("data")
    if not isinstance(data, Mapping):
        return "## Data\n\nNot recorded.\n"
    rows = []
    for split in ("train", "validation"):
        for source in (data.get(split) or {}).get("sources") or []:
            dropped = sum((source.get("rows_dropped") or {}).values())
            cells = (split, name_of(str(source["name"])), source["format_name"], f"{source['rows_read']:,}",
                     f"{source['rows_used']:,}", f"{dropped:,}")  # fmt: skip
            rows.append(cells)
    train = data.get("train") or {}
    tokens = f"{train.get('tokens', 0):,} tokens an epoch, {train.get('supervised_tokens', 0):,} of them trained."
    return (
        "## Data\n\n"
        + _table(("split", "source", "format", "rows read", "rows used", "left out"), rows)
        + f"\n{tokens}\n"
    )


def _figures(record: RunRecord) -> str:
    before, after = record.summary.get("eval_before") or {}, record.summary.get("eval_after") or {}
    rows = [
        (label, *(form(found[key]) if isinstance(found.get(key), int | float) else "-"
                  for found in (before, after)))
        for key, label, form in _FIGURES
        if key in before or key in after
    ]  # fmt: skip
    return "## Figures\n\nOn the validation data.\n\n" + _table(("", "before", "after"), rows) if rows else ""


def _samples(record: RunRecord) -> str:
    rows = [
        tuple(str(sample.get(key) or "") for key in ("prompt", "before", "after"))
        for sample in (record.summary.get("samples") or [])[:3]
    ]
    return "## Samples\n\n" + _table(("prompt", "before", "after"), rows) if rows else ""


def _settings(record: RunRecord) -> str:
    found = [(f"`{key}`", _short(record.settings[key])) for key in _SETTINGS if _is_told(record.settings.get(key))]
    batch = (record.summary.get("batch_plan") or {}).get("global_batch_size")
    if batch is not None:
        found.insert(0, ("rows a step", str(batch)))
    return "## Training\n\n" + _table(("setting", "value"), found) if found else ""


def _template(chat_example: str | None) -> str:
    if chat_example is None:
        return "## Prompt\n\nThere is no chat template: the model continues text.\n"
    shown = "\n".join(printable(line) for line in chat_example.rstrip("\n").split("\n"))
    fence = "`" * max(3, 1 + _longest_run(shown, "`"))
    return f"## Prompt\n\nThe chat template (`chat_template.jinja`) writes:\n\n{fence}text\n{shown}\n{fence}\n"


def _versions(record: RunRecord) -> str:
    trained, here = record.summary.get("versions") or {}, installed_versions()
    if not trained:
        trained = {}
    rows = [(name, str(trained.get(name, "-")), here.get(name, "-")) for name in sorted({*trained, *here})]
    return "## Versions\n\n" + _table(("", "training", "export"), rows)


def _is_told(value: Any) -> bool:
    return value not in (None, False, -1, 0, [], {})


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items() if _is_told(item))
    return str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_plain(str(cell)) for cell in line) + " |" for line in lines) + "\n"


def _plain(text: str) -> str:
    """On one line, and without what would end a table's cell or begin a tag."""
    return printable(text.replace("\n", " ")).replace("|", "\\|").replace("<", "&lt;")


def _longest_run(text: str, character: str) -> int:
    longest = current = 0
    for each in text:
        current = current + 1 if each == character else 0
        longest = max(longest, current)
    return longest

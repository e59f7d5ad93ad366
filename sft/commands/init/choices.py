"""Sensible values for a first run, each with its reason, from what was found of model, data and machine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from sft.batching.advice import with_4bit_weights, with_adapters
from sft.batching.memory import MemoryFacts, estimate_memory
from sft.commands.init.facts import METHODS, Answers, DataFacts, MachineFacts, ModelFacts
from sft.common.run_records import ModelFootprint
from sft.common.text import counted, size
from sft.modeling.supervised_loss import chunk_bytes

_SHARE_OF_MEMORY = 0.9
_LONGEST = 8192
"""Tokens; longer rows are left out unless the person raises it."""
_NOT_LOOKED_AT = 1024
_CPU_PROCESS_BYTES = 500 * 2**20
"""A process with its libraries, before there is a model (measured: benchmarks/RESULTS.md)."""
_SMALL_BATCH = 4
"""Rows at a time below which a GPU is better used with checkpointing and more rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """How a method would lie in memory."""

    method: str
    rows: int
    """At a time on each device; 0 where nothing is known."""
    gradient_checkpointing: bool = False
    optimizer: str = "adamw_torch_fused"
    needed_bytes: int = 0
    """Predicted, on each device; 0 where the model's size is not known."""
    fits: bool = True


def choose_length(data: DataFacts, model: ModelFacts) -> int:
    """`max_seq_length`: what holds the longest row, as far as the model's positions and memory go."""
    limit = min(_LONGEST, model.positions or _LONGEST)
    if data.longest_row is None:
        return min(_NOT_LOOKED_AT, limit)
    step = 128 if data.longest_row <= 1024 else 512
    return min(max(math.ceil(data.longest_row * 1.1 / step) * step, 128), limit)


def choose_rows_a_step(data: DataFacts, num_gpus: int) -> int:
    """`global_batch_size`: small for little data, so that there are steps enough; a multiple of the GPUs."""
    wanted = 8 if 0 < data.rows < 500 else 16 if data.rows < 5000 else 32
    return math.ceil(wanted / num_gpus) * num_gpus


def fit_methods(model: ModelFacts, data: DataFacts, machine: MachineFacts, num_gpus: int) -> dict[str, Fit]:
    """How each method would lie in the memory of one device."""
    if model.footprint is None or machine.memory_bytes is None:
        return {method: Fit(method=method, rows=0) for method in METHODS}
    return {method: _fit(method, model.footprint, model, data, machine, num_gpus) for method in METHODS}


def suggest_method(fits: dict[str, Fit]) -> str:
    """All weights where they fit as they are, else adapters, else adapters on 4-bit weights."""
    if not fits["full"].needed_bytes:
        return "lora"
    if fits["full"].fits and fits["full"].optimizer == "adamw_torch_fused":
        return "full"
    return "lora" if fits["lora"].fits else "qlora"


def _fit(
    method: str, footprint: ModelFootprint, model: ModelFacts, data: DataFacts, machine: MachineFacts, num_gpus: int
) -> Fit:
    length = choose_length(data, model)
    longest = min(data.longest_row or length, length)
    on_gpu = machine.device == "cuda"
    here = 1 if on_gpu else num_gpus
    budget = int(_SHARE_OF_MEMORY * (machine.memory_bytes or 0)) // here
    base = MemoryFacts(
        footprint=footprint, per_device_train_batch_size=1, gradient_accumulation_steps=2, tokens=longest,
        longest_row=longest, weights="float32", mixed="bf16" if on_gpu else "no",
        optimizer="adamw_torch_fused", gradient_checkpointing=False, device=machine.device,
        logits_chunk_bytes=chunk_bytes(machine.device), world_size=num_gpus,
        process_bytes=0 if on_gpu else _CPU_PROCESS_BYTES,
    )  # fmt: skip
    if method != "full":
        base = with_adapters(base)
    if method == "qlora":
        base = with_4bit_weights(base)
    a_device = choose_rows_a_step(data, num_gpus) // num_gpus
    sizes = [rows for rows in range(min(a_device, 16 if on_gpu else 8), 0, -1) if a_device % rows == 0]
    variants = list(_variants(base, sizes, method))
    for facts in variants:
        if estimate_memory(facts).total_bytes <= budget:
            return _as_fit(method, facts, fits=True)
    return _as_fit(method, min(variants, key=lambda each: estimate_memory(each).total_bytes), fits=False)


def _variants(base: MemoryFacts, sizes: list[int], method: str) -> Iterator[MemoryFacts]:
    """From the fastest to the smallest: many rows, then checkpointing, then an optimizer in 8 bits, then few rows."""
    checkpointed = replace(base, gradient_checkpointing=True)
    small = replace(checkpointed, optimizer="adamw_bnb_8bit")
    enough = [rows for rows in sizes if rows >= min(_SMALL_BATCH, max(sizes))]
    tried = [(base, enough), (checkpointed, enough), (checkpointed, sizes)]
    if method == "full" and base.device == "cuda":
        tried += [(small, sizes)]
    for facts, rows_tried in tried:
        for rows in rows_tried:
            yield replace(facts, per_device_train_batch_size=rows, tokens=rows * facts.longest_row)


def _as_fit(method: str, facts: MemoryFacts, *, fits: bool) -> Fit:
    return Fit(
        method=method,
        rows=facts.per_device_train_batch_size,
        gradient_checkpointing=facts.gradient_checkpointing,
        optimizer=facts.optimizer,
        needed_bytes=estimate_memory(facts).total_bytes,
        fits=fits,
    )


Line = tuple[str, str, str]
"""Key, value as YAML, reason. A key with leading spaces stands inside of a section; an empty one is a heading."""


def choose_settings(answers: Answers, machine: MachineFacts, fit: Fit) -> list[Line]:
    """Every line of the file, in the order of the guide."""
    return [
        *_model_lines(answers),
        *_data_lines(answers),
        *_training_lines(answers, machine, fit),
        *_adapter_lines(answers.method),
        *_device_lines(answers, machine),
        ("", "Logging", ""),
        ("report_to", "tensorboard", "also wandb, both as a list, or none"),
        ("logging_steps", "10", "steps"),
    ]


def _model_lines(answers: Answers) -> Iterator[Line]:
    model = answers.model
    yield "", "Model", ""
    found = model.problem or _model_words(model)
    yield "model_name_or_path", _text(model.name), found


def _model_words(model: ModelFacts) -> str:
    parameters = f"{model.footprint.num_parameters:,} parameters" if model.footprint else model.problem
    positions = f"{model.positions:,} positions" if model.positions else ""
    return ", ".join(part for part in (model.class_name, parameters, positions) if part)


def _data_lines(answers: Answers) -> Iterator[Line]:
    data, model = answers.data, answers.model
    yield "", "Data", ""
    if data.key == "dataset_name":
        yield "dataset_name", _text(data.place), "on the Hugging Face Hub; not looked at"
    else:
        rows = counted(data.rows, "row") if data.is_complete else f"more than {data.rows:,} rows"
        yield "train_file", _text(data.place), f"{rows}, read as {data.format_name}"
    if data.mapped:
        pairs = ", ".join(f"{_text(theirs)}: {ours}" for theirs, ours in data.mapped.items())
        yield "dataset_columns", f"{{{pairs}}}", "guessed by the columns' names: look at the dry run's rows"
    yield from _validation_lines(data)
    length = choose_length(data, model)
    yield "max_seq_length", str(length), _length_reason(data, model, length)
    if data.longest_row is not None and data.longest_row > length:
        yield "on_too_long", "drop", "rows that are longer are left out and counted; truncate cuts their end"
    if data.bad_rows:
        yield (
            "on_bad_rows", "skip",
            f"{data.bad_rows:,} of {data.rows:,} cannot be used, first {_plain(data.first_bad_row)}",
        )  # fmt: skip


def _validation_lines(data: DataFacts) -> Iterator[Line]:
    if data.is_validation_found:
        return
    if data.validation is not None:
        yield "validation_file", _text(data.validation), "lies beside it; not trained on"
    elif data.key == "dataset_name" or data.rows - data.bad_rows >= 20:
        share = 0.1 if data.rows < 1000 else 0.05
        yield "validation_split", str(share), "share of the rows set aside: does it learn, or learn by heart?"


def _length_reason(data: DataFacts, model: ModelFacts, length: int) -> str:
    if data.longest_row is None:
        return "tokens; the dry run says how long the rows are"
    how = "counted with its tokenizer" if data.are_tokens_counted else "estimated"
    longest = f"tokens; the longest row has up to {data.longest_row:,} ({how})"
    if data.longest_row <= length:
        return longest
    return f"{longest}; {'the positions of the model' if length == model.positions else 'more takes much memory'}"


def _training_lines(answers: Answers, machine: MachineFacts, fit: Fit) -> Iterator[Line]:
    data = answers.data
    yield "", "Training", ""
    yield "output_dir", _text(answers.output_dir), "the model, checkpoints and the report go there"
    total = choose_rows_a_step(data, answers.num_gpus)
    yield "global_batch_size", str(total), "rows of a step, on all devices together: this decides the training"
    if fit.needed_bytes:
        memory = f"{size(fit.needed_bytes)} of {size(machine.memory_bytes or 0)}"
        yield "per_device_train_batch_size", str(fit.rows), f"rows at a time: {memory} predicted; auto: by trial"
    else:
        yield "per_device_train_batch_size", "auto", "rows at a time, found by trial at the start"
    if fit.gradient_checkpointing or not fit.needed_bytes:
        yield "gradient_checkpointing", "true", "much less memory, about a quarter slower"
    if fit.optimizer != "adamw_torch_fused":
        yield "optim", fit.optimizer, "its state in 8 bits: a quarter of AdamW's memory"
    yield "learning_rate", *_learning_rate(answers)
    epochs = 3 if data.rows < 5000 else 2 if data.rows < 50_000 else 1
    yield "num_train_epochs", str(epochs), "passes over the data; little data bears more of them"
    yield "warmup_ratio", "0.03", "share of the steps in which the learning rate rises"
    yield "lr_scheduler_type", "cosine", "then it falls to 0 along a cosine"
    if epochs * data.rows / total > 200:
        yield "eval_steps", "0.1", "evaluate at each tenth of the run"
        yield "save_steps", "0.1", "and save: resume_from_checkpoint: auto goes on there"


def _learning_rate(answers: Answers) -> tuple[str, str]:
    if answers.method != "full":
        return "2e-4", "usual for adapters: 1e-4 to 3e-4"
    footprint = answers.model.footprint
    if footprint is not None and footprint.num_parameters < 20_000_000:
        return "1e-3", "high, for a tiny model; usual for all weights: 1e-5 to 5e-5"
    if footprint is not None and footprint.num_parameters < 500_000_000:
        return "5e-5", "usual for all weights of a small model"
    return "2e-5", "usual for all weights: 1e-5 to 5e-5"


def _adapter_lines(method: str) -> Iterator[Line]:
    if method == "full":
        return
    yield "", "Adapters", ""
    yield "lora_config", "", ""
    yield "  r", "16", "rank: 8 to 64; more holds more and takes more memory"
    yield "  lora_alpha", "32", "scale: twice the rank is usual"
    yield "  target_modules", "all-linear", "every linear layer but the output: as good as all weights on most data"
    if method == "qlora":
        yield "quantization_config", "", ""
        yield "  load_in_4bit", "true", "frozen weights in 4 bits (needs bitsandbytes): a quarter of their memory"


def _device_lines(answers: Answers, machine: MachineFacts) -> Iterator[Line]:
    if answers.num_gpus == 1:
        return
    yield "", "Several GPUs", ""
    where = "processes, one a GPU" if machine.num_gpus else "processes; here, without a GPU, on CPU"
    yield "num_gpus", str(answers.num_gpus), where


def _text(text: str) -> str:
    """A text as one YAML scalar."""
    import yaml

    return yaml.safe_dump(text, allow_unicode=True, width=10_000).removesuffix("\n...\n").removesuffix("\n")


def _plain(text: str) -> str:
    """A text for a comment: on one line, of bearable length."""
    text = " ".join(text.split())
    return text if len(text) <= 100 else f"{text[:96]} ..."

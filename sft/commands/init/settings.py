"""The settings of a first configuration, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from sft.batching.larger_steps import larger_step
from sft.commands.init.findings import Choices, DataInfo, MachineInfo, ModelInfo
from sft.commands.init.fit import Fit, choose_global_batch_size, choose_max_seq_length
from sft.common.run_records import ModelFootprint
from sft.common.text import counted, percent, size, visible

_MAX_COMMENT_LENGTH = 100

Line = tuple[str, str, str]
"""Key, value as YAML, reason. A key with leading spaces belongs to the section above; an empty key is a heading."""


def choose_settings(choices: Choices, machine: MachineInfo, fit: Fit) -> list[Line]:
    """Return all lines of the file, in the order of the documentation."""
    return [
        *_model_lines(choices.model),
        *_data_lines(choices),
        *_training_lines(choices, machine, fit),
        *_adapter_lines(choices.method, choices.model.footprint),
        *_device_lines(choices, machine),
        ("", "Logging", ""),
        ("report_to", "tensorboard", "or wandb, a list of both, or none"),
        ("logging_steps", "10", "steps"),
    ]


def _model_lines(model: ModelInfo) -> Iterator[Line]:
    yield "", "Model", ""
    yield "model_name_or_path", _yaml_scalar(model.name), model.problem or _describe_model(model)


def _describe_model(model: ModelInfo) -> str:
    parameters = f"{model.footprint.num_parameters:,} parameters" if model.footprint else model.problem
    context = f"context length {model.context_length:,} tokens" if model.context_length else ""
    return ", ".join(part for part in (model.class_name, parameters, context) if part)


def _data_lines(choices: Choices) -> Iterator[Line]:
    data, model = choices.data, choices.model
    yield "", "Data", ""
    if data.key == "dataset_name":
        yield "dataset_name", _yaml_scalar(data.name), "on the Hugging Face Hub; not inspected"
    else:
        rows = counted(data.num_rows, "row") if data.is_complete else f"more than {data.num_rows:,} rows"
        yield "train_file", _yaml_scalar(data.name), f"{rows} in the format {data.format_name}"
    if data.dataset_columns:
        pairs = ", ".join(f"{_yaml_scalar(theirs)}: {ours}" for theirs, ours in data.dataset_columns.items())
        yield "dataset_columns", f"{{{pairs}}}", "guessed from the names of the columns: check the rows in the dry run"
    yield from _validation_lines(data)
    length = choose_max_seq_length(data, model)
    yield "max_seq_length", str(length), _length_reason(data, model, length)
    if data.max_tokens is not None and data.max_tokens > length:
        yield "on_too_long", "drop", "longer rows are dropped and counted; truncate cuts off their end"
    if data.num_unanswerable:
        without = f"{data.num_unanswerable:,} of {data.num_rows:,} questions have no answer"
        yield "unanswerable", "skip", f"{without}; any other text is trained as their answer"
    if data.num_bad_rows:
        bad_rows = f"{data.num_bad_rows:,} of {data.num_rows:,} rows cannot be used"
        yield "on_bad_rows", "skip", f"{bad_rows}, the first: {_shorten(data.first_bad_row)}"


def _validation_lines(data: DataInfo) -> Iterator[Line]:
    if data.is_validation_found:
        return
    if data.validation is not None:
        yield "validation_file", _yaml_scalar(data.validation), "in the same folder; not trained on"
    elif data.key == "dataset_name" or data.num_rows - data.num_bad_rows - data.num_unanswerable >= 20:
        share = 0.1 if data.num_rows < 1000 else 0.05
        yield "validation_split", str(share), "share of the rows held out, to detect overfitting"


def _length_reason(data: DataInfo, model: ModelInfo, length: int) -> str:
    if data.max_tokens is None:
        return "tokens; the dry run shows the lengths of the rows"
    how = "counted with the tokenizer" if data.are_tokens_counted else "estimated"
    reason = f"tokens; the longest row has up to {data.max_tokens:,} ({how})"
    if data.max_tokens <= length:
        return reason
    return f"{reason}; {'the context length' if length == model.context_length else 'longer rows take much memory'}"


def _training_lines(choices: Choices, machine: MachineInfo, fit: Fit) -> Iterator[Line]:
    data = choices.data
    yield "", "Training", ""
    yield "output_dir", _yaml_scalar(choices.output_dir), "folder for the model, checkpoints and the report"
    total = choose_global_batch_size(data, choices.num_gpus)
    yield (
        "global_batch_size",
        str(total),
        f"rows per step, on all devices together{_larger_step(choices, machine, total)}",
    )
    if fit.needed_bytes:
        memory = f"{size(fit.needed_bytes)} of {size(machine.memory_bytes or 0)}"
        reason = f"micro-batch size; estimated memory: {memory}; auto: find it by trial"
        yield "per_device_train_batch_size", str(fit.micro_batch_size), reason
    else:
        yield "per_device_train_batch_size", "auto", "micro-batch size, found by trial at the start"
    if fit.gradient_checkpointing or not fit.needed_bytes:
        yield "gradient_checkpointing", "true", "much less memory, about a quarter slower"
    if fit.optimizer != "adamw_torch_fused":
        yield "optim", fit.optimizer, "8-bit state: a quarter of AdamW's memory"
    yield "learning_rate", *_learning_rate(choices)
    epochs = 3 if data.num_rows < 5000 else 2 if data.num_rows < 50_000 else 1
    yield "num_train_epochs", str(epochs), "passes over the data; fewer for large data sets"
    yield "warmup_ratio", "0.03", "share of the steps in which the learning rate rises"
    yield "lr_scheduler_type", "cosine", "then it falls to 0 along a cosine"
    if epochs * data.num_rows / total > 200:
        yield "eval_steps", "0.1", "evaluate after each tenth of the run"
        yield "save_steps", "0.1", "save as well; resume_from_checkpoint: auto resumes from there"


def _larger_step(choices: Choices, machine: MachineInfo, total: int) -> str:
    """What more rows a step would save, after `rows per step`; nothing where it is little."""
    footprint, tokens = choices.model.footprint, choices.data.mean_tokens * total / choices.num_gpus
    if choices.method != "full" or footprint is None or not tokens:
        return ""
    step = larger_step(footprint, tokens, machine.device)
    return "" if step is None else f"; {step.times * total} would save {step.saved_share:.0%} of the time of an epoch"


def _learning_rate(choices: Choices) -> tuple[str, str]:
    if choices.method != "full":
        return "2e-4", "usual for LoRA: 1e-4 to 3e-4"
    footprint = choices.model.footprint
    if footprint is not None and footprint.num_parameters < 20_000_000:
        return "1e-3", "high, for a tiny model; usual for full fine-tuning: 1e-5 to 5e-5"
    if footprint is not None and footprint.num_parameters < 500_000_000:
        return "5e-5", "usual for full fine-tuning of a small model"
    return "2e-5", "usual for full fine-tuning: 1e-5 to 5e-5"


def _adapter_lines(method: str, footprint: ModelFootprint | None) -> Iterator[Line]:
    if method == "full":
        return
    yield "", "Adapters", ""
    yield "lora_config", "", ""
    yield "  r", "16", "rank: 8 to 64; a higher rank learns more and takes more memory"
    yield "  lora_alpha", "32", "scale: usually twice the rank"
    yield "  target_modules", "all-linear", "all linear layers except the output layer"
    if method == "qlora":
        reason = "frozen weights in 4 bits (requires bitsandbytes): a quarter of their memory"
        if footprint is not None and footprint.num_stacked_parameters:
            share = percent(footprint.num_stacked_parameters, footprint.num_parameters)
            reason += f"; not of the experts ({share} of the parameters), which bitsandbytes cannot quantize"
        yield "quantization_config", "", ""
        yield "  load_in_4bit", "true", reason


def _device_lines(choices: Choices, machine: MachineInfo) -> Iterator[Line]:
    if choices.num_gpus == 1:
        return
    yield "", "Several GPUs", ""
    reason = "processes, one per GPU" if machine.num_gpus else "processes; on the CPU, as this machine has no GPU"
    yield "num_gpus", str(choices.num_gpus), reason


def _yaml_scalar(text: str) -> str:
    is_visible = visible(text) == text  # otherwise YAML's own escapes are used
    return yaml.safe_dump(text, allow_unicode=is_visible, width=10_000).removesuffix("\n...\n").removesuffix("\n")


def _shorten(text: str) -> str:
    """Put a text on one line, for a comment."""
    text = " ".join(text.split())
    return text if len(text) <= _MAX_COMMENT_LENGTH else f"{text[: _MAX_COMMENT_LENGTH - 4]} ..."

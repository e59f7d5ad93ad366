"""Old and foreign names of keys: translated with a notice, ignored with a notice, or rejected with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import yaml

from sft.configuration.coercion import FALSE_WORDS, TRUE_WORDS


class Renamed(NamedTuple):
    """Current name of a key, and how its value is converted."""

    name: str
    convert: Callable[[str], str] | None = None


def _group_by_length(value: str) -> str:
    word = value.strip().lower()
    # Any other value is passed on and rejected as a sampling strategy.
    return "group_by_length" if word in TRUE_WORDS else "random" if word in FALSE_WORDS else value


def _dtype(value: str) -> str:
    return value.removeprefix("torch.")


RENAMED: dict[str, Renamed] = {
    "evaluation_strategy": Renamed("eval_strategy"),
    "torch_dtype": Renamed("dtype", _dtype),
    "group_by_length": Renamed("train_sampling_strategy", _group_by_length),
    "torchdynamo": Renamed("torch_compile_backend"),
    "no_cuda": Renamed("use_cpu"),
    "per_gpu_train_batch_size": Renamed("per_device_train_batch_size"),
    "per_gpu_eval_batch_size": Renamed("per_device_eval_batch_size"),
    "xpu_backend": Renamed("ddp_backend"),
    "push_to_hub_token": Renamed("hub_token"),
    "push_to_hub_model_id": Renamed("hub_model_id"),
    "tokenizer_name": Renamed("tokenizer_name_or_path"),
    "max_length": Renamed("max_seq_length"),
    "max_seq_len": Renamed("max_seq_length"),
    "activation_checkpointing": Renamed("gradient_checkpointing"),
    "activation_checkpointing_kwargs": Renamed("gradient_checkpointing_kwargs"),
}

WITHOUT_EFFECT: dict[str, str] = {
    "overwrite_output_dir": "files of an earlier run in output_dir are moved aside, never overwritten",
    "save_safetensors": "weights are always saved as safetensors",
    "do_train": "a run always trains",
    "do_eval": "a run evaluates if there is validation data",
    "use_ipex": "the option no longer exists",
    "use_mps_device": "an Apple GPU is used if there is one",
    "fp16_backend": "mixed precision always uses torch.autocast",
    "half_precision_backend": "mixed precision always uses torch.autocast",
    "fp16_opt_level": "mixed precision always uses torch.autocast",
    "include_tokens_per_second": "tokens per second are always measured",
    "mp_parameters": "the option no longer exists",
    "tpu_metrics_debug": "the option no longer exists",
    "past_index": "the option no longer exists",
    "use_legacy_prediction_loop": "the option no longer exists",
}
"""Keys that are ignored with a notice, because what they ask for happens anyway or no longer exists."""

MANAGED: dict[str, str] = {
    "remove_unused_columns": "batches contain exactly the columns that the model uses",
    "label_names": "labels are made from the chat template",
    "average_tokens_across_devices": "the loss is always the mean over the tokens of all devices",
    "logging_nan_inf_filter": "a loss of NaN or inf is always reported",
    "auto_find_batch_size": "it changes the global batch size; use auto_batch_size: true with global_batch_size",
    "ddp_static_graph": "the communication hook works without it",
    "accelerator_config": "this program assembles batches itself, the same for any number of processes",
    "prediction_loss_only": "evaluation keeps metric sums, not predictions",
    "batch_eval_metrics": "evaluation keeps metric sums, not predictions",
    "bf16_full_eval": "evaluation uses the same mixed precision as training",
    "fp16_full_eval": "evaluation uses the same mixed precision as training",
    "include_for_metrics": "evaluation keeps metric sums, not predictions",
    "include_inputs_for_metrics": "evaluation keeps metric sums, not predictions",
    "eval_accumulation_steps": "evaluation keeps metric sums, not predictions",
    "eval_do_concat_batches": "evaluation keeps metric sums, not predictions",
    "eval_use_gather_object": "evaluation keeps metric sums, not predictions",
    "do_predict": "there is no prediction mode",
    "local_rank": "the launcher sets it",
    "log_level": "this program configures its own logging",
    "log_level_replica": "this program configures its own logging",
    "log_on_each_node": "only the first process logs",
    "disable_tqdm": "progress is logged line by line",
    "ignore_data_skip": "a resumed run always continues with the next rows",
    "length_column_name": "row lengths are measured",
    "parallelism_config": "it is not supported",
    "fsdp_config": "use fsdp: {}, optionally with checkpoints and reshard_after_forward; the rest is automatic",
    "fsdp_min_num_params": "the layers to shard are found automatically; use fsdp: {}",
    "fsdp_transformer_layer_cls_to_wrap": "the layers to shard are found automatically; use fsdp: {}",
    "adafactor": "transformers removed it; use optim: adafactor",
    "jit_mode_eval": "transformers removed it",
    "ray_scope": "transformers removed it; there is no hyperparameter search",
    "tpu_num_cores": "transformers removed it; the launcher sets the number of cores",
    "push_to_hub_organization": "transformers removed it; use hub_model_id: organization/name",
    "project": "it is for Trackio; for Weights & Biases use wandb_project",
    "skip_memory_metrics": "memory is always measured",
    "include_num_input_tokens_seen": "tokens are always counted",
    "enable_jit_checkpoint": "a checkpoint is always saved when the run is interrupted",
    "eval_on_start": "a run always evaluates before training",
    "assistant_only_loss": "only assistant messages of a conversation are trained",
    "completion_only_loss": "only the completion of a prompt is trained",
    "train_on_inputs": "prompts are never trained; the format text trains all tokens",
    "train_on_prompt": "prompts are never trained; the format text trains all tokens",
}
"""Keys of TrainingArguments (current or old) and of other trainers that cannot be set, with the reason."""

_NO_POWERSGD = (
    "PowerSGD carries the error of its approximation from step to step, a copy of all gradients that differs on each "
    "process and would be part of every checkpoint; its result depends on the number of processes; and a sum of its "
    "starts when another ends, so a process that is out of memory cannot take part"
)
REJECTED_VALUES: dict[str, dict[str, str]] = {
    "ddp_comm_hook": dict.fromkeys(("powersgd", "power_sgd", "batched_power_sgd"), _NO_POWERSGD)
}
"""Key -> values that other trainers accept -> the reason why they are invalid here."""

HINTS: dict[str, str] = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "per_device_batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "model": "model_name_or_path",
    "model_name": "model_name_or_path",
    "base_model": "model_name_or_path",
    "dataset": "dataset_name",
    "data_path": "dataset_path",
    "cutoff_len": "max_seq_length",
    "sequence_len": "max_seq_length",
    "excess_length_strategy": "on_too_long",
    "mask_history": "train_on",
    "dataset_num_proc": "preprocessing_num_workers",
    "dataset_processes": "preprocessing_num_workers",
    "dataset_prepared_path": "data_cache_dir",
    "buffer_size": "shuffle_block_rows",
    "dataset_mixer": "datasets",
    "dataset_mixture": "datasets",
    "datasets[].file": "datasets[].path",
    "datasets[].data_files": "datasets[].path",
    "datasets[].dataset": "datasets[].name",
    "datasets[].subset": "datasets[].config",
    "datasets[].type": "datasets[].format",
    "datasets[].ratio": "datasets[].weight",
    "datasets[].num_samples": "datasets[].max_rows",
    "eval_file": "validation_file",
    "val_size": "validation_split",
    "val_set_size": "validation_split",
    "gpus": "num_gpus",
    "total_batch_size": "global_batch_size",
    "train_batch_size": "global_batch_size",
    "gradient_accumulation": "gradient_accumulation_steps",
    "lora": "lora_config",
    "peft_config": "lora_config",
    "lora_r": "lora_config.r",
    "lora_rank": "lora_config.r",
    "lora_alpha": "lora_config.lora_alpha",
    "lora_dropout": "lora_config.lora_dropout",
    "lora_target": "lora_config.target_modules",
    "lora_target_modules": "lora_config.target_modules",
    "load_in_4bit": "quantization_config.load_in_4bit",
    "load_in_8bit": "quantization_config.load_in_8bit",
    "quantization": "quantization_config",
    "bnb_config": "quantization_config",
    "template": "chat_template",
    "neat_packing": "packing",
    "sample_packing": "packing",
    "enable_liger_kernel": "use_liger_kernel",
    "flash_attn": "attn_implementation",
    "fsdp.activation_checkpointing": "gradient_checkpointing",
    "fsdp.state_dict_type": "fsdp.checkpoints",
    "fsdp.fsdp_state_dict_type": "fsdp.checkpoints",
    "fsdp.fsdp_reshard_after_forward": "fsdp.reshard_after_forward",
}
"""Other trainers' names of keys -> ours. Only suggested, not translated, because meanings differ in detail."""


def converted_node(renamed: Renamed, node: yaml.Node) -> yaml.Node:
    """The node of the value, converted for the new name."""
    if renamed.convert is None or not isinstance(node, yaml.ScalarNode):
        return node
    return yaml.ScalarNode(node.tag, renamed.convert(node.value), node.start_mark, node.end_mark, node.style)

"""Names that people still write: translated to today's, with one line that says so, or refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import yaml

from sft.configuration.coercion import FALSE_WORDS, TRUE_WORDS


class Renamed(NamedTuple):
    """Today's name of a key, and how its value changes."""

    name: str
    change: Callable[[str], str] | None = None


def _group_by_length(value: str) -> str:
    word = value.strip().lower()
    # Anything else goes on as it is, and is refused as a sampling strategy.
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
    "overwrite_output_dir": "an earlier run's files in output_dir are set aside, never overwritten",
    "save_safetensors": "weights are always saved as safetensors",
    "do_train": "training is what a run does",
    "do_eval": "evaluation happens whenever there is validation data",
    "use_ipex": "the option no longer exists",
    "use_mps_device": "an Apple GPU is used where there is one",
    "fp16_backend": "mixed precision always uses torch's own",
    "half_precision_backend": "mixed precision always uses torch's own",
    "fp16_opt_level": "mixed precision always uses torch's own",
    "include_tokens_per_second": "tokens per second are always measured",
    "mp_parameters": "the option no longer exists",
    "tpu_metrics_debug": "the option no longer exists",
    "past_index": "the option no longer exists",
    "use_legacy_prediction_loop": "the option no longer exists",
}
"""Names that are gone and whose wish is met anyway: dropped with one line."""

MANAGED: dict[str, str] = {
    "remove_unused_columns": "the batches hold exactly what the model takes",
    "label_names": "labels are made from the chat template",
    "average_tokens_across_devices": "the loss is always the mean over the tokens of all devices",
    "logging_nan_inf_filter": "a loss that is not a number is shown, never hidden",
    "auto_find_batch_size": "it would change the global batch; write auto_batch_size: true with global_batch_size",
    "ddp_static_graph": "gradients are summed over processes by this project, once a step",
    "ddp_find_unused_parameters": "gradients are summed over processes by this project, for all weights that have one",
    "ddp_bucket_cap_mb": "gradients are summed over processes by this project, once a step",
    "ddp_broadcast_buffers": "gradients are summed over processes by this project, once a step",
    "accelerator_config": "batches are laid out by this project, the same on any number of processes",
    "prediction_loss_only": "evaluation keeps sums, never predictions",
    "batch_eval_metrics": "evaluation keeps sums, never predictions",
    "bf16_full_eval": "evaluation computes in the same mixed precision as training",
    "fp16_full_eval": "evaluation computes in the same mixed precision as training",
    "include_for_metrics": "evaluation keeps sums, never predictions",
    "include_inputs_for_metrics": "evaluation keeps sums, never predictions",
    "eval_accumulation_steps": "evaluation keeps sums, never predictions",
    "eval_do_concat_batches": "evaluation keeps sums, never predictions",
    "eval_use_gather_object": "evaluation keeps sums, never predictions",
    "do_predict": "there is no prediction mode",
    "local_rank": "the launcher sets it",
    "log_level": "the log is this project's own",
    "log_level_replica": "the log is this project's own",
    "log_on_each_node": "only the first process logs",
    "disable_tqdm": "progress is shown line by line",
    "ignore_data_skip": "a resumed run must see the data where it stopped",
    "length_column_name": "lengths are counted from the rows",
    "parallelism_config": "it is not supported here",
    "fsdp_config": "write fsdp: {}, with checkpoints or reshard_after_forward below it; the rest is found by itself",
    "fsdp_min_num_params": "which layers are spread is found by itself; write fsdp: {}",
    "fsdp_transformer_layer_cls_to_wrap": "which layers are spread is found by itself; write fsdp: {}",
    "adafactor": "transformers no longer has it; write optim: adafactor",
    "jit_mode_eval": "transformers no longer has it",
    "ray_scope": "transformers no longer has hyperparameter search among its arguments",
    "tpu_num_cores": "transformers no longer has it; the launcher says how many cores",
    "push_to_hub_organization": "transformers no longer has it; write hub_model_id: organization/name",
    "project": "it belongs to Trackio; for Weights & Biases write wandb_project",
    "skip_memory_metrics": "memory is always measured",
    "include_num_input_tokens_seen": "tokens are always counted",
    "enable_jit_checkpoint": "a checkpoint is always saved when the run is interrupted",
    "eval_on_start": "evaluation before training always takes place",
    "assistant_only_loss": "of a conversation, only what the assistant says is trained",
    "completion_only_loss": "of a prompt and its completion, only the completion is trained",
    "train_on_inputs": "prompts are never trained; the format text trains every token",
    "train_on_prompt": "prompts are never trained; the format text trains every token",
}
"""Fields of TrainingArguments, of today or earlier, and other trainers' keys, that may not be set here: the reason."""

HINTS: dict[str, str] = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
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
"""What other trainers call our keys: a suggestion only, since meanings differ in detail."""


def changed_node(renamed: Renamed, node: yaml.Node) -> yaml.Node:
    """The value's node under its new name."""
    if renamed.change is None or not isinstance(node, yaml.ScalarNode):
        return node
    return yaml.ScalarNode(node.tag, renamed.change(node.value), node.start_mark, node.end_mark, node.style)

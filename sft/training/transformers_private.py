"""The private names of transformers' Trainer that this project relies on, each with its reason.

Nothing else private is overridden or written: a test compares this list with the classes, and the parameters with the
installed transformers. They are the same in the oldest and the newest supported version (5.17 and 5.23). The list is to
become shorter.
"""

from __future__ import annotations

OVERRIDDEN: dict[str, tuple[str, ...]] = {
    # Saving: Trainer writes into the final folder, file by file; a killed save would be resumed from.
    "_get_output_dir": ("trial",),
    "_save_checkpoint": ("model", "trial"),
    "_save": ("output_dir", "state_dict"),
    "_save_optimizer_and_scheduler": ("output_dir",),
    # Loading: Trainer does not know sharded models of FSDP2, nor settings that changed since the checkpoint.
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    # Trainer loads the best checkpoint without checking it, and before the last one is published.
    "_load_best_model": (),
    "_finalize_training": ("trial", "num_train_samples", "start_time"),
    # Trainer reads all gradients for a norm that is known already, and writes them to clip.
    "_clip_grad_norm": ("model",),
    "_get_grad_norm": ("model", "grad_norm"),
    # A signal interrupts an evaluation, and `save_strategy: best` must still save.
    "_evaluate": ("trial", "ignore_keys_for_eval", "skip_scheduler"),
    "_determine_best_metric": ("metrics", "trial"),
}
"""Overridden method -> its parameters after `self`."""

WRITTEN: tuple[str, ...] = ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged")
"""Attributes that `running_means.py` reads and restores: Trainer starts these sums at zero when it resumes, so a log
across a checkpoint, and the mean loss of the run, would cover fewer steps than stated."""

WRITTEN_ARGUMENTS: tuple[str, ...] = ("_n_gpu",)
"""Attributes of `TrainingArguments` that `arguments.py` sets: the number of GPUs of one process. With more than one,
Trainer wraps the model in DataParallel, which `CUDA_VISIBLE_DEVICES` cannot always prevent."""

WRITTEN_MODEL: tuple[str, ...] = ("_weight_conversions",)
"""Attributes of a model that `sft/modeling/published_quantization.py` sets: what saving undoes. De-quantized weights
would be quantized again, as transformers prevents for GGUF files by the same assignment."""

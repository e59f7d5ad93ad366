"""Trains the same global batch with every factorization for a number of processes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from data_handler import prepare_data
from distributed_utils import start_distributed
from sft.configuration.schema import DataConfig, DistributedConfig, ModelConfig, TrainingConfig
from sft.modeling.loading import load_pretrained_model
from sft.training.arguments import build_training_arguments
from tests.support.setups import FLOAT32, setup_of
from trainer_utils import build_trainer, evaluate, train

GLOBAL_BATCH_SIZE = 16
FACTORIZATIONS = [(size, num_rows) for size in (1, 2, 4, 8, 16) for num_rows in (17,)]
RESIDUES = [(2, num_rows) for num_rows in range(1, 17)]
"""Micro-batch size, rows in the dataset."""


def train_all(model_folder: str, questions: str, folder: Path, residues: bool, prompt_weight: float = 0.0) -> None:
    """Train in each way, on all processes of this launch; saves each result in `folder` as `PROCESSES-SIZE-ROWS.pt`."""
    context = start_distributed(DistributedConfig(), use_cpu=True)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    config = DataConfig(train_file=questions, max_seq_length=64, validation_split=0.3, prompt_loss_weight=prompt_weight)
    data = prepare_data(config, tokenizer, seed=1)
    for size, num_rows in RESIDUES if residues else FACTORIZATIONS:
        if size * context.world_size > GLOBAL_BATCH_SIZE:
            continue
        some = dataclasses.replace(data, train=data.train.select(np.arange(num_rows)))
        result = train_one(model_folder, tokenizer, some, context, size, folder)
        if context.is_main_process:
            torch.save(result, folder / f"{context.world_size}-{size}-{num_rows}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def train_one(model_folder, tokenizer, data, context, size, folder):
    """Two epochs: gradients of the first step, losses, evaluation, weights, the rows that were trained on."""
    config = TrainingConfig(
        output_dir=str(folder),
        per_device_train_batch_size=size,
        num_train_epochs=2,
        optim="sgd",
        gradient_accumulation_steps=GLOBAL_BATCH_SIZE // size // context.world_size,
        learning_rate=0.5,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        extra_training_arguments={"save_strategy": "no", "eval_strategy": "no", "use_cpu": True},
    )
    model = load_pretrained_model(ModelConfig(model_name_or_path=model_folder), None, None, FLOAT32, context)
    setup = setup_of(config, data, model, tokenizer, context)
    trainer = build_trainer(setup, build_training_arguments(setup, context))
    gradients, seen = [], []
    check, add = trainer.trainer.bad_steps.check, trainer.trainer.step_gradient.add

    def keep_gradient(loss, weights, batches):
        gradients.append({name: w.grad.clone() for name, w in model.named_parameters()})
        return check(loss, weights, batches)

    def keep_rows(batch, *args, **kwargs):
        seen.extend(row["number"] for row in batch["rows"] if "number" in row)
        return add(batch, *args, **kwargs)

    trainer.trainer.bad_steps.check, trainer.trainer.step_gradient.add = keep_gradient, keep_rows
    result = train(trainer)
    if context.world_size > 1:
        rows = [None] * context.world_size
        torch.distributed.all_gather_object(rows, seen)
        seen = [row for own in rows for row in own]
    return {
        "gradients": gradients,
        "losses": [event["loss"] for event in trainer.trainer.state.log_history if "loss" in event],
        "plain_losses": [
            event["loss_unweighted"] for event in trainer.trainer.state.log_history if "loss_unweighted" in event
        ],
        "evaluation": list(evaluate(trainer.trainer).scores().values()),
        "weights": {name: weight.detach().clone() for name, weight in model.named_parameters()},
        "seen": sorted(seen),
        "steps": result.steps,
    }

"""A run before its first step, with a small model and data."""

from __future__ import annotations

from typing import Any

from sft.batching.plan import resolve_batch_plan
from sft.common.machine_records import MemoryLimits
from sft.common.run_records import DistributedContext, Precision
from sft.common.training_data import TrainingData
from sft.configuration.schema import (
    DataConfig,
    DistributedConfig,
    LoggingConfig,
    ModelConfig,
    SFTConfig,
    TrainingConfig,
)
from sft.training.model_preparation import prepare_model
from sft.training.run_identity import identify_run
from sft.training.run_setup import RunSetup

FLOAT32 = Precision(weights="float32", mixed="no")
CPU = DistributedContext()
NO_COPIES = MemoryLimits(budget_bytes=0, process_bytes=0)
"""Limits with which a checkpoint is never copied before it is written."""


def config_of(training: TrainingConfig, *, train_file: str = "train.jsonl", max_seq_length: int = 64) -> SFTConfig:
    """A configuration around a training section, without trackers."""
    return SFTConfig(
        model=ModelConfig(model_name_or_path="m"),
        data=DataConfig(train_file=train_file, max_seq_length=max_seq_length),
        training=training,
        distributed=DistributedConfig(),
        logging=LoggingConfig(report_to=[], logging_steps=1, sample_prompts=[]),
    )


def setup_of(
    training: TrainingConfig,
    data: TrainingData,
    model: Any,
    tokenizer: Any,
    context: DistributedContext = CPU,
) -> RunSetup:
    """The setup of a run in float32 without sample answers."""
    config = config_of(training)
    prepared = prepare_model(config, model, tokenizer, FLOAT32, context, is_chat=data.is_chat)
    plan = resolve_batch_plan(training, data.num_train_rows, context, lengths=data.train.lengths, max_seq_length=64)
    identity = identify_run(config, data, prepared, context.device)
    return RunSetup(
        config=config,
        context=context,
        data=data,
        prepared=prepared,
        plan=plan,
        limits=NO_COPIES,
        identity=identity,
    )

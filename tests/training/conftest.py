"""Fixtures of the trainer's tests."""

from __future__ import annotations

import pytest
import torch

from data_handler import prepare_data
from sft.batching.plan import resolve_batch_plan
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import DataConfig, LoggingConfig, ModelConfig, TrainingConfig
from sft.modeling.adapters import add_adapters
from sft.training.arguments import build_training_arguments
from sft.training.row_layout import resolve_layout
from tests.support.parts import build_model, build_tokenizer
from trainer_utils import build_trainer

FLOAT32 = Precision(weights="float32", mixed="no")
CPU = DistributedContext()


@pytest.fixture
def prepare(question_file, tmp_path):
    """Builds a trainer for settings; returns it with its model."""

    def prepare(*, lora=None, architecture="llama", **settings):
        torch.manual_seed(0)
        tokenizer = build_tokenizer()
        data_config = DataConfig(train_file=question_file, max_seq_length=64, validation_split=0.3)
        data = prepare_data(data_config, tokenizer, seed=1)
        config = TrainingConfig(
            **{"output_dir": str(tmp_path), "max_steps": 4, "learning_rate": 1e-2, **settings},
            extra_training_arguments={"save_strategy": "no", "eval_strategy": "no", "use_cpu": True},
        )
        model = build_model(architecture)
        if lora is not None:
            model = add_adapters(model, lora)
        layout = resolve_layout(
            model, ModelConfig(model_name_or_path="m"), config, FLOAT32, CPU, pad_token_id=0, max_seq_length=64
        )
        plan = resolve_batch_plan(config, len(data.train), CPU, lengths=data.train.lengths, max_seq_length=64)
        arguments = build_training_arguments(
            config, LoggingConfig(report_to=[], logging_steps=1), FLOAT32, CPU, has_validation=True
        )
        prepared = build_trainer(arguments, model, tokenizer, data, plan, layout, CPU, resume_point=None)
        return prepared, model

    return prepare

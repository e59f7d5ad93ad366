"""Fixtures of the trainer's tests."""

from __future__ import annotations

import pytest
import torch

from data_handler import prepare_data
from sft.configuration.schema import DataConfig, TrainingConfig
from sft.modeling.adapters import add_adapters
from sft.training.arguments import build_training_arguments
from tests.support.setups import CPU, setup_of
from tests.support.small_models import build_model, build_tokenizer
from trainer_utils import build_trainer


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
        setup = setup_of(config, data, model, tokenizer)
        prepared = build_trainer(setup, build_training_arguments(setup, CPU))
        return prepared, model

    return prepare

"""The load-balancing loss of a step: that of transformers over the whole batch, for any split and layout of it."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from data_handler import prepare_data
from sft.common.errors import ConfigError
from sft.configuration.schema import DataConfig, LoRAConfig, TrainingConfig
from sft.modeling.adapters import add_adapters
from sft.modeling.document_attention import isolated_documents
from sft.modeling.router_loss import try_router_scores
from sft.training.arguments import build_training_arguments
from sft.training.router_balance import decide_router_loss, router_line
from tests.support.architectures import build_architecture
from tests.support.setups import CPU, setup_of
from tests.support.short_of_memory import limit_rows
from tests.support.small_models import build_model, build_tokenizer
from trainer_utils import SFTTrainer

COEFFICIENT = 0.5


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """8 training rows; the leading tokens of some are the same."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [{"question": f"How much is {i} plus {'two ' * i}?", "answer": f"It is {i + 2}."} for i in range(8)]
    file.write_text("\n".join(map(json.dumps, lines)))
    tokenizer = build_tokenizer()
    return prepare_data(DataConfig(train_file=str(file), max_seq_length=64), tokenizer, seed=1), tokenizer


@pytest.fixture
def one_step(data, tmp_path):
    """Value and gradients of the first step, from a model and settings."""

    def one_step(model, **settings):
        settings = {"router_aux_loss_coef": COEFFICIENT, "max_steps": 1, "max_grad_norm": 0.0, **settings}
        config = TrainingConfig(
            output_dir=str(tmp_path / "run"), extra_training_arguments={"save_strategy": "no"}, **settings
        )
        setup = setup_of(config, data[0], model, data[1])
        trainer = SFTTrainer(setup, build_training_arguments(setup, CPU))
        caught = {}

        class Catch(torch.optim.SGD):
            def step(self, closure=None):
                named = trainer.model.named_parameters()
                caught.update({name: p.grad.clone() for name, p in named if p.grad is not None})

        trainer.optimizer = Catch(trainer.model.parameters(), lr=0.0)
        with isolated_documents(trainer.model, trainer.layout.attention):
            trainer.train()
        return trainer.state.log_history[0], caught

    return one_step


def plain_step(model, rows):
    """transformers' own loss and gradients of all rows in one padded batch."""
    model = copy.deepcopy(model).train()
    width = max(len(row["input_ids"]) for row in rows)
    ids, labels, mask = (torch.full((len(rows), width), fill) for fill in (0, -100, 0))
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[index, :length], labels[index, :length] = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
        mask[index, :length] = 1
    model.router_aux_loss_coef = COEFFICIENT
    output = model(input_ids=ids, attention_mask=mask, labels=labels, output_router_logits=True)
    output.loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return float(output.loss.detach()), float(output.aux_loss.detach()), gradients


def assert_same_gradients(found, expected):
    assert found.keys() == expected.keys()
    largest = max(float(each.abs().max()) for each in expected.values())
    for name, each in expected.items():
        assert float((found[name] - each).abs().max()) <= 1e-5 * largest, name


SPLITS = {
    "one micro-batch": {"per_device_train_batch_size": 8},
    "padded": {"per_device_train_batch_size": 8, "padding_free": False},
    "accumulation 8": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    "shared prefixes": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "checkpointing": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
    },
}


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_has_the_loss_of_transformers_over_the_whole_batch(one_step, data, split):
    model = build_architecture("mixtral")
    loss, balance, gradients = plain_step(model, [data[0].train[index] for index in range(8)])
    log, found = one_step(model, **SPLITS[split])
    assert log["router_aux_loss"] == pytest.approx(balance, rel=1e-5)
    assert log["loss"] == pytest.approx(loss - COEFFICIENT * balance, rel=1e-5)  # the cross-entropy alone
    assert_same_gradients(found, gradients)


def test_a_step_that_ran_out_of_memory_has_the_same_loss(one_step):
    expected = one_step(build_architecture("gpt_oss"), per_device_train_batch_size=8)
    model = build_architecture("gpt_oss")
    limit_rows(model, rows=4)
    log, found = one_step(model, per_device_train_batch_size=8)
    assert log["router_aux_loss"] == pytest.approx(expected[0]["router_aux_loss"], rel=1e-5)
    assert_same_gradients(found, expected[1])


def test_dropout_draws_the_same_numbers_when_tokens_are_counted(one_step):
    """Otherwise the tokens would be counted for other experts than they are given to."""
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    lora = LoRAConfig(r=2, target_modules=["q_proj", "o_proj"], lora_dropout=0.3)
    _, plain = one_step(add_adapters(build_architecture("mixtral"), lora), router_aux_loss_coef=0.0, **settings)
    _, tiny = one_step(add_adapters(build_architecture("mixtral"), lora), router_aux_loss_coef=1e-12, **settings)
    assert_same_gradients(tiny, plain)


def test_a_coefficient_of_zero_adds_nothing(one_step):
    model = build_architecture("mixtral", output_router_logits=True, router_aux_loss_coef=0.02)
    log, _ = one_step(model, router_aux_loss_coef=0.0, per_device_train_batch_size=8)
    assert "router_aux_loss" not in log


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "phimoe", "qwen3_next", "granite_hybrid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_of_a_model_is_found_by_trial(name, dtype):
    scores = try_router_scores(build_architecture(name).to(dtype))
    assert (scores.num_experts, scores.top_k) == (4, 2)


@pytest.mark.parametrize("name", ["llama", "deepseek_v3", "llama4"])
def test_a_model_without_such_a_loss_is_refused_where_it_is_asked_for(name):
    model = build_model("llama") if name == "llama" else build_architecture(name)
    scores = try_router_scores(model)
    assert scores is None
    assert decide_router_loss(model, scores, None) is None
    assert decide_router_loss(model, scores, 0.0) is None
    with pytest.raises(ConfigError, match=r"^router_aux_loss_coef: this model returns no load-balancing loss"):
        decide_router_loss(model, scores, 0.01)


@pytest.mark.parametrize(
    ("asks", "configured", "coefficient", "line"),
    [
        (False, None, None, "not trained (config.json does not ask for it: output_router_logits). router_aux_loss_"),
        (True, None, 0.02, "0.02 times the load-balancing loss over the tokens of the global batch is trained (con"),
        (True, 0.0, None, "not trained (router_aux_loss_coef: 0), though config.json asks for it with a coefficient"),
        (False, 0.1, 0.1, "0.1 times the load-balancing loss over the tokens of the global batch is trained (router"),
        (False, 0.0, None, "not trained (router_aux_loss_coef: 0). router_aux_loss_coef sets"),
    ],
)
def test_the_default_is_what_config_json_asks_for(asks, configured, coefficient, line):
    model = build_architecture("mixtral", output_router_logits=asks, router_aux_loss_coef=0.02)
    scores = try_router_scores(model)
    loss = decide_router_loss(model, scores, configured)
    assert (loss and loss.coefficient) == coefficient
    assert f"Router loss: {line}" in router_line(loss, scores, model, configured)

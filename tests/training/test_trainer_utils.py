"""The trainer: its loss against the definition, its evaluation against every batch size, its arguments."""

from __future__ import annotations

import json

import pytest
import torch

from data_handler import prepare_data
from sft.configuration.schema import DataConfig, TrainingConfig
from sft.modeling.document_attention import isolated_documents
from sft.training import checkpointed_trainer
from sft.training.arguments import build_training_arguments
from tests.support.setups import CPU, setup_of
from tests.support.small_models import build_model, build_tokenizer
from trainer_utils import SFTTrainer


@pytest.fixture
def data_and_tokenizer(question_file):
    tokenizer = build_tokenizer()
    config = DataConfig(train_file=question_file, max_seq_length=64, validation_split=0.3)
    return prepare_data(config, tokenizer, seed=1), tokenizer


@pytest.fixture
def make_trainer(data_and_tokenizer, tmp_path):
    data, tokenizer = data_and_tokenizer
    made = []

    def make(**settings) -> SFTTrainer:
        made.append(settings)  # a folder for each: a checkpoint is never written over another
        config = TrainingConfig(output_dir=str(tmp_path / str(len(made))), **settings)
        setup = setup_of(config, data, build_model("llama"), tokenizer)
        return SFTTrainer(setup, build_training_arguments(setup, CPU))

    return make


def gradients_of_one_step(trainer: SFTTrainer) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and gradients of the first optimizer step, before clipping."""
    caught = {}

    class Catch(torch.optim.SGD):
        def step(self, closure=None):
            caught.update({name: p.grad.clone() for name, p in trainer.model.named_parameters()})

    trainer.optimizer = Catch(trainer.model.parameters(), lr=0.0)
    with isolated_documents(trainer.model, trainer.layout.attention):
        trainer.train()
    return trainer.state.log_history[0]["loss"], caught


def test_one_by_eight_equals_eight_by_one(make_trainer):
    settings = {"max_steps": 1, "max_grad_norm": 0.0, "save_steps": 100, "eval_steps": 100}
    loss_a, a = gradients_of_one_step(
        make_trainer(per_device_train_batch_size=1, gradient_accumulation_steps=8, **settings)
    )
    loss_b, b = gradients_of_one_step(
        make_trainer(per_device_train_batch_size=8, gradient_accumulation_steps=1, **settings)
    )
    assert loss_a == pytest.approx(loss_b, abs=1e-5)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-5)
    assert max(gradient.abs().max() for gradient in a.values()) > 1e-2


def test_loss_is_the_mean_over_the_supervised_tokens_of_the_global_batch(make_trainer):
    trainer = make_trainer(per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=1)
    rows = trainer.train_sampler.order()[:8]
    dataset = trainer.train_dataset
    model = build_model("llama")
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor(dataset[int(row)]["input_ids"].tolist())[None]
        labels = torch.tensor(dataset[int(row)]["labels"].tolist())[1:]
        losses = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], labels, reduction="none")
        total, count = total + losses.sum().item(), count + int((labels != -100).sum())
    loss, _ = gradients_of_one_step(trainer)
    assert loss == pytest.approx(total / count, abs=1e-5)


def test_loss_of_weighted_rows_is_their_weighted_mean_and_weight_two_equals_a_row_twice(tmp_path):
    answers = [("one", "two three four", 2), ("five", "six", 0.5), ("seven", "eight nine", 0.25)]
    tokenizer, found = build_tokenizer(), {}
    for kind in ("weighted", "twice"):
        rows = [{"question": q, "answer": a, "weight": w} for q, a, w in answers]
        if kind == "twice":
            rows = [{**rows[0], "weight": 1}, {**rows[0], "weight": 1}, *rows[1:]]
        file = tmp_path / f"{kind}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = prepare_data(DataConfig(train_file=str(file), max_seq_length=64), tokenizer, seed=1)
        config = TrainingConfig(
            output_dir=str(tmp_path / kind), gradient_accumulation_steps=4, max_steps=1, per_device_train_batch_size=1
        )
        setup = setup_of(config, data, build_model("llama"), tokenizer)
        found[kind] = gradients_of_one_step(SFTTrainer(setup, build_training_arguments(setup, CPU)))
    model, total, weight = build_model("llama"), 0.0, 0.0
    for row in data.train:
        ids, labels, weights = (torch.tensor(row[name].tolist()) for name in ("input_ids", "labels", "weights"))
        losses = torch.nn.functional.cross_entropy(model(ids[None]).logits[0, :-1], labels[1:], reduction="none")
        total, weight = total + (losses * weights[1:]).sum().item(), weight + weights[1:].sum().item()
    assert found["weighted"][0] == pytest.approx(total / weight, abs=1e-5)
    assert found["weighted"][0] == pytest.approx(found["twice"][0], rel=1e-6)
    largest = max(gradient.abs().max() for gradient in found["twice"][1].values())
    for name, gradient in found["twice"][1].items():
        assert (found["weighted"][1][name] - gradient).abs().max() <= 1e-6 * largest, name


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_evaluation_does_not_depend_on_the_batch_size(make_trainer, batch_size):
    expected = make_trainer(per_device_eval_batch_size=64).evaluate()
    found = make_trainer(per_device_eval_batch_size=batch_size).evaluate()
    for name in ("eval_loss", "eval_perplexity", "eval_token_accuracy", "eval_sequence_accuracy"):
        assert found[name] == pytest.approx(expected[name], rel=1e-6, abs=1e-6)


def test_evaluation_does_not_change_training(make_trainer):
    settings = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
    with_evaluation = make_trainer(eval_steps=1, **settings)
    with_evaluation.train()
    without = make_trainer(eval_steps=1000, **settings)
    without.train()
    for ours, theirs in zip(with_evaluation.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_progress_counts_the_tokens_of_the_trained_rows(make_trainer):
    trainer = make_trainer(max_steps=3, per_device_train_batch_size=4)
    trainer.progress.started = 0.0
    trainer.train()
    rows = trainer.train_sampler.order()[:12]
    dataset = trainer.train_dataset
    supervised = sum(sum(label != -100 for label in dataset[int(row)]["labels"][1:]) for row in rows)
    tokens = sum(len(dataset[int(row)]["input_ids"]) for row in rows)
    *counted, computed, _, _, _, dropped = trainer.progress.counts.tolist()
    assert (counted, dropped) == ([supervised, tokens, 12], 0)
    assert 0 < computed <= tokens  # leading tokens that rows share are computed once


@pytest.fixture
def arguments_of(data_and_tokenizer, monkeypatch, tmp_path):
    data, tokenizer = data_and_tokenizer
    monkeypatch.chdir(tmp_path)

    def build(**settings):
        config = TrainingConfig(output_dir="out", **settings)
        return build_training_arguments(setup_of(config, data, build_model("llama"), tokenizer), CPU)

    return build


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        ({"warmup_ratio": 0.1}, "warmup_steps", 0.1),
        ({"warmup_steps": 7}, "warmup_steps", 7),
        ({}, "eval_strategy", "epoch"),
        ({"eval_steps": 5}, "eval_strategy", "steps"),
        ({"save_steps": 5}, "save_steps", 5),
        ({"load_best_model_at_end": True}, "greater_is_better", False),
        ({"extra_training_arguments": {"adam_beta2": 0.95}}, "adam_beta2", 0.95),
        ({"extra_training_arguments": {"eval_strategy": "no"}}, "eval_strategy", "no"),
        ({}, "logging_nan_inf_filter", False),
    ],
)
def test_build_training_arguments_translates_the_settings(arguments_of, settings, name, value):
    assert getattr(arguments_of(**settings), name) == value


def test_build_training_arguments_best_by_accuracy_is_the_highest(arguments_of):
    settings = {"metric_for_best_model": "eval_token_accuracy"}
    assert arguments_of(load_best_model_at_end=True, extra_training_arguments=settings).greater_is_better is True


@pytest.mark.parametrize("writes", [True, False])
def test_only_the_process_that_writes_finishes_a_saved_folder(make_trainer, monkeypatch, tmp_path, writes):
    finished = []
    trainer = make_trainer(max_steps=1)
    monkeypatch.setattr(checkpointed_trainer, "finish_saved_folder", lambda folder, _: finished.append(folder))
    monkeypatch.setattr(type(trainer.args), "should_save", property(lambda _: writes))
    trainer.save_model(str(tmp_path / "saved"))
    assert finished == [str(tmp_path / "saved")] * writes

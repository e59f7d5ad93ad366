"""An evaluation that runs out of memory continues with smaller batches, to the same metrics."""

from __future__ import annotations

import pytest
import torch

from sft.common.errors import MemoryShortage
from tests.support import messages
from tests.support.architectures import build_architecture
from tests.support.short_of_memory import limit_rows
from trainer_utils import evaluate


def test_evaluation_continues_with_smaller_batches(prepare):
    expected = evaluate(prepare()[0].trainer)
    prepared, model = prepare()
    limit_rows(model, rows=2)
    found = evaluate(prepared.trainer)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert (found.token_accuracy, found.sequence_accuracy) == (expected.token_accuracy, expected.sequence_accuracy)
    assert prepared.trainer.evaluation_step.shortages == 2  # from 8 to 4, to 2


def test_evaluation_of_a_single_row_that_does_not_fit_ends_with_one_line(prepare):
    prepared, model = prepare()
    limit_rows(model, rows=0)
    with pytest.raises(MemoryShortage, match=messages.OUT_OF_MEMORY_IN_EVALUATION):
        evaluate(prepared.trainer)


def test_experts_are_counted_once_where_an_evaluation_is_repeated_in_smaller_batches(prepare, monkeypatch):
    monkeypatch.setattr("tests.training.conftest.build_model", build_architecture)
    expected = prepare(architecture="mixtral")[0].trainer.evaluate()
    assert [each["layer"] for each in expected["eval_expert_load"]] == [0, 1]
    assert expected["eval_expert_max_share"] >= 0.25 >= expected["eval_expert_min_share"]
    prepared, model = prepare(architecture="mixtral")

    def run_out_of_memory_at_the_end(module, args, kwargs, output):
        if len(kwargs["cu_seq_lens_q"]) > 3:
            raise torch.OutOfMemoryError("out of memory (test)")

    model.register_forward_hook(run_out_of_memory_at_the_end, with_kwargs=True)
    found = prepared.trainer.evaluate()
    assert prepared.trainer.evaluation_step.shortages == 2
    assert found["eval_expert_load"] == expected["eval_expert_load"]


def test_a_model_whose_experts_cannot_be_counted_is_reported_once(prepare, monkeypatch, caplog):
    monkeypatch.setattr("tests.training.conftest.build_model", build_architecture)
    caplog.set_level("INFO", "sft")
    trainer = prepare(architecture="llama4")[0].trainer
    for _ in range(2):
        assert not any("expert" in name for name in trainer.evaluate())
    assert caplog.text.count("How often experts are chosen is not logged") == 1

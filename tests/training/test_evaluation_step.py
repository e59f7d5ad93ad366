"""An evaluation that runs out of memory continues with smaller batches, to the same metrics."""

from __future__ import annotations

import pytest

from sft.common.errors import MemoryShortage
from tests.support import messages
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

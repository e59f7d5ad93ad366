"""A trial whose device fails gives no answer: its error is raised, and never becomes "padded" or a slower loss."""

from __future__ import annotations

import pytest
import torch

from sft.batching.fit import fit_batch_size
from sft.common.errors import MemoryShortage
from sft.common.run_records import DistributedContext
from sft.modeling.causality import check_is_causal
from sft.training.model_preparation import _memory_shortage_in_one_line
from sft.training.model_trials import ModelTrials
from tests.common.test_device_errors import DEVICE, OUT_OF_MEMORY
from tests.support import messages
from tests.support.layouts import FLOAT32, layout_of
from tests.support.small_models import build_model

ERRORS = [OUT_OF_MEMORY[0], OUT_OF_MEMORY[3], OUT_OF_MEMORY[6], MemoryError("host"), *DEVICE]
TRIALS = {
    "causality": lambda trials: trials.check_is_causal(),
    "isolation": lambda trials: trials.obstacle("sft_documents", 64),
    "prefixes": lambda trials: trials.sharing_obstacle(),
    "output layer": lambda trials: trials.output_layer(),
    "untrained loss": lambda trials: trials.untrained_loss_line(),
}


def failing(error, after=0):
    """A model whose call fails with an error, after a number of calls that do not."""
    model, calls = build_model("llama"), []
    original = model.forward

    def forward(*args, **kwargs):
        calls.append(None)
        if len(calls) > after:
            raise error
        return original(*args, **kwargs)

    model.forward = forward
    return model


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[:20])
@pytest.mark.parametrize("name", TRIALS)
def test_a_device_error_in_a_trial_is_raised(name, error):
    with pytest.raises(type(error)) as caught:
        TRIALS[name](ModelTrials(failing(error), FLOAT32))
    assert caught.value is error


@pytest.mark.parametrize("after", range(5))
def test_memory_that_runs_out_at_any_trial_does_not_pad(after):
    with pytest.raises(torch.OutOfMemoryError):
        layout_of(failing(OUT_OF_MEMORY[0], after))


@pytest.mark.parametrize("error", [KeyError("mask"), RuntimeError("shapes differ")])
def test_an_error_of_the_model_is_an_answer(error):
    trials = ModelTrials(failing(error), FLOAT32)
    assert messages.PACKED_ROW_FAILS in trials.obstacle("sft_documents", 64)
    assert "does not pass them on to its attention" in trials.sharing_obstacle()
    assert trials.output_layer() is None
    check_is_causal(failing(error))


@pytest.mark.parametrize(
    ("share", "is_shared"), [(0.0, True), (1.1e-4, True), (5e-4, True), (5e-3, False), (0.1, False)]
)
def test_shared_tokens_are_judged_above_rounding(share, is_shared):
    """The fourth call, with the shared tokens once, is off by a share of the largest logit."""
    model, calls = build_model("llama"), []
    original = model.forward

    def forward(*args, **kwargs):
        outputs = original(*args, **kwargs)
        calls.append(None)
        if len(calls) == 4:
            outputs.logits = outputs.logits.clone()
            outputs.logits[0, 0, 0] += share * outputs.logits.abs().max()
        return outputs

    model.forward = forward
    assert (ModelTrials(model, FLOAT32).sharing_obstacle() is None) == is_shared
    assert len(calls) == 4


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:20])
def test_a_batch_size_that_runs_out_of_any_memory_is_too_large(error):
    def measure(size):
        raise error

    fit = fit_batch_size([1, 2], measure, 10**9, predict=lambda size: 0)
    assert fit.size is None
    assert fit.trials[0].peak_bytes is None


def test_a_batch_size_trial_raises_other_errors():
    def measure(size):
        raise DEVICE[0]

    with pytest.raises(RuntimeError, match="device-side assert"):
        fit_batch_size([1, 2], measure, 10**9, predict=lambda size: 0)


def test_memory_that_runs_out_before_training_is_one_line():
    expected = pytest.raises(MemoryShortage, match=f"^{messages.OUT_OF_MEMORY_LOADING.format(device='cpu')}")
    with expected as caught, _memory_shortage_in_one_line(DistributedContext()):
        raise OUT_OF_MEMORY[3]
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(RuntimeError, match="device-side"), _memory_shortage_in_one_line(DistributedContext()):
        raise DEVICE[0]

"""Errors of users: complete lines, also after torch has passed them on from a loader's worker."""

from __future__ import annotations

import pickle

import pytest
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset

from sft.common.errors import ConfigError, DataError


class Failing(Dataset):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise self.error


@pytest.mark.parametrize("problems", [("a.jsonl:1: bad",), ("chat_template: x: y", "b: second")])
@pytest.mark.parametrize("kind", [ConfigError, DataError])
def test_an_error_that_torch_brings_from_a_worker_is_its_lines(kind, problems):
    try:
        raise kind(*problems)
    except kind:
        brought = pickle.loads(pickle.dumps(ExceptionWrapper(where="in DataLoader worker process 0")))
    with pytest.raises(kind) as caught:
        brought.reraise()
    assert caught.value.problems == problems


@pytest.mark.slow  # torch waits five seconds for a worker after an error
@pytest.mark.parametrize("problems", [("a.jsonl:1: bad",), ("chat_template: x: y", "b: second")])
@pytest.mark.parametrize("kind", [ConfigError, DataError])
def test_an_error_of_a_loaders_worker_is_its_lines(kind, problems):
    with pytest.raises(kind) as caught:
        next(iter(DataLoader(Failing(kind(*problems)), num_workers=1, multiprocessing_context="fork")))
    assert caught.value.problems == problems


@pytest.mark.parametrize("problem", ["", "Caught x", "Caught ConfigError in DataLoader worker process 0.\nother"])
def test_other_lines_are_kept(problem):
    assert ConfigError(problem).problems == (problem,)
    assert str(pickle.loads(pickle.dumps(ConfigError(problem)))) == problem

"""The same numbers, however a global batch of 16 is split over processes, micro-batches and accumulation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.support import forked
from tests.support.factorizations import train_all


def run_all(folder, model, questions, world_size, *, residues=False, prompt_weight=0.0):
    """Every way that so many processes allow."""
    done = forked.call(
        folder / f"terminal-{world_size}",
        train_all,
        *(model, questions, folder, residues, prompt_weight),
        processes=world_size,
        seconds=600,
    )
    assert done.status == 0, done.out + done.err
    return {path.stem: torch.load(path, weights_only=True) for path in folder.glob(f"{world_size}-*.pt")}


def assert_same(found, expected):
    """Relative 1e-5, of the largest entry where tensors are compared."""
    assert found["steps"] == expected["steps"]
    assert found["seen"] == expected["seen"]
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    assert found["plain_losses"] == pytest.approx(expected["plain_losses"], rel=1e-5)
    assert found["evaluation"] == pytest.approx(expected["evaluation"], rel=1e-5)
    for ours, theirs in [(found["weights"], expected["weights"]), (found["gradients"][0], expected["gradients"][0])]:
        largest = max(tensor.abs().max().item() for tensor in theirs.values())
        for name, tensor in theirs.items():
            assert (ours[name] - tensor).abs().max().item() <= 1e-5 * largest, name


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_factorization_of_a_global_batch_gives_the_same(model_folder, question_file, tmp_path, world_size):
    """17 rows: the second step has one alone, so all other processes have a micro-batch without a supervised token."""
    model = model_folder("llama")
    alone = run_all(tmp_path, model, question_file, 1)
    together = run_all(tmp_path, model, question_file, world_size)
    assert len(alone) == 5
    assert len(together) == {2: 4, 4: 3}[world_size]
    expected = alone["1-16-17"]
    assert expected["seen"] == sorted([*range(17)] * 2)
    assert len(expected["losses"]) == 4
    for found in (*alone.values(), *together.values()):
        assert_same(found, expected)


@pytest.fixture
def weighted_file(question_file, tmp_path):
    """The same questions, with a weight in every second row."""
    rows = [json.loads(line) for line in Path(question_file).read_text().splitlines()]
    weighted = [row | ({"weight": 0.25 + index % 5} if index % 2 else {}) for index, row in enumerate(rows)]
    path = tmp_path / "weighted.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in weighted))
    return str(path)


def test_every_factorization_of_weighted_rows_gives_the_same(model_folder, weighted_file, tmp_path):
    model = model_folder("llama")
    alone = run_all(tmp_path, model, weighted_file, 1, prompt_weight=0.1)
    together = run_all(tmp_path, model, weighted_file, 2, prompt_weight=0.1)
    expected = alone["1-16-17"]
    assert len(expected["plain_losses"]) == len(expected["losses"]) == 4
    assert expected["plain_losses"] != pytest.approx(expected["losses"], rel=1e-3)
    assert len(expected["evaluation"]) == 5
    for found in (*alone.values(), *together.values()):
        assert_same(found, expected)


@pytest.mark.slow
def test_every_size_of_dataset_ends_and_trains_each_row_once_an_epoch(model_folder, question_file, tmp_path):
    model = model_folder("llama")
    alone = run_all(tmp_path, model, question_file, 1, residues=True)
    together = run_all(tmp_path, model, question_file, 2, residues=True)
    assert len(alone) == len(together) == 16
    for name, expected in alone.items():
        num_rows = int(name.split("-")[2])
        assert expected["seen"] == sorted([*range(num_rows)] * 2)
        assert_same(together[name.replace("1-", "2-", 1)], expected)

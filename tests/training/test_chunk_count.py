"""After a shortage of memory, micro-batches are split, and whole ones are tried again some steps later."""

from __future__ import annotations

import json
import logging
from itertools import pairwise

import pytest

from sft.training import chunk_count
from sft.training.chunk_count import FIRST_WAIT, MOST_ATTEMPTS, ChunkCount
from tests.support import messages
from tests.support.short_of_memory import limit_rows
from trainer_utils import train


def steps_with_attempts(chunks, steps, *, fits):
    """Runs steps whose whole micro-batches run out of memory; returns the steps that tried one."""
    tried = []
    for step in range(1, steps + 1):
        chunks.begin_step(step)
        if chunks.num_chunks == 1:
            tried.append(step)
        while chunks.num_chunks < fits:
            chunks.raise_after_shortage(step)
    return tried


def test_attempts_are_rarer_each_time_and_come_to_an_end():
    chunks = ChunkCount(micro_batch_size=8)
    tried = steps_with_attempts(chunks, FIRST_WAIT * 2 ** (MOST_ATTEMPTS + 2), fits=4)
    waits = [after - before for before, after in pairwise(tried)]
    assert waits == [FIRST_WAIT * 2**number for number in range(MOST_ATTEMPTS)]
    assert (chunks.num_chunks, chunks.attempts, chunks.next_attempt) == (4, MOST_ATTEMPTS, None)
    assert chunks.shortages == 2 + MOST_ATTEMPTS  # from 1 to 2 to 4, later from 1 to 4 at once


def test_whole_micro_batches_stay_if_they_fit_again(caplog):
    chunks = ChunkCount(micro_batch_size=6)
    chunks.raise_after_shortage(10)
    assert (chunks.num_chunks, chunks.next_attempt) == (2, 10 + FIRST_WAIT)
    with caplog.at_level(logging.INFO, logger="sft.train"):
        for step in range(11, 1000):
            chunks.begin_step(step)
    assert (chunks.num_chunks, chunks.next_attempt, chunks.attempts) == (1, None, 1)
    assert caplog.text.count(messages.WHOLE_AGAIN) == 1


def test_a_resumed_count_continues_with_the_same_steps():
    whole = ChunkCount(micro_batch_size=8)
    expected = steps_with_attempts(whole, 900, fits=4)
    for stop in (1, 2, 50, 101, 102, 500):
        before = ChunkCount(micro_batch_size=8)
        tried = steps_with_attempts(before, stop, fits=4)
        after = ChunkCount(micro_batch_size=8, num_chunks=before.num_chunks)
        after.resume_from(json.loads(json.dumps(before.state_dict())))
        for step in range(stop + 1, 901):
            after.begin_step(step)
            if after.num_chunks == 1:
                tried.append(step)
            while after.num_chunks < 4:
                after.raise_after_shortage(step)
        assert tried == expected
        assert after.state_dict() == whole.state_dict()


@pytest.mark.parametrize("saved", [None, {}, {"micro_batch_size": 4, "num_chunks": 2, "next_attempt": 9}])
def test_the_state_of_another_plan_is_not_used(saved):
    chunks = ChunkCount(micro_batch_size=8, num_chunks=2)
    chunks.resume_from(saved)
    assert chunks == ChunkCount(micro_batch_size=8, num_chunks=2)


def test_a_run_returns_to_whole_micro_batches_and_its_checkpoints_keep_when(prepare, monkeypatch):
    monkeypatch.setattr(chunk_count, "FIRST_WAIT", 2)
    settings = {"per_device_train_batch_size": 4, "max_steps": 5}
    prepared, model = prepare(**settings)
    calls = limit_rows(model, rows=2, to_call=1)
    train(prepared)
    # Step 1 is retried and step 2 split; step 3 tries all four rows at once, and later steps compute them so too.
    assert calls[:6] == [4, 2, 2, 2, 2, 4]
    assert 2 not in calls[6:]
    assert prepared.trainer.current_plan().num_chunks == 1
    entries = prepared.trainer.manifest_entries()
    assert entries["chunks"]["attempts"] == 1
    resumed, _ = prepare(**settings)
    resumed.trainer.restore_counts(entries)
    assert resumed.trainer.step_gradient.chunks.state_dict() == entries["chunks"]

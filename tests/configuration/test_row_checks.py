"""Settings against the rows and the model: batches that are not filled, few validation rows, long rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sft.common.run_records import BatchPlan
from sft.common.weight_records import WeightReport
from sft.configuration.checks.rows import check_rows
from tests.support import messages
from tests.support.configurations import BASE, VALIDATED, load
from tests.support.report_records import data, split

STOPS, NOTE = True, False


def plan(size, *, processes=1, accumulated=1, per_epoch=5, total=15, packs=None):
    return BatchPlan(
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulated,
        world_size=processes,
        steps_per_epoch=per_epoch,
        total_steps=total,
        packs=packs,
    )


def found(text="", rows=100, batches=None, report=None, positions=None, base=BASE):
    findings = check_rows(load(text, base=base), report or data(), batches or plan(10), rows, positions=positions)
    return [(finding.key, finding.stops, finding.message) for finding in findings]


@pytest.mark.parametrize(
    ("text", "rows", "batches", "key", "stops", "words"),
    [
        ("", 5, plan(8), "per_device_train_batch_size", NOTE, "a step is to train on 8 rows, and there are only 5"),
        ("", 31, plan(2, processes=4, accumulated=4), "per_device_train_batch_size", NOTE, "there are only 31"),
        ("global_batch_size: 64\n", 31, plan(2, processes=4, accumulated=8), "global_batch_size", NOTE, "only 31"),
        ("", 81, plan(8), "per_device_train_batch_size", NOTE, "trains on 1 row instead of 8"),
        ("", 84, plan(8), "per_device_train_batch_size", NOTE, "trains on 4 rows instead of 8"),
        ("", 83, plan(8), "per_device_train_batch_size", NOTE, "trains on 3 rows instead of 8"),
        ("", 100, plan(8, total=2), "num_train_epochs", NOTE, "train on 16 of 100 rows (0.40 epochs)"),
        ("max_steps: 2\n", 100, plan(8, total=2), "max_steps", NOTE, "train on 16 of 100 rows"),
        ("dataloader_drop_last: yes\n", 87, plan(8), "dataloader_drop_last", NOTE, "7 of 87 rows are dropped"),
        ("dataloader_drop_last: yes\n", 7, plan(8), "dataloader_drop_last", STOPS, "nothing would be trained"),
        ("dataloader_drop_last: yes\n", 7, plan(2, processes=4), "dataloader_drop_last", STOPS, "micro-batch of 8"),
    ],
)
def test_batches_that_the_rows_do_not_fill(text, rows, batches, key, stops, words):
    ((found_key, found_stops, message),) = found(text, rows, batches)
    assert (found_key, found_stops, words in message) == (key, stops, True), message


@pytest.mark.parametrize(
    ("text", "rows", "batches"),
    [
        ("", 80, plan(8)),
        ("", 85, plan(8)),
        ("", 8, plan(8)),
        ("dataloader_drop_last: yes\n", 80, plan(8)),
        ("streaming: yes\nmax_steps: 5\n", None, plan(8)),
    ],
)
def test_batches_that_need_no_note(text, rows, batches):
    assert found(text, rows, batches) == []


def test_packs_are_counted_instead_of_rows():
    class Packs:
        num_packs, capacity, fill = 3, 64, 0.9

    class Empty:
        num_packs, capacity, fill = 16, 64, 0.3

    ((key, stops, message),) = found("packing: yes\n", 1000, plan(8, packs=Empty()))
    assert (key, stops, messages.PACKS_NOT_FULL.format(share="30%") in message) == ("packing", NOTE, True)
    ((_, _, message),) = found("packing: yes\n", 1000, plan(8, packs=Packs()))
    assert messages.TOO_FEW_PACKS.format(wanted=8, found=3) in message


@pytest.mark.parametrize(
    ("rows", "text", "base", "key"),
    [
        (1, "", VALIDATED, "validation_split"),
        (3, "load_best_model_at_end: yes\n", VALIDATED, "validation_split"),
        (9, "validation_file: train.jsonl\n", BASE, "validation_file"),
        (10, "", VALIDATED, None),
    ],
)
def test_few_validation_rows(rows, text, base, key):
    report = data(validation=replace(split("v.jsonl"), rows_read=rows, rows_used=rows))
    findings = found(text, report=report, base=base)
    assert [(each[0], each[1]) for each in findings] == ([(key, NOTE)] if key else [])
    assert all((messages.BEST_CHOSEN in each[2]) == ("load_best" in text) for each in findings)


LONG = split(longest_row=800)
TRUNCATED = split(longest_row=1024, rows_too_long=40)


@pytest.mark.parametrize(
    ("text", "report", "positions", "stops", "words"),
    [
        ("", data(train=LONG), 512, STOPS, "up to 800 tokens, more than the model's 512 positions. Write"),
        ("max_seq_length: 800\n", data(train=LONG), 512, NOTE, "so it is trained beyond them"),
        ("", data(validation=LONG), 512, STOPS, "up to 800 tokens"),
        ("", data(train=TRUNCATED), 8192, NOTE, "40 of 100 training rows are truncated at its default of 1,024"),
        ("on_too_long: drop\n", data(train=TRUNCATED), None, NOTE, "40 of 100 training rows are dropped"),
        ("", data(train=LONG), 1024, None, ""),
        ("", data(train=LONG), None, None, ""),
        ("max_seq_length: 1024\n", data(train=TRUNCATED), 8192, None, ""),
        ("max_seq_length: 4096\n", data(train=LONG), 2048, None, ""),
    ],
)
def test_rows_longer_than_the_model_or_the_default(text, report, positions, stops, words):
    findings = found(text, report=report, positions=positions)
    if stops is None:
        assert findings == []
        return
    ((key, found_stops, message),) = findings
    assert (key, found_stops, words in message) == ("max_seq_length", stops, True), message


def test_of_a_stream_the_longest_row_is_not_known():
    text = "streaming: yes\nmax_steps: 5\nmax_seq_length: 4096\n"
    ((key, stops, _),) = found(text, None, report=data(is_complete=False), positions=2048)
    assert (key, stops) == ("max_seq_length", NOTE)


def test_the_unweighted_loss_chooses_the_best_checkpoint_only_where_rows_have_weights():
    text = "metric_for_best_model: eval_loss_unweighted\n"
    weighted = WeightReport(rows=1, tokens=2, lowest=0.5, highest=1.0, prompt_tokens=0)
    with_weights = data(validation=replace(split(), weights=weighted))
    assert "metric_for_best_model" not in [key for key, *_ in found(text, report=with_weights, base=VALIDATED)]
    (finding,) = found(text, report=data(validation=split()), base=VALIDATED)
    assert finding[:2] == ("metric_for_best_model", STOPS)
    assert messages.WRITE_EVAL_LOSS in finding[2]

"""Exit statuses and problems that processes record for the launcher."""

from __future__ import annotations

import os

import pytest

from sft.processes.environment import LAUNCHER_VARIABLE
from sft.processes.exit_records import (
    ExitRecord,
    exit_together,
    num_hangs_recorded,
    previous_final_exit,
    print_problems,
    read_exit_records,
    record_exit,
    record_hang,
)


@pytest.fixture
def process(tmp_path, monkeypatch):
    """`process(rank, attempt=0)`: be that process of two that our launcher started."""

    def be(rank: int, attempt: int = 0):
        folder = tmp_path / "launch" / f"attempt_{attempt}" / str(rank)
        folder.mkdir(parents=True, exist_ok=True)
        values = {
            LAUNCHER_VARIABLE: 1,
            "RANK": rank,
            "WORLD_SIZE": 2,
            "LOCAL_WORLD_SIZE": 2,
            "TORCHELASTIC_RESTART_COUNT": attempt,
            "TORCHELASTIC_ERROR_FILE": folder / "error.json",
        }
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))
        return folder.parent

    return be


def test_without_our_launcher_nothing_is_recorded_and_rank_0_prints(capsys, monkeypatch):
    monkeypatch.delenv(LAUNCHER_VARIABLE, raising=False)
    assert record_exit(143) is False
    assert exit_together(3) == 3
    record_hang(142)
    print_problems(["one", "two"])
    assert capsys.readouterr().err == "one\ntwo\n"
    monkeypatch.setenv("RANK", "1")
    print_problems(["one"])
    assert capsys.readouterr().err == ""


def test_the_launcher_reads_what_processes_recorded(process, capsys):
    process(1)
    print_problems(["a problem"])
    assert capsys.readouterr().err == ""
    attempt = process(0)
    assert record_exit(143) is True, "another process has recorded a problem"
    assert exit_together(5) == 0, "for torchrun's agent another status is a failure"
    assert read_exit_records(attempt) == {
        0: ExitRecord(exit_status=5),
        1: ExitRecord(exit_status=2, problems=("a problem",)),
    }


def test_hangs_are_counted_over_all_attempts_and_are_no_exit_records(process, tmp_path):
    for attempt in (0, 1):
        process(1, attempt)
        record_hang(142)
    assert num_hangs_recorded(tmp_path) == 2
    assert read_exit_records(process(1)) == {}


def test_a_restart_does_not_repeat_a_final_exit(process):
    assert previous_final_exit() is None
    process(0)
    record_exit(2, ["a problem"])
    process(1, attempt=1)
    assert previous_final_exit() == ExitRecord(exit_status=2, problems=("a problem",))


@pytest.mark.parametrize(("statuses", "expected"), [([143, 0], 143), ([143], None), ([], None)])
def test_a_restart_ends_if_all_processes_had_exited_deliberately(process, statuses, expected):
    for rank, status in enumerate(statuses):
        process(rank)
        record_exit(status)
    process(0, attempt=1)
    final = previous_final_exit()
    assert (final and final.exit_status) == expected


def test_a_record_that_is_being_written_is_not_read(process, monkeypatch):
    attempt, seen = process(1), []
    replace = os.replace

    def look_and_replace(source, target):
        seen.append(read_exit_records(attempt))  # what another process would see now
        replace(source, target)

    monkeypatch.setattr(os, "replace", look_and_replace)
    record_exit(2, ["a problem"])
    assert seen == [{}]
    assert read_exit_records(attempt) == {1: ExitRecord(exit_status=2, problems=("a problem",))}

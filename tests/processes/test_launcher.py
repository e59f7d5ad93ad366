"""The launcher: checks before anything is started, and its exit status."""

from __future__ import annotations

import signal
import socket
from types import SimpleNamespace

import pytest

from sft.common.errors import ConfigError
from sft.common.machine_records import LaunchOptions
from sft.processes import launcher
from sft.processes.exit_records import ExitRecord
from tests.support import messages


def two_nodes(rendezvous: str, node_rank: int = 0) -> LaunchOptions:
    return LaunchOptions(nodes=2, node_rank=node_rank, rendezvous=rendezvous)


def test_a_rendezvous_at_a_free_port_is_accepted():
    with socket.socket() as trial:
        trial.bind(("localhost", 0))
        port = trial.getsockname()[1]
    launcher.check_rendezvous(two_nodes(f"localhost:{port}"))


def test_a_rendezvous_at_a_port_in_use_is_refused_on_node_0_only():
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        launcher.check_rendezvous(two_nodes(f"localhost:{port}", node_rank=1))
        with pytest.raises(ConfigError, match=messages.PORT_TAKEN.format(port=port, host="localhost")):
            launcher.check_rendezvous(two_nodes(f"localhost:{port}"))


def test_a_rendezvous_on_another_machine_is_refused_on_node_0():
    with pytest.raises(ConfigError, match=messages.NOT_THIS_MACHINE):
        launcher.check_rendezvous(two_nodes("192.0.2.1:29500"))  # reserved for documentation


def test_a_rendezvous_whose_name_is_unknown_is_refused(monkeypatch):
    def fail(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(ConfigError, match=messages.NO_SUCH_HOST.format(name="nowhere")):
        launcher.check_rendezvous(two_nodes("nowhere:29500", node_rank=1))


def failure(local_rank: int, exit_code: int, timestamp: int = 0) -> SimpleNamespace:
    return SimpleNamespace(local_rank=local_rank, exitcode=exit_code, timestamp=timestamp)


def status(records, failures=None, number=0, **options) -> int:
    return launcher._exit_status(records, failures or {}, number, 2, LaunchOptions(**options))


def test_a_problem_is_printed_once_and_ends_with_status_2(capsys):
    records = {1: ExitRecord(exit_status=2, problems=("one", "two")), 0: ExitRecord(exit_status=143)}
    assert status(records, {0: failure(0, 1)}) == 2
    assert capsys.readouterr().err == "one\ntwo\n"


def test_the_process_that_died_first_is_named_with_its_log(capsys):
    failures = {0: failure(0, -signal.SIGTERM, 1), 1: failure(1, -signal.SIGKILL, 2)}
    assert status({}, failures, log_dir="logs") == 137
    err = capsys.readouterr().err
    assert messages.RANK_KILLED.format(rank=1, signal="SIGKILL") in err
    assert messages.RANK_LOG.format(path="logs/rank-1.log") in err


def test_a_hang_is_named(capsys):
    assert status({}, {0: failure(0, 142)}) == 142
    assert messages.RANK_HUNG.format(rank=0) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("statuses", "number", "expected"),
    [
        ([0, 0], 0, 0),
        ([0, 3], 0, 3),
        ([143, 143], signal.SIGINT, 130),
        ([0, 0], signal.SIGTERM, 0),
        ([], signal.SIGTERM, 143),
    ],
)
def test_processes_that_exit_together_decide_the_status_unless_a_signal_came(statuses, number, expected):
    records = {rank: ExitRecord(exit_status=each) for rank, each in enumerate(statuses)}
    assert status(records, number=number) == expected

"""Starts the processes of a run on this machine, as torchrun does, and says what became of them.

torchrun's own launcher is called rather than its command, so that an error that a user can mend ends with our one line
and not with torchrun's report of a failed child. What a process says on leaving lies in a small file beside that of
torchrun (`distributed_utils.leave_word`): so processes that stop together are told from one that died.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

from sft.common.errors import ConfigError, one_line
from sft.common.machine_records import LaunchOptions
from sft.processes.environment import default_launch_id, prepare_children
from sft.processes.exit_notes import words_left
from sft.processes.libraries import resume_garbage_collection

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
    from torch.distributed.launcher.api import LaunchConfig

HUNG_STATUSES = (128 + signal.SIGALRM, -signal.SIGALRM) if hasattr(signal, "SIGALRM") else (142,)
"""What the watchdog ends a process with (`sft.processes.watchdog`)."""
HUNG_PATIENCE_SECONDS = 20.0
"""For processes to leave by themselves once one has found that one hangs; a stopped one would stay."""
NODES_WAIT_SECONDS = 900
"""How long the first node waits for the last: a scheduler starts them minutes apart."""


def launch_processes(num_processes: int, script: str, arguments: Sequence[str], options: LaunchOptions) -> int:
    """Runs `script` in several processes of this machine and waits for them.

    Returns:
        The exit status for this process: 0; what the processes left with; or that of the one that died first.

    Raises:
        ConfigError: if there are not as many GPUs (CPU cores, where there is no GPU): it would only choke the machine;
            if the other nodes cannot be reached, or the port is taken.
    """
    import torch

    resume_garbage_collection()
    cores, gpus = os.cpu_count() or 1, torch.cuda.device_count()
    if num_processes > max(gpus, cores if gpus == 0 else 0):
        there = f"{gpus} GPUs" if gpus else f"no GPU and {cores} CPU cores"
        raise ConfigError(f"num_gpus is {num_processes}, but this machine has {there}; start at most {gpus or cores}.")
    if options.nodes > 1:
        check_rendezvous(options)
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.launcher.api import elastic_launch

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    prepare_children(num_processes)
    launch_config = _launch_config(num_processes, options)
    failures: Mapping[int, ProcessFailure] = {}
    number = 0
    with tempfile.TemporaryDirectory(prefix="sft-launch-") as folder:
        # Only with a folder for its logs does the launcher give a child a file for its error.
        launch_config.logs_specs = DefaultLogsSpecs(log_dir=folder)
        try:
            with _hung_ones_ended(Path(folder)):
                elastic_launch(launch_config, sys.executable)("-u", script, *arguments)
        except ChildFailedError as error:
            failures = error.failures
        except SignalException as signal_error:
            number = int(signal_error.sigval)
        except RendezvousError as error:
            raise ConfigError(
                f"command line: --rendezvous: the {options.nodes} nodes did not find each other at "
                f"{options.rendezvous}, or lost each other ({one_line(error)}). Is node 0 running, its port open, "
                "--nodes the same on all?"
            ) from None
        for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signal_number, signal.SIG_IGN)  # all processes are gone; torchrun's handlers would raise
        attempts = sorted(Path(folder).glob("*/attempt_*"), key=lambda path: int(path.name.rpartition("_")[2]))
        words = words_left(attempts[-1]) if attempts else {}
    return _exit_status(words, failures, number, num_processes, options)


@contextmanager
def _hung_ones_ended(folder: Path) -> Iterator[None]:
    """While it lasts, ends the processes that are still there some time after one has found that one hangs.

    What is stopped, or deaf in a library, does not heed the agent's SIGTERM, and the agent would wait for minutes.
    """
    over = Event()
    Thread(target=_end_hung_ones, args=(folder, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _end_hung_ones(folder: Path, over: Event) -> None:
    seen, before = 0, _children()
    while not over.wait(0.5):
        if _num_hangs_noted(folder) > seen:
            if over.wait(HUNG_PATIENCE_SECONDS):
                return
            for pid in before & _children():  # not those that were started again meanwhile
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            seen = _num_hangs_noted(folder)
        before = _children()


def _num_hangs_noted(folder: Path) -> int:
    """How many processes said that one hangs, in all attempts so far; `folder` is this launcher's."""
    return sum(1 for _ in folder.glob("*/attempt_*/*/error.json.hung"))


def _children() -> set[int]:
    """Process ids of those that this process started itself and that are not counted out yet; Linux alone tells."""
    children: set[int] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            children.update(map(int, path.read_text().split()))
    return children


def _launch_config(num_processes: int, options: LaunchOptions) -> LaunchConfig:
    from torch.distributed.launcher.api import LaunchConfig

    several = options.nodes > 1
    host = options.rendezvous.rpartition(":")[0] if options.rendezvous else None
    rendezvous = {"timeout": NODES_WAIT_SECONDS, "read_timeout": NODES_WAIT_SECONDS}
    if several:
        rendezvous["is_host"] = options.node_rank == 0
    return LaunchConfig(
        min_nodes=options.nodes,
        max_nodes=options.nodes,
        nproc_per_node=num_processes,
        run_id=(default_launch_id() or "sft") if several else uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=options.rendezvous or "localhost:0",
        rdzv_configs=rendezvous if several else {},
        max_restarts=options.max_restarts,
        monitor_interval=0.2,
        # The name by which the others are known to reach it; a node's own idea of its name may mean nothing to them.
        local_addr=host if several and options.node_rank == 0 else None,
        signals_to_handle="SIGTERM,SIGINT,SIGUSR1,SIGHUP,SIGQUIT",
    )


def check_rendezvous(options: LaunchOptions) -> None:
    """Checks what node 0's address can be checked for before anything is started.

    Raises:
        ConfigError: if no machine has this name, or node 0's port is taken.
    """
    host, _, port = str(options.rendezvous).rpartition(":")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(
            f"command line: --rendezvous: no machine is known by the name {host!r} ({error.strerror})."
        ) from None
    if options.node_rank != 0:
        return
    with socket.socket(family, kind, protocol) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise ConfigError(
                    f"command line: --rendezvous: {host} is not this machine, but --node_rank 0 is; write its name."
                ) from None
            raise ConfigError(
                f"command line: --rendezvous: port {port} of {host} cannot be used ({error.strerror}); choose another, "
                f"the same on all nodes. One that is free now: {_free_port()}."
            ) from None


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("", 0))
        return trial.getsockname()[1]


def _exit_status(
    words: Mapping[int, tuple[int, list[str]]],
    failures: Mapping[int, ProcessFailure],
    number: int,
    num_processes: int,
    options: LaunchOptions,
) -> int:
    """What the launcher leaves with, and a line where the processes could not say it themselves.

    Args:
        words: what processes said on leaving, by local rank.
        failures: of processes that left with another status than 0, by rank.
        number: of a signal that came to the launcher itself; 0 for none.
        num_processes: on this machine.
        options: how they were started.
    """
    for status, problems in words.values():
        if status == 2:
            sys.stderr.write("".join(f"{line}\n" for line in problems))
            return status
    # One that the launcher ended because another had failed carries SIGTERM, or found its peers gone a little later.
    died = [(rank, failure) for rank, failure in failures.items() if failure.local_rank not in words]
    died.sort(key=lambda item: (item[1].exitcode in (1, -signal.SIGTERM), item[1].timestamp))
    if died:
        rank, failure = died[0]
        how = f"was killed by {signal.Signals(-failure.exitcode).name}" if failure.exitcode < 0 else "failed"
        if failure.exitcode in HUNG_STATUSES:
            how = "hung, or waited for one that did (hang_timeout_seconds)"
        log = f" Its log: {Path(options.log_dir, f'rank-{rank}.log')}." if options.log_dir else ""
        sys.stderr.write(
            f"The process of rank {rank} {how}, so the others were ended too.{log} "
            "Go on from the last checkpoint with --resume_from_checkpoint auto.\n"
        )
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    left = max((status for status, _ in words.values()), default=0)
    # On a second signal torchrun's agent sends SIGTERM, whatever came; and none left a word if none had begun.
    if number and (left or len(words) < num_processes):
        return 128 + number
    return left

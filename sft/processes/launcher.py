"""Start the processes of a run on this machine, as torchrun does, and report how they ended.

torchrun's launcher is called as a library, so that an error that a user can fix ends with our one line and not with
torchrun's report of a failed child. Processes record their exit in a file beside torchrun's error file
(`sft.processes.exit_records`): this distinguishes processes that stop together from one that died.
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

import torch
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from sft.common.errors import ConfigError, one_line
from sft.common.machine_records import LaunchOptions, too_many_processes
from sft.processes.environment import default_launch_id, num_usable_cores, prepare_children
from sft.processes.exit_records import ExitRecord, num_hangs_recorded, read_exit_records
from sft.processes.libraries import resume_garbage_collection
from sft.processes.output import print_errors

HUNG_STATUSES = (128 + signal.SIGALRM, -signal.SIGALRM) if hasattr(signal, "SIGALRM") else (142,)
"""Exit statuses of a process that the watchdog ended (`sft.processes.watchdog`)."""
HUNG_PATIENCE_SECONDS = 20.0
"""How long processes may take to exit by themselves after a hang was detected; then they are killed."""
NODES_WAIT_SECONDS = 900
"""How long the first node waits for the last: schedulers may start nodes minutes apart."""


def launch_processes(
    num_processes: int, script: str, arguments: Sequence[str], options: LaunchOptions, *, use_cpu: bool = False
) -> int:
    """Run `script` in several processes of this machine and wait for them.

    Returns:
        The exit status for this process: 0, the status with which the processes exited, or that of the one that died
        first.

    Raises:
        ConfigError: if there are fewer GPUs (without a GPU: CPU cores) than processes, the other nodes cannot be
            reached, or the port is in use.
    """
    resume_garbage_collection()
    problem = too_many_processes(num_processes, 0 if use_cpu else torch.cuda.device_count(), num_usable_cores())
    if problem is not None:
        raise ConfigError(f"num_gpus is {num_processes}, but {problem}")
    if options.nodes > 1:
        check_rendezvous(options)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    prepare_children(num_processes)
    launch_config = _launch_config(num_processes, options)
    failures: Mapping[int, ProcessFailure] = {}
    number = 0
    with tempfile.TemporaryDirectory(prefix="sft-launch-") as folder:
        # Without a log folder the launcher would not give its children error files.
        launch_config.logs_specs = DefaultLogsSpecs(log_dir=folder)
        try:
            with _hung_processes_killed(Path(folder)):
                elastic_launch(launch_config, sys.executable)("-u", script, *arguments)
        except ChildFailedError as error:
            failures = error.failures
        except SignalException as signal_error:
            number = int(signal_error.sigval)
        except RendezvousError as error:
            raise ConfigError(
                f"command line: --rendezvous: the {options.nodes} nodes did not connect at {options.rendezvous}, or "
                f"lost the connection ({one_line(error)}). Check that node 0 is running, that its port is open, and "
                "that --nodes is the same on all nodes."
            ) from None
        for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signal_number, signal.SIG_IGN)  # all processes have ended; torchrun's handlers would raise
        attempts = sorted(Path(folder).glob("*/attempt_*"), key=lambda path: int(path.name.rpartition("_")[2]))
        records = read_exit_records(attempts[-1]) if attempts else {}
    return _exit_status(records, failures, number, num_processes, options)


@contextmanager
def _hung_processes_killed(folder: Path) -> Iterator[None]:
    """Within the context, kill the processes that are still running some time after a hang was detected.

    A process that is stopped, or blocked in a library, does not react to the agent's SIGTERM, and the agent would wait
    for minutes.
    """
    over = Event()
    Thread(target=_kill_hung_processes, args=(folder, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _kill_hung_processes(folder: Path, over: Event) -> None:
    seen, before = 0, _children()
    while not over.wait(0.5):
        if num_hangs_recorded(folder) > seen:
            if over.wait(HUNG_PATIENCE_SECONDS):
                return
            for pid in before & _children():  # not those that were restarted meanwhile
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            seen = num_hangs_recorded(folder)
        before = _children()


def _children() -> set[int]:
    """Process ids of the direct children that have not been waited for; empty on other systems than Linux."""
    children: set[int] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            children.update(map(int, path.read_text().split()))
    return children


def _launch_config(num_processes: int, options: LaunchOptions) -> LaunchConfig:
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
        # The name under which the other nodes reach it: its own hostname may be unknown to them.
        local_addr=host if several and options.node_rank == 0 else None,
        signals_to_handle="SIGTERM,SIGINT,SIGUSR1,SIGHUP,SIGQUIT",
    )


def check_rendezvous(options: LaunchOptions) -> None:
    """Check node 0's address, as far as possible before anything is started.

    Raises:
        ConfigError: if the name cannot be resolved, or node 0's port is in use.
    """
    host, _, port = str(options.rendezvous).rpartition(":")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(
            f"command line: --rendezvous: the host name {host!r} cannot be resolved ({error.strerror})."
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
                    f"command line: --rendezvous: {host} is not an address of this machine, but --node_rank is 0; "
                    "write the name of this machine."
                ) from None
            raise ConfigError(
                f"command line: --rendezvous: port {port} of {host} cannot be used ({error.strerror}); choose another, "
                f"the same on all nodes. Port {_free_port()} is free now."
            ) from None


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("", 0))
        return trial.getsockname()[1]


def _exit_status(
    records: Mapping[int, ExitRecord],
    failures: Mapping[int, ProcessFailure],
    number: int,
    num_processes: int,
    options: LaunchOptions,
) -> int:
    """The launcher's exit status. Also prints the line that the processes could not print themselves.

    Args:
        records: of the processes that exited deliberately, by local rank.
        failures: of the processes that exited with another status than 0, by rank.
        number: of a signal that the launcher itself received; 0 for none.
        num_processes: on this machine.
        options: how they were started.
    """
    for record in records.values():
        if record.exit_status == 2:
            print_errors(record.problems)
            return 2
    # Processes that the launcher ended because another had failed have SIGTERM, or lost their peers a little later.
    died = [(rank, failure) for rank, failure in failures.items() if failure.local_rank not in records]
    died.sort(key=lambda item: (item[1].exitcode in (1, -signal.SIGTERM), item[1].timestamp))
    if died:
        rank, failure = died[0]
        how = f"was killed by {signal.Signals(-failure.exitcode).name}" if failure.exitcode < 0 else "failed"
        if failure.exitcode in HUNG_STATUSES:
            how = "hung, or waited for a process that hung (hang_timeout_seconds)"
        log = f" Its log: {Path(options.log_dir, f'rank-{rank}.log')}." if options.log_dir else ""
        print_errors(
            [
                f"The process of rank {rank} {how}, so the other processes were ended too.{log} "
                "Resume from the last checkpoint with --resume_from_checkpoint auto."
            ]
        )
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    status = max((record.exit_status for record in records.values()), default=0)
    # On a second signal torchrun's agent sends SIGTERM, whichever came; a process that had not started has no record.
    if number and (status or len(records) < num_processes):
        return 128 + number
    return status

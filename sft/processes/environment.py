"""What the environment says of this process: ranks, launcher, cores, folders."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from threading import Thread
from typing import Any

LAUNCHER_VARIABLE = "SFT_LAUNCHER"
"""The process id of our launcher, set for the processes that it starts (see `process_launcher`)."""


_PR_SET_PDEATHSIG = 1
"""Linux's `prctl`: which signal this process gets when its parent ends (linux/prctl.h)."""


def is_launched() -> bool:
    """Whether a launcher (torchrun, srun with its variables) started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank_of_this_process() -> int:
    """The rank that the launcher gave, 0 without one."""
    return int(os.environ.get("RANK", "0"))


def local_rank_of_this_process() -> int:
    """The rank among the processes of this machine, 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def launched_world_size() -> int:
    """The number of processes that the launcher started on all machines, 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def num_processes_here(world_size: int) -> int:
    """Processes of this run on this machine, of `world_size` in all."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size))


def hide_all_gpus_but_first() -> None:
    """Leave one GPU visible. To be called before CUDA is initialized."""
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def prepare_children(num_processes: int) -> None:
    """Sets the environment that processes started from here on inherit."""
    # torchrun warns and sets 1 where this is not set; the machine's cores, shared fairly, are the better default.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_usable_cores() // num_processes)))
    # After a signal the processes finish their step and save; the launcher's own 30 seconds can be too few for that.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    # Each start gets a store of its own: in a shared one, processes that start again find the addresses of the dead.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ[LAUNCHER_VARIABLE] = str(os.getpid())


def launch_id() -> str | None:
    """What all processes of a launch share, also after a restart, and no other launch has; None without a launcher."""
    return os.environ.get("TORCHELASTIC_RUN_ID") if is_launched() else None


def default_launch_id() -> str | None:
    """The same on all nodes of a SLURM job, another when it is started again; None elsewhere."""
    job = os.environ.get("SLURM_JOB_ID")
    return f"{job}-{os.environ.get('SLURM_RESTART_COUNT', '0')}" if job else None


def num_restarts() -> int:
    """How often the launcher started the processes again before this one, because one had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def end_with_launcher() -> None:
    """Has the system end this process when the launcher that started it is gone, however it went.

    To be called by the entry. A launcher that was killed by SIGKILL could not end its processes.
    """
    launcher = os.environ.get(LAUNCHER_VARIABLE)
    if not (launcher and is_launched()):
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    else:
        Thread(target=_end_with_parent, args=(int(launcher),), daemon=True).start()
    if os.getppid() != int(launcher):  # it went before the system was asked
        os._exit(1)


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def tokenize_in_one_thread() -> None:
    """Keeps the tokenizers library from threads of its own in this process, from here on."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def uses_deepspeed(setting: Any | None) -> bool:
    """Whether DeepSpeed will spread state over processes: by a key, or by accelerate's launcher."""
    return bool(setting) or is_set("ACCELERATE_USE_DEEPSPEED")


def is_set(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")


def num_usable_cores() -> int:
    """CPU cores that this process may run on: a scheduler such as SLURM may allow fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def user_cache_folder() -> Path:
    """Where this user's programs keep what they can make again (the XDG base directory specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def default_wandb_to_offline() -> bool:
    """Keeps wandb from asking for a key: without one, the run is recorded on disk. Returns whether it is offline."""
    has_key = bool(os.environ.get("WANDB_API_KEY")) or "api.wandb.ai" in _text_of(Path.home() / ".netrc")
    if not has_key:
        os.environ.setdefault("WANDB_MODE", "offline")
    return os.environ.get("WANDB_MODE") == "offline"


def _text_of(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""

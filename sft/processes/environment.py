"""The environment of this process: ranks, launcher, CPU cores, folders."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Any

LAUNCHER_VARIABLE = "SFT_LAUNCHER"
"""The process id of our launcher, set for the processes that it starts (see `sft.processes.launcher`)."""
_PR_SET_PDEATHSIG = 1
"""Option of Linux's `prctl`: the signal that this process receives when its parent ends (linux/prctl.h)."""

_KERNEL_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)


def is_launched() -> bool:
    """Whether a launcher (torchrun, srun with its variables) started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank_of_this_process() -> int:
    """The rank among all processes of the run, 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def local_rank_of_this_process() -> int:
    """The rank among the processes of this machine, 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def launched_world_size() -> int:
    """The number of processes that the launcher started on all machines, 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def num_processes_here(world_size: int) -> int:
    """The number of processes of this run on this machine.

    Args:
        world_size: of the run; the result where the launcher does not set `LOCAL_WORLD_SIZE`.
    """
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size))


def has_gpu_of_its_own() -> bool:
    """Whether this process is a task of SLURM's that GPUs are bound to, as by `srun --gpus-per-task=1`.

    Such a task sees its own GPUs only, numbered from 0 in each task.
    """
    given = os.environ
    is_task = given.get("SLURM_PROCID") == given.get("RANK") and given.get("SLURM_NTASKS") == given.get("WORLD_SIZE")
    binding = given.get("SLURM_GPU_BIND", "")
    is_bound = "SLURM_GPUS_PER_TASK" in given or "gpu" in given.get("SLURM_TRES_PER_TASK", "")
    return is_launched() and is_task and (is_bound or "per_task:" in binding or "single:" in binding)


def hide_all_gpus_but_first() -> None:
    """Leave one GPU visible. To be called before CUDA is initialized."""
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def prepare_children(num_processes: int) -> None:
    """Set the environment variables that the processes of a run inherit."""
    # If it is not set, torchrun warns and sets 1; an equal share of the machine's cores is the better default.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_usable_cores() // num_processes)))
    # After a signal the processes finish their step and save; the launcher's default of 30 seconds can be too short.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    # Each attempt gets its own store: in a shared one, restarted processes find the addresses of the dead ones.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ[LAUNCHER_VARIABLE] = str(os.getpid())


def launch_id() -> str | None:
    """An id of the launch, the same in all its processes and after a restart; None without a launcher."""
    return os.environ.get("TORCHELASTIC_RUN_ID") if is_launched() else None


def default_launch_id() -> str | None:
    """An id that is the same on all nodes of a SLURM job and changes when the job is requeued; None elsewhere."""
    job = os.environ.get("SLURM_JOB_ID")
    return f"{job}-{os.environ.get('SLURM_RESTART_COUNT', '0')}" if job else None


def num_restarts() -> int:
    """How often the launcher has restarted the processes because one had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def exit_with_launcher() -> None:
    """Make the system end this process when its launcher ends in any way. To be called by the entry.

    A launcher that is killed by SIGKILL cannot end its processes.
    """
    launcher = os.environ.get(LAUNCHER_VARIABLE)
    if not (launcher and is_launched()):
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    else:
        Thread(target=_exit_with_parent, args=(int(launcher),), daemon=True).start()
    if os.getppid() != int(launcher):  # the launcher ended before the call
        os._exit(1)


def _exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def tokenize_in_one_thread() -> None:
    """Turn off the threads of the tokenizers library in this process."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def uses_deepspeed(setting: Any | None) -> bool:
    """Whether DeepSpeed is used: requested by the setting, or by accelerate's launcher."""
    return bool(setting) or is_set("ACCELERATE_USE_DEEPSPEED")


def is_set(name: str) -> bool:
    """Whether an environment variable is set to 1, true or yes."""
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")


def num_usable_cores() -> int:
    """CPU cores that this process may use: a scheduler such as SLURM may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def kernel_variables() -> dict[str, str]:
    """The environment variables that make libraries compute with other kernels, as far as they are set."""
    return {name: os.environ[name] for name in _KERNEL_VARIABLES if name in os.environ}


def user_cache_folder() -> Path:
    """This user's cache folder (XDG base directory specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def set_wandb_environment(folder: str, run_id: str, project: str | None) -> bool:
    """Set what wandb reads, unless the user set it. Without an API key it records on disk instead of asking for one.

    Args:
        folder: where wandb writes.
        run_id: a resumed run continues the run of this id.
        project: its project; None for wandb's default.

    Returns:
        Whether wandb is offline.
    """
    os.environ.setdefault("WANDB_DIR", folder)
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_RUN_ID", run_id)
    os.environ.setdefault("WANDB_RESUME", "allow")
    if project:
        os.environ["WANDB_PROJECT"] = project
    has_key = bool(os.environ.get("WANDB_API_KEY")) or "api.wandb.ai" in _text_of(Path.home() / ".netrc")
    if not has_key:
        os.environ.setdefault("WANDB_MODE", "offline")
    return os.environ.get("WANDB_MODE") == "offline"


def set_tensorboard_folder(folder: str) -> None:
    """Set the folder of TensorBoard's event files, which transformers reads from the environment."""
    os.environ["TENSORBOARD_LOGGING_DIR"] = folder


def tensorboard_folder() -> str:
    """The folder of this run's TensorBoard files; set when the training arguments are built."""
    return os.environ["TENSORBOARD_LOGGING_DIR"]


def trackers_take_checkpoints(trackers: Sequence[str]) -> bool:
    """Whether one of these trackers may upload a checkpoint as soon as Trainer has saved it."""
    takes_none = {"tensorboard"} if os.environ.get("WANDB_LOG_MODEL") == "checkpoint" else {"tensorboard", "wandb"}
    return not takes_none.issuperset(trackers)


def _text_of(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""

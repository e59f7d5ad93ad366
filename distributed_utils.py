"""Processes: who we are among them, starting several, quiet libraries, one log.

Neither torch nor transformers is imported at module level: the entry needs this module before it knows whether the
configuration is sound.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any, TextIO

from configuration.schema import DistributedConfig, QuantizationConfig
from sft_errors import ConfigError, UserError
from sft_types import DistributedContext

logger = logging.getLogger("sft.distributed")
_OUR_LAUNCHER = "SFT_LAUNCHER"
"""The process id of our launcher, set for the processes that it starts (see `process_launcher`)."""
_PR_SET_PDEATHSIG = 1
"""Linux's `prctl`: which signal this process gets when its parent ends (linux/prctl.h)."""
_COMPILATION_SWITCH = "TORCHDYNAMO_DISABLE"
"""torch's own, read each time that `torch.compile` is called."""
_BITSANDBYTES_OPTIMIZERS = ("bnb", "8bit", "paged", "lion", "ademamix")
"""Parts of the names of optimizers that are, or may be, those of bitsandbytes."""


def is_launched() -> bool:
    """Whether a launcher (torchrun, srun with its variables) started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank_of_this_process() -> int:
    """The rank that the launcher gave, 0 without one."""
    return int(os.environ.get("RANK", "0"))


def num_processes_here(world_size: int) -> int:
    """Processes of this run on this machine, of `world_size` in all."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size))


def agree_on_smallest(number: int, context: DistributedContext) -> int:
    """The smallest of the numbers that the processes have; the process group must be open."""
    if context.world_size == 1:
        return number
    import torch

    device = context.device if torch.distributed.get_backend() == "nccl" else "cpu"
    smallest = torch.tensor(number, device=device)
    torch.distributed.all_reduce(smallest, op=torch.distributed.ReduceOp.MIN)
    return int(smallest)


def open_talk(context: DistributedContext) -> Any:
    """A group of all processes that talk through main memory, whatever the others' backend; None for one process.

    All processes must call it.
    """
    if context.world_size == 1:
        return None
    import torch

    return torch.distributed.new_group(backend="gloo")


def wait_for_all(problem: str | None, context: DistributedContext, group: Any) -> str | None:
    """Waits until every process is here, and tells each of them the first problem that any of them has.

    Args:
        problem: of this process; None if it has none.
        context: this process.
        group: of `open_talk`.
    """
    if group is None:
        return problem
    import torch

    found: list[str | None] = [None] * context.world_size
    torch.distributed.all_gather_object(found, problem, group=group)
    return next((each for each in found if each is not None), None)


def open_process_group(config: DistributedConfig, context: DistributedContext, timeout_seconds: int | None) -> None:
    """Opens the group of all processes before accelerate would, which then takes it.

    Args:
        config: the distributed section.
        context: this process.
        timeout_seconds: of an operation in which not all processes take part; None for torch's default.
    """
    import torch

    if not torch.distributed.is_initialized():
        backend = config.ddp_backend or ("gloo" if context.device == "cpu" else "nccl")
        timeout = None if timeout_seconds is None else timedelta(seconds=timeout_seconds)
        torch.distributed.init_process_group(backend, timeout=timeout)


def start_distributed(
    config: DistributedConfig, *, use_cpu: bool = False, is_rehearsal: bool = False, nodes: int = 1
) -> DistributedContext:
    """Finds this process's place and device.

    The process group itself is opened by accelerate when the training arguments are built.

    Args:
        config: the distributed section.
        use_cpu: stay on the CPU although there is a GPU.
        is_rehearsal: one process stands for all that the configuration asks for; it talks to none.
        nodes: machines with so many processes each, for a rehearsal.

    Raises:
        ConfigError: if the processes started are not those that the configuration asks for, or there is no GPU for
            one of them.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    processes_here = num_processes_here(world_size)
    if is_rehearsal and not is_launched():
        return DistributedContext(world_size=(config.num_gpus or 1) * nodes, device=_device_of(0, 1, use_cpu))
    if config.num_gpus is not None and config.num_gpus != processes_here:
        raise ConfigError(
            f"num_gpus is {config.num_gpus} but {processes_here} processes were started. "
            f"Pass --gpus {config.num_gpus}, or set num_gpus: {processes_here}."
        )
    if _is_set("ACCELERATE_USE_FSDP"):
        raise ConfigError(
            "accelerate's launcher asks for FSDP by settings of its own. Write fsdp: {} into the configuration, and "
            "start it by ./launch_training.sh --gpus N or torchrun."
        )
    device = _device_of(local_rank, processes_here, use_cpu)
    if config.ddp_backend == "nccl" and device == "cpu":
        raise ConfigError("ddp_backend: nccl needs GPUs, and this run is on CPU; write gloo, or leave it out.")
    return DistributedContext(rank=rank_of_this_process(), local_rank=local_rank, world_size=world_size, device=device)


def _device_of(local_rank: int, processes_here: int, use_cpu: bool) -> str:
    import torch

    if use_cpu:
        return "cpu"
    if not torch.cuda.is_available():
        if processes_here > 1:
            logger.info("No GPU on this machine: %d processes on CPU, which talk by gloo.", processes_here)
        return "mps" if processes_here == 1 and torch.backends.mps.is_available() else "cpu"
    num_devices = torch.cuda.device_count()
    if processes_here > num_devices:
        raise ConfigError(f"{processes_here} processes but {num_devices} GPUs on this machine; start at most as many.")
    if processes_here == 1 and num_devices > 1 and not is_launched():
        # Left to itself, Trainer would wrap the model in DataParallel: slower, and another batch size.
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        os.environ["CUDA_VISIBLE_DEVICES"] = first
        logger.info(
            "%d GPUs here, training on one. For all: ./launch_training.sh --config FILE --gpus %d",
            num_devices,
            num_devices,
        )
    torch.cuda.set_device(local_rank)
    return f"cuda:{local_rank}"


def prepare_children(num_processes: int) -> None:
    """Sets the environment that processes started from here on inherit."""
    # torchrun warns and sets 1 where this is not set; the machine's cores, shared fairly, are the better default.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_usable_cores() // num_processes)))
    # After a signal the processes finish their step and save; the launcher's own 30 seconds can be too few for that.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    # Each start gets a store of its own: in a shared one, processes that start again find the addresses of the dead.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ[_OUR_LAUNCHER] = str(os.getpid())


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
    launcher = os.environ.get(_OUR_LAUNCHER)
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


def leave_word(status: int, problems: Sequence[str] = (), *, kind: str = "left") -> bool:
    """Tells our launcher, where it started this process, that it leaves by its own will, with what exit status.

    Or, with the kind `hung`, that a process of the run hangs: the launcher then ends all.
    Returns whether another process has already left a problem there, and so is why this one was ended.
    """
    if not (os.environ.get(_OUR_LAUNCHER) and is_launched()):
        return False
    file = Path(os.environ["TORCHELASTIC_ERROR_FILE"])
    is_told = any(lines for _, lines in words_left(file.parents[1]).values())
    word = json.dumps({"exit_status": status, "problems": list(problems)})
    Path(f"{file}.{kind}").write_text(word, encoding="utf-8")
    return is_told


def leave_with_the_others(status: int) -> int:
    """The exit status for a process that leaves together with all others, at the same place of the run.

    Our launcher learns of it by a word. For torchrun's agent a status other than 0 is a failure: it would end the
    processes that are a moment behind, and start all of them again where restarts are left.
    """
    leave_word(status)
    return 0 if os.environ.get(_OUR_LAUNCHER) and is_launched() else status


def words_left(attempt: Path) -> dict[int, tuple[int, list[str]]]:
    """What processes said on leaving: local rank -> exit status, lines for the user. Of an attempt, by its folder."""
    words = {}
    for path in sorted(attempt.glob("*/error.json.left")):
        word = json.loads(path.read_text(encoding="utf-8"))
        words[int(path.parent.name)] = (word["exit_status"], word["problems"])
    return words


def settled_before() -> tuple[int, list[str]] | None:
    """What made the processes of the attempt before leave, if starting them again would only repeat it."""
    if not num_restarts() or not os.environ.get(_OUR_LAUNCHER):
        return None
    attempt = Path(os.environ["TORCHELASTIC_ERROR_FILE"]).parents[1]
    words = words_left(attempt.parent / f"attempt_{num_restarts() - 1}")
    for status, problems in words.values():
        if status == 2:
            return status, problems
    everyone_left = len(words) == num_processes_here(0)
    return max(words.values()) if everyone_left else None


def tell_problems(problems: Sequence[str]) -> None:
    """Writes what is wrong to standard error, a line each, once for all processes.

    Whichever process finds it first ends the others, the first one perhaps before it can say a word. So processes that
    our launcher started leave it with the launcher.
    """
    if os.environ.get(_OUR_LAUNCHER) and is_launched():
        leave_word(2, problems)
    elif rank_of_this_process() == 0:
        sys.stderr.write("\n".join(problems) + "\n")


def configure_logging(stream: TextIO | None = None) -> None:
    """One log for all processes: the first one writes, the others only what is an error.

    Args:
        stream: where to; None: standard output.
    """
    root = logging.getLogger("sft")
    root.handlers.clear()
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root.addHandler(handler)
    root.propagate = False
    root.setLevel(logging.INFO if rank_of_this_process() == 0 else logging.CRITICAL)


@contextmanager
def rank_log(log_dir: str | None) -> Iterator[None]:
    """Keeps this process's log in a file of its own too while it lasts, `rank-N.log`, with times; appended to.

    What the first rank writes still goes to the terminal; all that another one writes goes into its file alone.

    Raises:
        ConfigError: if the file cannot be written.
    """
    if log_dir is None:
        yield
        return
    root, path = logging.getLogger("sft"), Path(log_dir, f"rank-{rank_of_this_process()}.log")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"command line: --log_dir: {path} cannot be written: {error.strerror}.") from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    if rank_of_this_process():
        root.handlers.clear()
        root.setLevel(logging.INFO)
        os.dup2(handler.stream.fileno(), 1)
        os.dup2(handler.stream.fileno(), 2)
    root.addHandler(handler)
    try:
        yield
    except UserError as error:
        handler.stream.write("\n".join(error.problems) + "\n")
        raise
    except Exception:
        if rank_of_this_process() == 0:  # the others' tracebacks come into their files by themselves
            handler.stream.write(traceback.format_exc())
        raise
    finally:
        root.removeHandler(handler)
        handler.close()


def quiet_libraries() -> None:
    """Keeps other libraries' notices, hints and progress bars out of the log. Errors still come through."""
    # Said explicitly, the tokenizers library does not warn when a process is forked (see `tokenize_in_one_thread`).
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Says "Retrying in ..." many times before an unreachable Hub ends in one line of ours.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def pause_garbage_collection() -> None:
    """To be called by the entry: an import makes objects by the million and hardly any garbage.

    The collector would look through all of them again and again: a fifth of the time that imports take.
    """
    gc.disable()


def resume_garbage_collection() -> None:
    """Collects garbage again if that was paused, but looks no more at what is there by now: it is there to stay."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def leave_objects_to_the_system() -> None:
    """To be called at the end: whatever is garbage by now is ended properly, the rest goes with the process.

    Else the interpreter looks through all objects several times more before it ends: a second, with these libraries.
    """
    gc.collect()
    gc.freeze()


def import_libraries(*, is_rehearsal: bool, optimizer: str, quantization: QuantizationConfig | None) -> None:
    """Imports of torch and transformers what every run needs, with the collector paused where the entry paused it.

    Threads would not make it faster: imports hold the interpreter's lock (measured: 3.7 s in one thread, 4.0 s in two).

    Args:
        is_rehearsal: a rehearsal needs no Trainer (and with it `datasets` and pandas).
        optimizer: the name that `optim` has.
        quantization: of the weights, by bitsandbytes; None for none.
    """
    import transformers.modeling_utils

    uses_bitsandbytes = quantization is not None or any(sign in optimizer for sign in _BITSANDBYTES_OPTIMIZERS)
    with nullcontext() if uses_bitsandbytes else _without_compilation():
        # Imports peft, which imports bitsandbytes, which hands functions of its own to torch.compile.
        import transformers.training_args
    if not is_rehearsal:
        import transformers.trainer  # noqa: F401
    resume_garbage_collection()


@contextmanager
def _without_compilation() -> Iterator[None]:
    """Makes `torch.compile` hand back what it is given, without importing its compiler (0.8 s), while this lasts."""
    before = os.environ.get(_COMPILATION_SWITCH)
    os.environ[_COMPILATION_SWITCH] = "1"
    try:
        yield
    finally:
        os.environ.pop(_COMPILATION_SWITCH)
        if before is not None:
            os.environ[_COMPILATION_SWITCH] = before


def tokenize_in_one_thread() -> None:
    """Keeps the tokenizers library from threads of its own in this process, from here on."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def uses_deepspeed(extra_training_arguments: Mapping[str, Any]) -> bool:
    """Whether DeepSpeed will spread state over processes: by a key, or by accelerate's launcher."""
    return bool(extra_training_arguments.get("deepspeed")) or _is_set("ACCELERATE_USE_DEEPSPEED")


def _is_set(name: str) -> bool:
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

"""Records of the machine that a run uses, and of the memory that it needs. Frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sft.common.text import counted


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Expected peak memory of training on each device, in bytes."""

    weights_bytes: int
    """The weights, and the copies that mixed precision casts them to."""
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    """What the layers keep of a micro-batch for the backward pass."""
    logits_bytes: int
    """The logits, and what the loss computes from them."""
    slack_bytes: int = 0
    """What allocators and libraries hold beyond the memory in use."""
    process_bytes: int = 0
    """On CPU: the process without a model, that is libraries and data."""

    @property
    def total_bytes(self) -> int:
        in_use = self.weights_bytes + self.gradients_bytes + self.optimizer_bytes + self.activations_bytes
        return in_use + self.logits_bytes + self.slack_bytes + self.process_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryLimits:
    """What a run may hold on each device, and what it holds before the model is loaded; bytes."""

    budget_bytes: int | None
    """On CPU for the whole process; None where it is unknown."""
    process_bytes: int
    """0 on a GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryAdvice:
    """A change of the settings, and the expected peak memory of a device with it."""

    change: str
    """As configuration keys and values."""
    needed_bytes: int
    fits: bool
    """False for the variant that needs the least memory, where nothing fits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """The machine of a run, and what the run would write there."""

    device: str
    device_name: str
    """The vendor's name of it."""
    device_memory_bytes: int | None
    """Memory of one device (or this process's share of RAM); None where the system does not report it."""
    cpu_count: int
    """Cores that this process may use."""
    num_processes: int
    versions: Mapping[str, str]
    free_disk_bytes: int
    """Free space of the disk that has, or will have, `output_dir`."""
    checkpoint_bytes: int
    """Size of one checkpoint: saved weights and optimizer state."""
    checkpoints_kept: int | None
    """`save_total_limit`; None keeps all."""
    num_checkpoints: int
    """Number of checkpoints that the run would write."""
    final_model_bytes: int

    @property
    def checkpoints_at_once(self) -> int:
        """Most checkpoints that exist at a time: a new one is written before the oldest is deleted."""
        limit = self.num_checkpoints if self.checkpoints_kept is None else self.checkpoints_kept + 1
        return min(limit, self.num_checkpoints)

    @property
    def needed_disk_bytes(self) -> int:
        """Peak disk usage, final model included."""
        return self.checkpoints_at_once * self.checkpoint_bytes + self.final_model_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineFacts:
    """What is known about the machine of this process before torch is imported."""

    most_gpus: int | None
    """GPUs that torch can find at most; 0: there certainly is none; None: not known."""
    num_cores: int
    """CPU cores that this process may use."""
    is_launched: bool = False
    """Whether a launcher such as torchrun started this process."""
    world_size: int = 1
    """Processes that the launcher started on all machines; 1 without one."""
    processes_here: int = 1
    """Those of them on this machine."""
    has_gpu_of_its_own: bool = False
    """Whether a scheduler bound GPUs to this process, which sees no others."""
    lacks_bfloat16: bool = False
    """Whether none of the GPUs supports bfloat16; False if that is not known."""
    missing_to_compile: Mapping[bool, str | None] = field(default_factory=dict)
    """What torch.compile needs and does not find, on CPU (False) and on a GPU (True); None for nothing."""


def too_many_processes(count: int, gpus: int | None, cores: int) -> str | None:
    """Why `count` processes cannot run: there is one for each GPU, without GPUs one for each core; None if they can.

    Args:
        count: processes on this machine.
        gpus: at most; None if not known.
        cores: that this process may use.
    """
    if gpus is None or count <= (gpus or cores) or count == 1:
        return None
    found = counted(gpus, "GPU") if gpus else f"no GPU and {counted(cores, 'CPU core')}"
    return f"this machine has {found}; start at most {gpus or cores}."


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeEnvironment:
    """What the sums of a run are computed by, on its first process: elsewhere they may be rounded differently.

    Checkpoints keep it, and a run that is resumed elsewhere logs what differs (see `sft.checkpointing.same_run`).
    """

    device: str
    """`cpu`, `cuda` or `mps`."""
    gpu: str | None
    """Its name; None on CPU."""
    cpu: str
    """The vendor's name of the CPU."""
    instruction_set: str
    """The widest vector instructions that torch uses on it: `AVX2`, `AVX512`, ..."""
    num_threads: int
    """Threads that a sum is split over."""
    versions: Mapping[str, str]
    """Of the libraries that affect results."""
    variables: Mapping[str, str]
    """Environment variables that choose other kernels, as far as they are set."""
    reuses_freed_memory: bool
    """Whether the heap keeps freed memory: affects memory and speed, not the results."""
    gpu_allocator: str | None = None
    """Settings of torch's allocator of GPU memory, which affect memory, not the results; None for its defaults."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchOptions:
    """How the processes of a run are started: command-line options, since they describe machines, not the run."""

    nodes: int = 1
    """Number of machines. The command is started on each with the same options, except for its own `node_rank`."""
    node_rank: int | None = None
    """Number of this machine, from 0; 0 hosts the rendezvous."""
    rendezvous: str | None = None
    """`HOST:PORT` of node 0, where the nodes find each other; for several nodes only."""
    max_restarts: int = 0
    """How often the processes are restarted after one of them died; they resume from the newest checkpoint."""
    log_dir: str | None = None
    """Folder for one log file per rank."""

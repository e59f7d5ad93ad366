"""Records of the machine that a run takes place on, and of the memory that it takes; frozen, like `sft_types`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """What training is expected to hold on each device at its fullest, in bytes."""

    weights_bytes: int
    """The weights, and where mixed precision casts them, their copies."""
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    """What the layers keep of a micro-batch for the backward pass."""
    logits_bytes: int
    """The scores over the vocabulary, and what the loss makes of them."""
    slack_bytes: int = 0
    """What allocators and libraries hold beyond what is in use."""
    process_bytes: int = 0
    """On CPU: the process without a model, its libraries and data."""

    @property
    def total_bytes(self) -> int:
        in_use = self.weights_bytes + self.gradients_bytes + self.optimizer_bytes + self.activations_bytes
        return in_use + self.logits_bytes + self.slack_bytes + self.process_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryLimits:
    """What a run may hold on each device, and what it holds before there is a model; bytes."""

    budget_bytes: int | None
    """On CPU for the whole process; None where nothing is known."""
    process_bytes: int
    """0 on a GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryAdvice:
    """A change of the settings, and what a device would hold at its fullest with it."""

    change: str
    """In the words of the configuration."""
    needed_bytes: int
    fits: bool
    """False for the least that could be had, where nothing fits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """Where a run would take place, and what it would write there."""

    device: str
    device_name: str
    """As its maker calls it."""
    device_memory_bytes: int | None
    """Memory of one device (or of this process's share of RAM); None where the system does not tell."""
    cpu_count: int
    """Cores that this process may use."""
    num_processes: int
    versions: Mapping[str, str]
    free_disk_bytes: int
    """Free where `output_dir` is, or would be made."""
    checkpoint_bytes: int
    """One checkpoint: the weights that it holds and the optimizer's states."""
    checkpoints_kept: int | None
    """`save_total_limit`; None keeps all."""
    num_checkpoints: int
    """How many the run would write."""
    final_model_bytes: int

    @property
    def checkpoints_at_once(self) -> int:
        """The most that stand side by side: a new one is written before the oldest is deleted."""
        limit = self.num_checkpoints if self.checkpoints_kept is None else self.checkpoints_kept + 1
        return min(limit, self.num_checkpoints)

    @property
    def needed_disk_bytes(self) -> int:
        """At its fullest, the final model included."""
        return self.checkpoints_at_once * self.checkpoint_bytes + self.final_model_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchOptions:
    """How the processes of a run are started; typed behind the command: it belongs to the machines, not to the run."""

    nodes: int = 1
    """Machines that take part. On each, the command is started with the same options, but its own `node_rank`."""
    node_rank: int | None = None
    """Which of them this one is, from 0; 0 holds the rendezvous."""
    rendezvous: str | None = None
    """`HOST:PORT` of node 0, where the nodes find each other; only for several nodes."""
    max_restarts: int = 0
    """How often the processes are started again after one of them died; they go on from the newest checkpoint."""
    log_dir: str | None = None
    """Folder for one log file a rank."""

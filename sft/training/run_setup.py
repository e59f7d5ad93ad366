"""Everything that a run is made of, resolved before the first step."""

from __future__ import annotations

from dataclasses import dataclass

from sft.checkpointing.output_lock import OutputLock
from sft.checkpointing.resume_point import ResumePoint
from sft.common.machine_records import MemoryLimits
from sft.common.run_records import BatchPlan, DistributedContext
from sft.common.training_data import TrainingData
from sft.configuration.schema import SFTConfig
from sft.training.prepared_model import PreparedModel
from sft.training.run_identity import RunIdentity


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSetup:
    """A run before its first step."""

    config: SFTConfig
    context: DistributedContext
    data: TrainingData
    prepared: PreparedModel
    plan: BatchPlan
    limits: MemoryLimits
    """Of this process's memory."""
    identity: RunIdentity
    resume: ResumePoint | None = None
    """The checkpoint to resume from; None for a fresh start."""
    lock: OutputLock | None = None
    """On the output folder; taken by the main process."""
    command: str = ""
    """The command line, without the option that resumes: printed where a run stopped."""

    def check_output(self) -> None:
        """See `OutputLock.check`."""
        if self.lock is not None:
            self.lock.check()

    @property
    def first_step(self) -> int:
        """The step that training resumes after; 0 for a fresh start."""
        return self.resume.step if self.resume is not None else 0

"""The checkpoint that a run resumes from, with its manifest, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.checkpointing.manifest import read_manifest


def checkpoint_step(checkpoint: str | Path) -> int:
    """The optimizer step after which a checkpoint was saved, from its name `checkpoint-STEP`."""
    return int(Path(checkpoint).name.rpartition("-")[2])


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumePoint:
    """An undamaged checkpoint to resume from."""

    path: Path
    step: int
    """Optimizer steps that were done when it was saved."""
    manifest: Mapping[str, Any]
    """The content of its `manifest.json` (see `sft.checkpointing.manifest`)."""

    @classmethod
    def read(cls, path: Path) -> "ResumePoint":
        """Read the manifest of a checkpoint in which `find_damage` found nothing."""
        return cls(path=path, step=checkpoint_step(path), manifest=read_manifest(path))

    @property
    def name(self) -> str:
        """The folder's name: `checkpoint-STEP`."""
        return self.path.name

    @property
    def batch_plan(self) -> Mapping[str, Any] | None:
        """The batch plan of the run that saved it (see `sft.reporting.summary`); None if it has none."""
        return self.manifest.get("batch_plan")

    def is_in(self, output_dir: str | Path) -> bool:
        """Whether the checkpoint is one of this output folder, or what a link there points to."""
        there = Path(output_dir, self.name)
        return there.is_dir() and there.samefile(self.path)

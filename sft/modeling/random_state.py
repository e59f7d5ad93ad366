"""The state of all random number generators that a model may use: captured and restored."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomState:
    """States of the generators of Python, NumPy and torch, and of the GPU if the model is on one."""

    python: Any
    numpy: Any
    cpu: torch.Tensor
    device: str
    gpu: torch.Tensor | None

    @classmethod
    def capture(cls, device: str) -> "RandomState":
        """The current state. Does not synchronize with the GPU, whose generator state is in host memory."""
        gpu = torch.cuda.get_rng_state(device) if device.startswith("cuda") else None
        return cls(
            python=random.getstate(),
            numpy=np.random.get_state(),
            cpu=torch.get_rng_state(),
            device=device,
            gpu=gpu,
        )

    def restore(self) -> None:
        """Restore all generators."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.gpu is not None:
            torch.cuda.set_rng_state(self.gpu, self.device)

"""Optional packages: whether one is installed, and the line that names one that is missing."""

from __future__ import annotations

import importlib.util

_DISTRIBUTIONS = {
    "pynvml": "nvidia-ml-py",
    "comet_ml": "comet-ml",
    "flash_attn": "flash-attn",
    "flash_attn_interface": "flash-attn-3",
    "galore_torch": "galore-torch",
    "apollo_torch": "apollo-torch",
    "liger_kernel": "liger-kernel",
    "lomo_optim": "lomo-optim",
    "optimi": "torch-optimi",
    "torchdistx": "git+https://github.com/pytorch/torchdistx",
    "apex": "git+https://github.com/NVIDIA/apex",
}
"""Name of the import -> what `pip install` calls it, where the two differ."""


def is_installed(module: str) -> bool:
    """Whether a top-level module can be imported; does not import it."""
    return importlib.util.find_spec(module) is not None


def missing_package(module: str) -> str:
    """What a message says of a package that is not installed: `requires the package X: pip install X`."""
    name = _DISTRIBUTIONS.get(module, module)
    return f"requires the package {name}: pip install {name}"

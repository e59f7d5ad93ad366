"""What a GPU's matrix products can reach at most: dense, by its maker's data sheet. Utilization (MFU) is a share of it.

There is none for CPUs: their makers give none, and a rate that is measured while other programs run is no ceiling.
"""

from __future__ import annotations

import re

PEAK_TFLOPS: dict[tuple[str, ...], tuple[float | None, float, float | None, float]] = {
    ("B200",): (2250, 2250, 1125, 75),
    ("H200", "NVL"): (835.5, 835.5, 417.5, 60),
    ("H200",): (989.4, 989.4, 494.7, 66.9),
    ("GH200",): (989.4, 989.4, 494.7, 66.9),
    ("H100", "PCIE"): (756, 756, 378, 51.2),
    ("H100", "NVL"): (835.5, 835.5, 417.5, 60),
    ("H100",): (989.4, 989.4, 494.7, 66.9),
    ("H800",): (989.4, 989.4, 494.7, 66.9),
    ("A100",): (312, 312, 156, 19.5),
    ("A800",): (312, 312, 156, 19.5),
    ("A40",): (149.7, 149.7, 74.8, 37.4),
    ("A30",): (165, 165, 82, 10.3),
    ("A10",): (125, 125, 62.5, 31.2),
    ("A10G",): (70, 70, 35, 35),
    ("L40S",): (362, 362, 183, 91.6),
    ("L40",): (181, 181, 90.5, 90.5),
    ("L4",): (121, 121, 60, 30.3),
    ("RTX", "A6000"): (154.8, 154.8, 77.4, 38.7),
    ("RTX", "6000", "ADA"): (364.2, 364.2, 182.1, 91.1),
    ("RTX", "5090"): (209.5, 209.5, 104.8, 104.8),
    ("RTX", "4090"): (165.2, 165.2, 82.6, 82.6),
    ("RTX", "3090"): (71, 71, 35.6, 35.6),
    ("V100", "PCIE"): (None, 112, None, 14),
    ("V100",): (None, 125, None, 15.7),
    ("T4",): (None, 65, None, 8.1),
    ("MI300X",): (1307.4, 1307.4, 653.7, 163.4),
}
"""Words of the device's name -> 10^12 operations a second in bfloat16, float16, TF32 and float32, without sparsity.

Source: the makers' data sheets (NVIDIA, AMD); for GeForce cards the architecture's white paper, with sums in float32. A
half of what is printed there with sparsity. Where several fit a name, the one with most words is taken."""
_KINDS = ("bfloat16", "float16", "tf32", "float32")
_OTHER_DEVICES = {"LAPTOP", "MAX", "MIG", "D", "TI"}
"""Words that make it another device, or a part of one, of which nothing is known here."""


def find_peak_flops(name: str, kind: str) -> float | None:
    """Operations a second that a device can do at most; None where it is not in the table.

    Args:
        name: as the driver gives it, e.g. `NVIDIA H100 80GB HBM3`.
        kind: of the products: `bfloat16`, `float16`, `tf32` or `float32`.
    """
    words = set(re.findall(r"[A-Z0-9]+", name.upper()))
    fitting = [key for key in PEAK_TFLOPS if words.issuperset(key)]
    if not fitting or words & _OTHER_DEVICES:
        return None
    peak = PEAK_TFLOPS[max(fitting, key=len)][_KINDS.index(kind)]
    return peak * 1e12 if peak else None


def kind_of_products(bf16: bool, fp16: bool, weights: object) -> str:
    """The type that matrix products are made in.

    Args:
        bf16, fp16: whether mixed precision casts to them.
        weights: the weights' type, as torch or the settings name it.
    """
    if bf16 or fp16:
        return "bfloat16" if bf16 else "float16"
    name = str(weights).removeprefix("torch.")
    if name != "float32":
        return name
    import torch

    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "float32"


def peak_flops_of(device: str, kind: str) -> float | None:
    """Operations a second that this process's device can do at most; None on a CPU, and where it is not known."""
    if not device.startswith("cuda"):
        return None
    import torch

    return find_peak_flops(torch.cuda.get_device_name(device), kind)

"""Peak dense matrix throughput of GPUs, from their data sheets: the denominator of model FLOPs utilization (MFU).

CPUs are not listed: their data sheets give no such figure, and a rate measured while other programs run is no peak.
"""

from __future__ import annotations

import re

import torch

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
"""Words of the device's name -> TFLOPS in bfloat16, float16, TF32 and float32, without sparsity.

Source: data sheets (NVIDIA, AMD); for GeForce cards the architecture's white paper, with float32 accumulation. Half of
the value printed with sparsity. If several entries match a name, the one with the most words is used."""
_DTYPES = ("bfloat16", "float16", "tf32", "float32")
_OTHER_DEVICES = {"LAPTOP", "MAX", "MIG", "D", "TI"}
"""Words that name a different device, or a partition of one, for which no peak is listed."""


def find_peak_flops(name: str, dtype: str) -> float | None:
    """Peak FLOPS of a device; None if it is not in the table.

    Args:
        name: as the driver reports it, e.g. `NVIDIA H100 80GB HBM3`.
        dtype: of the matrix products: `bfloat16`, `float16`, `tf32` or `float32`.
    """
    words = set(re.findall(r"[A-Z0-9]+", name.upper()))
    matching = [key for key in PEAK_TFLOPS if words.issuperset(key)]
    if not matching or words & _OTHER_DEVICES:
        return None
    peak = PEAK_TFLOPS[max(matching, key=len)][_DTYPES.index(dtype)]
    return peak * 1e12 if peak else None


def matmul_dtype(bf16: bool, fp16: bool, weights: object) -> str:
    """The dtype in which matrix products are computed.

    Args:
        bf16, fp16: whether mixed precision casts to it.
        weights: dtype of the weights, as torch or the settings name it.
    """
    if bf16 or fp16:
        return "bfloat16" if bf16 else "float16"
    name = str(weights).removeprefix("torch.")
    if name != "float32":
        return name
    # Not `allow_tf32`: transformers sets the newer name, and reading the older one after that raises an error.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "float32"


def device_peak_flops(device: str, dtype: str) -> float | None:
    """Peak FLOPS of this process's device; None on a CPU and for an unlisted GPU."""
    return find_peak_flops(gpu_name(device), dtype) if device.startswith("cuda") else None


def gpu_name(device: str) -> str:
    """The name that the driver reports; that of the device if it reports none, since it is for reports alone."""
    try:
        return torch.cuda.get_device_name(device)
    except Exception:
        return device

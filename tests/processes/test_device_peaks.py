"""Peak arithmetic throughput of devices, which utilization is relative to."""

from __future__ import annotations

import pytest
import torch

from sft.processes.device_peaks import PEAK_TFLOPS, find_peak_flops, matmul_dtype


@pytest.mark.parametrize(
    ("name", "kind", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156),
        ("NVIDIA A10G", "float16", 70),
        ("NVIDIA RTX 6000 Ada Generation", "bfloat16", 364.2),
        ("Tesla V100-SXM2-16GB", "float32", 15.7),
        ("Tesla V100-SXM2-16GB", "bfloat16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bfloat16", None),
        ("NVIDIA GeForce GTX 1080", "float32", None),
    ],
)
def test_find_peak_flops_is_none_for_an_unknown_device(name, kind, tflops):
    assert find_peak_flops(name, kind) == (tflops and tflops * 1e12)


def test_peaks_decrease_with_the_width_of_the_dtype():
    for bfloat16, float16, tf32, float32 in PEAK_TFLOPS.values():
        assert (bfloat16 or float16) == float16 >= (tf32 or float32) >= float32


def test_matmul_dtype_is_that_of_mixed_precision_if_it_is_used():
    assert matmul_dtype(True, False, "torch.float32") == "bfloat16"
    assert matmul_dtype(False, True, "torch.float32") == "float16"
    assert matmul_dtype(False, False, "torch.bfloat16") == "bfloat16"
    assert matmul_dtype(False, False, "torch.float32") == "float32"


def test_tf32_is_read_by_the_name_that_transformers_sets():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for precision, name in (("tf32", "tf32"), ("ieee", "float32")):
            matmul.fp32_precision = precision
            assert matmul_dtype(False, False, "torch.float32") == name
    finally:
        matmul.fp32_precision = before

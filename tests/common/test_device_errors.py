"""Errors of the machine are told from those of a model's own code."""

from __future__ import annotations

import pytest
import torch

from sft.common.device_errors import is_device_error, is_out_of_memory, reraise_device_error

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.OutOfMemoryError(),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.1 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]
DEVICE = [
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("HIP error: invalid device function"),
    RuntimeError("NCCL Error 2: unhandled system error"),
    RuntimeError("Found no NVIDIA driver on your system."),
    torch.distributed.DistBackendError("the other process is gone"),
]
OF_THE_MODEL = [
    RuntimeError("The size of tensor a (5) must match the size of tensor b (9) at non-singleton dimension 1"),
    ValueError("cache_position is out of memory"),  # not torch's class
    KeyError("attention_mask"),
    TypeError("forward() got an unexpected keyword argument 'cu_seq_lens_q'"),
    NotImplementedError("no backward"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY + DEVICE + OF_THE_MODEL, ids=lambda error: str(error)[:30])
def test_errors_of_the_machine_are_recognized(error):
    assert is_out_of_memory(error) == (error in OUT_OF_MEMORY)
    assert is_device_error(error) == (error not in OF_THE_MODEL)
    if is_device_error(error):
        with pytest.raises(type(error)):
            reraise_device_error(error)
    else:
        reraise_device_error(error)

"""Errors of the machine are told from those of a model's own code."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import sft_main
from sft.common.device_errors import (
    is_device_error,
    is_lost_connection,
    is_out_of_memory,
    lost_connection_line,
    reraise_device_error,
)
from tests.support.paths import REPOSITORY

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.OutOfMemoryError(),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.1 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
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


LOST = [
    torch.distributed.DistBackendError("NCCL communicator was aborted on rank 0"),
    torch.distributed.DistNetworkError("The client socket has timed out"),
    torch.distributed.DistStoreError("wait timeout after 300000ms, keys: /worker/1"),
    RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.1]:3456"),
    RuntimeError("Connection reset by peer"),
    RuntimeError("[/pytorch/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation"),
    RuntimeError("Broken pipe"),
]


@pytest.mark.parametrize("error", LOST, ids=lambda error: str(error)[:30])
def test_a_lost_connection_is_an_error_of_the_machine_in_one_line(error):
    assert is_lost_connection(error)
    assert is_device_error(error)
    line = lost_connection_line(3, error)
    assert line.startswith("Rank 3 lost the connection to another process")
    assert "\n" not in line


@pytest.mark.parametrize("error", [*OF_THE_MODEL, *OUT_OF_MEMORY, ConnectionResetError("connection reset by peer")])
def test_other_errors_are_no_lost_connection(error):
    assert not is_lost_connection(error)


def test_only_a_process_among_others_loses_a_connection(monkeypatch, capsys):
    """Elsewhere such a text comes from something else, whose traceback is needed."""

    def fail(*_):
        raise RuntimeError("tracker: Connection refused")

    monkeypatch.setattr(sft_main, "_launch_or_run", fail)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError, match="tracker"):
        sft_main.main(["--config_file", "run.yaml"])
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sft_main.main(["--config_file", "run.yaml"]) == 1
    assert "lost the connection to another process" in capsys.readouterr().err


PEER_EXITS = """\
import datetime, os, sys
import torch
from torch import distributed
from sft.common.device_errors import is_lost_connection
rank = int(sys.argv[1])
distributed.init_process_group(
    "gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
)
groups = [distributed.new_group() for _ in range(4)]
distributed.barrier()
if rank == 1:
    os._exit(0)
calls = [
    lambda group: distributed.all_reduce(torch.ones(3), group=group),
    lambda group: distributed.all_gather_object([None, None], "x", group=group),
    lambda group: distributed.broadcast(torch.ones(3), src=1, group=group),
    lambda group: distributed.barrier(group=group),
]
for call, group in zip(calls, groups):
    try:
        call(group)
        print("no error", flush=True)
    except Exception as error:
        print(is_lost_connection(error), type(error).__name__, error, flush=True)
os._exit(0)
"""


def test_a_process_learns_that_its_peer_exited(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PEER_EXITS, str(rank), str(tmp_path / "store")],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    found = processes[0].communicate()[0].splitlines()
    processes[1].communicate()
    assert len(found) == 4
    assert all(line.startswith("True") for line in found), found

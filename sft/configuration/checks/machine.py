"""Checks of settings against the machine: answered before processes are started or torch is imported."""

from __future__ import annotations

from collections.abc import Iterator

from sft.common.machine_records import MachineFacts, too_many_processes
from sft.common.text import counted
from sft.configuration.schema import SFTConfig

INDUCTOR = "inductor"
"""The default of `torch_compile_backend`, which runs a compiler of the machine."""
_NO_GPU = "this machine has none that torch can use"


def find_machine_problems(config: SFTConfig, machine: MachineFacts, *, is_dry_run: bool = False) -> Iterator[str]:
    """Yield a line, which begins with a key, for each setting that cannot work on this machine.

    Args:
        config: the whole configuration.
        machine: what is certain about it.
        is_dry_run: the process represents all that are configured, which may run on another machine.
    """
    training, passed = config.training, config.training.passed_through
    if passed.use_cpu or machine.most_gpus == 0:
        yield from _find_what_needs_a_gpu(config, "use_cpu is true" if passed.use_cpu else _NO_GPU)
    elif training.bf16 is True and machine.lacks_bfloat16:
        yield "bf16: true, but this GPU has no bfloat16; write bf16: auto (it will choose fp16)."
    if training.torch_compile is True and (passed.torch_compile_backend or INDUCTOR) == INDUCTOR:
        on_gpu = not (passed.use_cpu or machine.most_gpus == 0)
        missing = machine.missing_to_compile.get(on_gpu)
        if missing is not None:
            yield f"torch_compile: needs {missing}, and found none. Install it, or write torch_compile: auto."
    gpus = _gpus(config, machine)
    if is_dry_run or (machine.is_launched and not gpus) or machine.has_gpu_of_its_own:
        return  # processes that share cores are slow, but they run
    count = machine.processes_here if machine.is_launched else config.distributed.num_gpus or 1
    problem = too_many_processes(count, gpus, machine.num_cores)
    if problem is not None:
        yield f"{f'{count} processes were started' if machine.is_launched else f'num_gpus is {count}'}, but {problem}"


def find_machine_notices(config: SFTConfig, machine: MachineFacts, *, nodes: int = 1) -> Iterator[str]:
    """Yield a line for each setting that has no effect with this number of processes, or is slow on this machine."""
    here = machine.processes_here if machine.is_launched else config.distributed.num_gpus or 1
    world_size = machine.world_size if machine.is_launched else here * nodes
    if world_size == 1:
        if config.fsdp is not None:
            yield "fsdp has no effect: there is one process (num_gpus)."
        if config.distributed.ddp_backend is not None:
            yield "ddp_backend has no effect: there is one process (num_gpus)."
    cores = counted(machine.num_cores, "CPU core")
    if machine.is_launched and _gpus(config, machine) == 0 and here > machine.num_cores:
        yield f"{here} processes share {cores}, so each waits for the others; start fewer."
    workers = config.training.dataloader_num_workers
    if isinstance(workers, int) and workers * here > machine.num_cores:
        of_all = f" x {here} processes" if here > 1 else ""
        yield f"dataloader_num_workers: {workers}{of_all} is more than the {cores} here."


def _gpus(config: SFTConfig, machine: MachineFacts) -> int | None:
    """GPUs that the run can use at most; None if not known."""
    return 0 if config.training.passed_through.use_cpu else machine.most_gpus


def _find_what_needs_a_gpu(config: SFTConfig, why: str) -> Iterator[str]:
    training, passed = config.training, config.training.passed_through
    if training.fp16 is True:
        yield f"fp16: true needs a GPU, and {why}; write fp16: auto, or fp16: false."
    if config.distributed.ddp_backend == "nccl":
        yield f"ddp_backend: nccl needs GPUs, and {why}; write gloo, or omit the key."
    if passed.tf32:
        yield f"tf32: true needs a GPU, and {why}; omit the key."

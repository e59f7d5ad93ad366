"""Settings against the machine: what cannot work is refused, what has no effect or is slow is a notice."""

from __future__ import annotations

import pytest

from sft.common.machine_records import MachineFacts, too_many_processes
from sft.configuration.checks.machine import find_machine_notices, find_machine_problems
from tests.support import messages
from tests.support.configurations import load


def machine(**changed):
    values = {"most_gpus": 0, "num_cores": 4, "missing_to_compile": {False: None, True: None}}
    return MachineFacts(**(values | changed))


def problems(text, *, is_dry_run=False, **changed):
    return list(find_machine_problems(load(text), machine(**changed), is_dry_run=is_dry_run))


NEED_A_GPU = {"fp16: yes\n": "fp16: true", "ddp_backend: nccl\n": "ddp_backend: nccl", "tf32: yes\n": "tf32: true"}


@pytest.mark.parametrize("is_dry_run", [False, True])
@pytest.mark.parametrize("text", NEED_A_GPU)
def test_what_needs_a_gpu_is_refused_where_there_certainly_is_none(text, is_dry_run):
    (problem,) = problems(text, is_dry_run=is_dry_run)
    assert problem.startswith(f"{NEED_A_GPU[text]} needs ")
    assert messages.NO_GPU in problem
    (problem,) = problems(text + "use_cpu: yes\n", most_gpus=8, is_dry_run=is_dry_run)
    assert messages.USE_CPU in problem
    assert problems(text, most_gpus=None) == problems(text, most_gpus=1) == []


def test_all_problems_are_reported_at_once():
    assert len(problems("fp16: yes\nddp_backend: nccl\ntf32: yes\nnum_gpus: 64\n")) == 4


@pytest.mark.parametrize(
    ("gpus", "count", "cores", "is_refused"),
    [
        (0, 4, 4, False),
        (0, 5, 4, True),
        (0, 1, 1, False),
        (2, 2, 1, False),
        (2, 3, 64, True),
        (None, 500, 1, False),
    ],
)
def test_more_processes_than_the_machine_has_room_for(gpus, count, cores, is_refused):
    text = f"num_gpus: {count}\n"
    assert bool(problems(text, most_gpus=gpus, num_cores=cores)) == is_refused
    assert problems(text, most_gpus=gpus, num_cores=cores, is_dry_run=True) == []
    assert bool(too_many_processes(count, gpus, cores)) == is_refused


def test_processes_on_cpu_count_cores_although_there_are_gpus():
    assert problems("num_gpus: 4\nuse_cpu: yes\n", most_gpus=2) == []
    assert problems("num_gpus: 5\nuse_cpu: yes\n", most_gpus=8) != []


def test_processes_that_torchrun_started_share_cores_with_a_notice_but_no_gpu():
    started = {"is_launched": True, "world_size": 6, "processes_here": 6}
    assert problems("", **started) == []
    (notice,) = find_machine_notices(load(), machine(**started))
    assert notice.startswith(messages.CORES_SHARED.format(processes=6, cores=4))
    (problem,) = problems("", most_gpus=2, **started)
    assert problem == "6 processes were started, but this machine has 2 GPUs; start at most 2."
    assert problems("", most_gpus=1, has_gpu_of_its_own=True, **started) == []


@pytest.mark.parametrize(
    ("text", "changed", "is_refused"),
    [
        ("", {"missing_to_compile": {False: "g++", True: None}}, True),
        ("use_cpu: yes\n", {"most_gpus": 1, "missing_to_compile": {False: "g++", True: None}}, True),
        ("", {"most_gpus": 1, "missing_to_compile": {False: "g++", True: None}}, False),
        ("", {"most_gpus": None, "missing_to_compile": {False: None, True: "triton"}}, True),
        ("torch_compile_backend: inductor\n", {"missing_to_compile": {False: "g++"}}, True),
        ("torch_compile_backend: eager\n", {"missing_to_compile": {False: "g++"}}, False),
        ("torch_compile_backend: aot_eager\n", {"missing_to_compile": {False: "g++"}}, False),
        ("", {}, False),
    ],
)
def test_torch_compile_needs_a_compiler(text, changed, is_refused):
    found = problems("torch_compile: yes\npacking: yes\n" + text, **changed)
    assert [problem.partition(" needs ")[0] for problem in found] == ["torch_compile:"] * is_refused


def test_bfloat16_on_a_gpu_without_it():
    (problem,) = problems("bf16: yes\n", most_gpus=1, lacks_bfloat16=True)
    assert problem.startswith(messages.NO_BFLOAT16)
    assert problems("bf16: auto\n", most_gpus=1, lacks_bfloat16=True) == []
    assert problems("bf16: yes\nuse_cpu: yes\n", most_gpus=1, lacks_bfloat16=True) == []


@pytest.mark.parametrize(
    ("text", "nodes", "words"),
    [
        ("fsdp: {}\n", 1, "fsdp has no effect"),
        ("ddp_backend: gloo\n", 1, "ddp_backend has no effect"),
        ("fsdp: {}\nnum_gpus: 2\n", 1, None),
        ("fsdp: {}\n", 2, None),
        ("dataloader_num_workers: 5\n", 1, "dataloader_num_workers: 5 is more"),
        ("dataloader_num_workers: 3\nnum_gpus: 2\n", 1, "dataloader_num_workers: 3 x 2 processes is more"),
        ("dataloader_num_workers: 2\nnum_gpus: 2\n", 1, None),
        ("", 1, None),
    ],
)
def test_notices_of_settings_without_effect(text, nodes, words):
    found = list(find_machine_notices(load(text), machine(), nodes=nodes))
    assert [words in notice for notice in found] == [True] * (words is not None)

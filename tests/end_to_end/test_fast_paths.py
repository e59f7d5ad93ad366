"""Optimizations in complete runs: packs, shared prefixes, the heap, compilation; each compared with a plain run."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from sft.processes import heap
from sft.processes.heap import reuse_freed_memory
from tests.support import forked, messages
from tests.support.paths import REPOSITORY


def losses(run, name="loss"):
    return [event[name] for event in run.metrics if name in event]


def weights(run):
    return load_file(run.output_dir / "model.safetensors")


def assert_same_run(one, other, *, tolerance=2e-4):
    assert losses(one) == pytest.approx(losses(other), abs=tolerance)
    assert losses(one, "eval_loss") == pytest.approx(losses(other, "eval_loss"), abs=tolerance)
    assert losses(one, "eval_sequence_accuracy") == losses(other, "eval_sequence_accuracy")


@pytest.mark.parametrize(
    "changed", [{"padding_free": False}, {"share_prefixes": False}, {"gradient_checkpointing": True}]
)
def test_a_run_is_the_same_without_an_optimization(run_sft, tmp_path, changed):
    common = {"num_train_epochs": 2, "validation_split": 0.2}
    default = run_sft(**common, output_dir=str(tmp_path / "one"))
    other = run_sft(**common, **changed, output_dir=str(tmp_path / "other"))
    assert (default.status, other.status) == (0, 0)
    assert len(losses(default)) == 10
    assert_same_run(default, other)


PACKED = {"packing": True, "max_seq_length": 96, "num_train_epochs": 3, "validation_split": 0.2}


def test_packs_of_a_step_are_the_same_however_it_is_split(run_sft, tmp_path):
    one = run_sft(**PACKED, per_device_train_batch_size=4, output_dir=str(tmp_path / "one"))
    split = run_sft(
        **PACKED, per_device_train_batch_size=1, gradient_accumulation_steps=4, output_dir=str(tmp_path / "split")
    )
    assert (one.status, split.status) == (0, 0)
    assert messages.PACKS.format(length=96) in one.out
    assert one.summary["batch_plan"] == {
        **split.summary["batch_plan"],
        **{"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
    }
    assert_same_run(one, split)


def test_packs_hold_every_row_once_an_epoch(run_sft):
    run = run_sft(**PACKED, per_device_train_batch_size=2)
    data, train = run.summary["data"]["train"], run.summary["train"]
    assert train["examples_per_second"] * train["seconds"] == pytest.approx(3 * data["rows_used"], rel=1e-3)
    assert train["tokens_per_second"] * train["seconds"] == pytest.approx(3 * data["tokens"], rel=1e-3)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"dtype": "bfloat16", "optim": "adamw_bf16_split"},
        {"dtype": "bfloat16", "optim": "adamw_bf16_stochastic"},
    ],
    ids=["usual", "split weights", "stochastic rounding"],
)
def test_packed_run_is_resumed_to_the_bit(run_sft, tmp_path, changed):
    common = {**PACKED, "save_steps": 2, "per_device_train_batch_size": 1, "save_total_limit": "null", **changed}
    whole = run_sft(**common, output_dir=str(tmp_path / "whole"))
    half = tmp_path / "half"
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", half / "checkpoint-4")
    resumed = run_sft(**common, output_dir=str(half), resume_from_checkpoint="auto")
    assert (whole.status, resumed.status) == (0, 0)
    assert losses(whole)[4:] == losses(resumed)
    assert all(torch.equal(weight, weights(resumed)[name]) for name, weight in weights(whole).items())


def test_tokens_per_batch_fills_micro_batches(run_sft):
    run = run_sft(tokens_per_batch=128, num_train_epochs=1)
    assert run.status == 0
    plan = run.summary["batch_plan"]
    assert plan["per_device_train_batch_size"] == 1
    assert plan["steps_per_epoch"] == plan["packs"]["num_packs"] < 24 / 3
    assert plan["packs"]["fill"] > 0.8
    assert messages.PACKS.format(length=128) in run.out


def test_dry_run_shows_the_layout_and_the_packs(run_sft):
    run = run_sft("--dry_run", **PACKED)
    assert run.status == 0
    assert messages.PADDING_FREE in run.out
    assert messages.PACKS.format(length=96) in run.out
    document = json.loads((run.output_dir / "preflight.json").read_text())
    assert document["plan"]["packs"]["capacity"] == 96
    assert document["plan"]["packs"]["fill"] > 0.8


@pytest.fixture(scope="module")
def two_processes(model_folder, question_file, tmp_path_factory):
    """Packed adapters with checkpointing, on one process and on two."""
    folder = tmp_path_factory.mktemp("packed")
    common = [
        f"--model_name_or_path={model_folder('llama')}",
        f"--train_file={question_file}",
        "--validation_split=0.2",
        "--max_seq_length=96",
        "--learning_rate=1e-2",
        "--num_train_epochs=3",
        "--logging_steps=1",
        "--report_to=none",
        "--packing=true",
        "--gradient_checkpointing=true",
        "--lora_config.r=4",
        "--sample_prompts=[]",
        "--use_cpu=true",
        "--bf16=false",
    ]
    found = {}
    for count in (1, 2):
        output = folder / str(count)
        own = [f"--output_dir={output}", f"--per_device_train_batch_size={4 // count}"]
        done = forked.run(folder / f"terminal-{count}", *common, *own, processes=count)
        assert done.status == 0, done.err
        lines = (output / "metrics.jsonl").read_text().splitlines()
        found[count] = [json.loads(line) for line in lines], load_file(output / "adapter_model.safetensors")
    return found


@pytest.mark.parametrize("name", ["loss", "eval_loss", "eval_sequence_accuracy"])
def test_two_processes_train_packed_adapters_as_one_does(two_processes, name):
    one, two = ([event[name] for event in two_processes[count][0] if name in event] for count in (1, 2))
    assert len(one) >= 3
    assert two == pytest.approx(one, abs=2e-4)


def test_two_processes_end_with_the_same_packed_adapters(two_processes):
    one, two = two_processes[1][1], two_processes[2][1]
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=2e-3, atol=2e-3)


# The heap


@pytest.mark.parametrize(
    ("wanted", "device", "asked"),
    [("auto", "cpu", True), ("auto", "cuda:0", False), (True, "cuda:0", True), (False, "cpu", False)],
)
def test_reuse_freed_memory_configures_the_c_library(monkeypatch, wanted, device, asked):
    calls = []
    monkeypatch.setattr(heap, "_mallopt", lambda: lambda option, value: calls.append((option, value)) or 1)
    assert reuse_freed_memory(wanted, device) is asked
    assert calls == ([(-4, 0), (-1, -1), (-2, 2**28)] if asked else [])


def test_reuse_freed_memory_is_logged_if_it_has_no_effect(monkeypatch, caplog):
    monkeypatch.setattr(heap, "_mallopt", lambda: None)
    with caplog.at_level("INFO"):
        assert not reuse_freed_memory("auto", "cpu")
        assert not caplog.records
        assert not reuse_freed_memory(True, "cpu")
    assert messages.NO_EFFECT.format(key="reuse_freed_memory") in caplog.text


@pytest.mark.skipif(
    not (sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")), reason="needs glibc"
)
@pytest.mark.parametrize("wanted", [True, False])
def test_reuse_freed_memory_keeps_freed_memory(wanted):
    """Allocating freed memory again causes page faults only if the heap returned it to the system."""
    code = (
        "import resource, torch; from sft.processes.heap import reuse_freed_memory; "
        f"reuse_freed_memory({wanted}, 'cpu'); faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(12): torch.ones(2**24)\n"
        "before = faults()\n"
        "for _ in range(10): torch.ones(2**24)\n"
        "print(faults() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    pages = 10 * 2**26 // os.sysconf("SC_PAGE_SIZE")
    assert (int(done.stdout) < pages / 20) is wanted


# Compilation


def test_compiled_run_is_the_same_and_compiles_each_layer_once(run_sft, tmp_path):
    """With torch's `eager` backend: all of torch.compile but the code generator."""
    from torch._dynamo.utils import counters

    plain = run_sft(**PACKED, per_device_train_batch_size=2, output_dir=str(tmp_path / "plain"))
    graphs = {}
    for steps in (1, -1):
        torch._dynamo.reset()
        counters.clear()
        compiled = run_sft(
            **PACKED,
            per_device_train_batch_size=2,
            torch_compile=True,
            torch_compile_backend="eager",
            max_steps=steps,
            output_dir=str(tmp_path / f"compiled{steps}"),
        )
        graphs[steps] = counters["stats"]["unique_graphs"]
    assert (plain.status, compiled.status) == (0, 0)
    assert messages.COMPILING.format(count=2) in compiled.out
    assert graphs[-1] == graphs[1] > 0
    assert_same_run(plain, compiled)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_command_compiles_and_trains_the_same(model_folder, question_file, tmp_path):
    """As a command: importing libraries without the compiler must not disable the compiler."""
    found = {}
    for compiles in (False, True):
        arguments = [
            f"--model_name_or_path={model_folder('llama')}",
            f"--train_file={question_file}",
            "--max_seq_length=96",
            "--packing=true",
            "--per_device_train_batch_size=2",
            "--num_train_epochs=2",
            "--logging_steps=1",
            "--report_to=none",
            "--sample_prompts=[]",
            "--bf16=false",
            f"--torch_compile={compiles}",
            f"--output_dir={tmp_path / str(compiles)}",
        ]
        code = (
            "import sys, sft_main; from sft.processes.libraries import pause_garbage_collection as pause; pause(); "
            "status = sft_main.main(sys.argv[1:]); from torch._dynamo.utils import counters; "
            "print('graphs', counters['stats']['unique_graphs']); sys.exit(status)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / str(compiles) / "metrics.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        found[compiles] = [event["loss"] for event in events if "loss" in event], int(done.stdout.split()[-1])
    assert found[False][1] == 0 < found[True][1]
    assert found[True][0] == pytest.approx(found[False][0], abs=2e-4)

"""Two real processes (gloo, on CPU) against one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distributed_utils import start_distributed
from sft.common.errors import ConfigError
from sft.configuration.schema import DistributedConfig
from tests.support import messages
from tests.support.paths import REPOSITORY


@pytest.fixture(scope="module")
def runs(model_folder, question_file, tmp_path_factory):
    """The same run on one process and on two: global batch size 4, 19 training rows, so the last batch is uneven."""
    folder = tmp_path_factory.mktemp("distributed")
    common = {
        "model_name_or_path": model_folder("llama"),
        "train_file": question_file,
        "validation_split": 0.2,
        "max_seq_length": 64,
        "learning_rate": 1e-2,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "report_to": "none",
        "eval_steps": 3,
        "sample_max_new_tokens": 4,
        "use_cpu": True,
        "bf16": False,
    }
    config = folder / "config.yaml"
    config.write_text("".join(f"{key}: {value}\n" for key, value in common.items()))
    one, two = folder / "one", folder / "two"
    single = subprocess.run(
        [
            sys.executable,
            "sft_main.py",
            f"--config_file={config}",
            f"--output_dir={one}",
            "--per_device_train_batch_size=4",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    double = subprocess.run(
        [
            "./launch_training.sh",
            "--config",
            config,
            "--gpus",
            "2",
            f"--output_dir={two}",
            "--per_device_train_batch_size",
            "2",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHON": sys.executable},
    )
    assert single.returncode == 0, single.stderr
    assert double.returncode == 0, double.stderr
    return (one, single), (two, double)


def run_on_processes(count: int, *options: str, data: Any, model: str, folder: Path) -> subprocess.CompletedProcess:
    """The command, which starts its processes itself."""
    settings = {"train_file": data, "report_to": "none", "model_name_or_path": model, "output_dir": folder / "out"}
    arguments = [f"--num_gpus={count}", *options, *(f"--{key}={value}" for key, value in settings.items())]
    return subprocess.run(
        [sys.executable, "sft_main.py", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


def losses(folder: Path, name: str) -> list[float]:
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [event[name] for event in events if name in event]


OPENED = """
import sys, torch
from distributed_utils import start_distributed
from sft.configuration.schema import DistributedConfig
from sft.processes.process_group import close_process_group
assert not torch.distributed.is_initialized()
context = start_distributed(DistributedConfig(), use_cpu=True, timeout_seconds=77)
group = torch.distributed.group.WORLD
assert (context.world_size, torch.distributed.get_backend()) == (2, "gloo")
assert group._get_backend(torch.device("cpu")).options._timeout.total_seconds() == 77
rank = torch.tensor(context.rank)
torch.distributed.all_reduce(rank)
assert rank == 1
assert start_distributed(DistributedConfig(), use_cpu=True) == context
assert torch.distributed.group.WORLD is group, "an open group is kept"
from accelerate import PartialState
assert PartialState(cpu=True).num_processes == 2 and torch.distributed.group.WORLD is group
close_process_group()
assert not torch.distributed.is_initialized()
close_process_group()
open(f"{sys.argv[1]}/{context.rank}", "w").close()
"""


def test_the_process_group_is_open_before_any_library_needs_it(tmp_path):
    (tmp_path / "opened.py").write_text(OPENED)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            "--no-python",
            sys.executable,
            str(tmp_path / "opened.py"),
            str(tmp_path),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "0").exists()
    assert (tmp_path / "1").exists()


@pytest.fixture
def launched(monkeypatch):
    """The environment of the first of two processes; returns the socket that holds its port."""
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        variables = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2}
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        yield taken


@pytest.mark.parametrize(
    ("case", "reason"),
    [("port in use", "address already in use"), ("timeout", "1/2 clients joined"), ("no address", "MASTER_ADDR exp")],
)
def test_processes_that_cannot_connect_end_with_one_line(launched, monkeypatch, case, reason):
    port = launched.getsockname()[1]
    if case == "timeout":
        launched.close()
    elif case == "no address":
        monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(ConfigError, match=messages.NOT_CONNECTED) as raised:
        start_distributed(DistributedConfig(), use_cpu=True, timeout_seconds=1)
    (line,) = raised.value.problems
    assert reason in line
    assert f":{port}, rank 0" in line
    assert not torch.distributed.is_initialized()


TASK = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_GPUS_PER_TASK": "1"}
"""Of `srun --ntasks=4 --gpus-per-task=1`, in the last task."""


@pytest.mark.parametrize(
    ("variables", "devices", "device"),
    [
        (TASK, 1, "cuda:0"),
        ({**TASK, "SLURM_GPUS_PER_TASK": None, "SLURM_TRES_PER_TASK": "cpu:4,gres/gpu:1"}, 1, "cuda:0"),
        ({**TASK, "SLURM_GPUS_PER_TASK": None, "SLURM_GPU_BIND": "quiet,single:1"}, 1, "cuda:0"),
        ({**TASK, "SLURM_GPUS_PER_TASK": "2"}, 2, "cuda:0"),
        (TASK, 4, "cuda:3"),  # the binding is off (--gpu-bind=none)
        ({**TASK, "SLURM_GPUS_PER_TASK": None}, 1, None),  # tasks that share a GPU
        ({**TASK, "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, 1, None),  # torchrun in one task
        ({}, 1, None),
        ({}, 4, "cuda:3"),
    ],
)
def test_a_task_with_a_gpu_of_its_own_uses_that_one(launched, monkeypatch, variables, devices, device):
    launched.close()
    names = ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_GPU_BIND"]
    given = {**dict.fromkeys(names), **variables, "RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4"}
    for name, value in given.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    if device is None:
        with pytest.raises(ConfigError, match=messages.MORE_PROCESSES_THAN_GPUS):
            start_distributed(DistributedConfig(), is_dry_run=True)
        return
    context = start_distributed(DistributedConfig(), is_dry_run=True)
    assert (context.rank, context.device) == (3, device)
    assert chosen == [int(device[-1])]


def test_a_dry_run_opens_no_process_group(launched):
    assert start_distributed(DistributedConfig(), use_cpu=True, is_dry_run=True).world_size == 2
    assert not torch.distributed.is_initialized()


def test_two_processes_log_the_same_losses_as_one(runs):
    (one, _), (two, _) = runs
    assert len(losses(one, "loss")) == 10
    assert losses(two, "loss") == pytest.approx(losses(one, "loss"), abs=1e-4)
    assert losses(two, "token_accuracy") == pytest.approx(losses(one, "token_accuracy"), abs=1e-9)
    assert losses(two, "eval_loss") == pytest.approx(losses(one, "eval_loss"), abs=1e-4)
    assert losses(two, "eval_token_accuracy") == pytest.approx(losses(one, "eval_token_accuracy"), abs=1e-9)


def test_two_processes_end_with_the_same_weights_as_one(runs):
    (one, _), (two, _) = runs
    ours, theirs = load_file(two / "model.safetensors"), load_file(one / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-3)


def test_two_processes_train_like_the_plain_trainer_on_padded_rows(runs, tmp_path):
    """The plain transformers Trainer with our order of rows, on one process."""
    import transformers

    from config_manager import load_config
    from data_handler import prepare_data
    from sft.batching.order import RankBatchSampler

    (one, _), (two, _) = runs
    config = load_config(str(one / "resolved_config.yaml"), [])
    tokenizer = transformers.AutoTokenizer.from_pretrained(one)
    rows = prepare_data(config.data, tokenizer, seed=config.training.seed, sample_prompts=[]).train
    sampler = RankBatchSampler(len(rows), 4, seed=config.training.seed)
    batches = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches += list(sampler)

    def collate(chosen):
        rows_of_batch = [torch.tensor(row["input_ids"], dtype=torch.long) for row in chosen]
        labels = [torch.tensor(row["labels"], dtype=torch.long) for row in chosen]
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad(rows_of_batch, batch_first=True, padding_value=tokenizer.pad_token_id),
            "attention_mask": pad([torch.ones_like(ids) for ids in rows_of_batch], batch_first=True),
            "labels": pad(labels, batch_first=True, padding_value=-100),
        }

    class PlainTrainer(transformers.Trainer):
        def get_train_dataloader(self):
            return torch.utils.data.DataLoader(rows, batch_sampler=batches, collate_fn=collate)

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        learning_rate=1e-2,
        max_steps=len(batches),
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        weight_decay=0.0,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(config.model.model_name_or_path, dtype=torch.float32)
    trainer = PlainTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    plain = [event["loss"] for event in trainer.state.log_history if "loss" in event]
    assert losses(two, "loss") == pytest.approx(plain, abs=1e-4)
    for name, weight in load_file(two / "model.safetensors").items():
        torch.testing.assert_close(weight, model.state_dict()[name], rtol=1e-3, atol=1e-3)


def test_two_processes_write_each_line_once(runs):
    _, (two, done) = runs
    summary = json.loads((two / "run_summary.json").read_text())
    assert summary["batch_plan"]["world_size"] == 2
    assert summary["batch_plan"]["global_batch_size"] == 4
    assert done.stdout.count("step  1/10") == 1
    assert done.stdout.count(messages.SAVED_MODEL.format(kind="model")) == 1
    assert done.stderr == ""
    steps = [json.loads(line)["step"] for line in (two / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_a_bad_row_is_reported_once_and_ends_with_exit_code_2(model_folder, tmp_path):
    data = tmp_path / "train.jsonl"
    data.write_text('{"question": "a", "answer": "b"}\n{"question": "a", "answer": ""}\n')
    done = run_on_processes(2, "--use_cpu", data=data, model=model_folder("llama"), folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("train.jsonl:2") == 1
    assert "Traceback" not in done.stderr


def test_data_that_cannot_be_read_is_reported_whichever_process_finds_it(model_folder, tmp_path):
    data = tmp_path / "train.json"
    data.write_text('[{"question": "a", "answer": "b"}, {"question": ')
    done = run_on_processes(2, "--use_cpu", data=data, model=model_folder("llama"), folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count(messages.INVALID_JSON.format(row="train.json:1")) == 1
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts CPU cores")
def test_more_processes_than_cores_are_refused_before_any_starts(model_folder, question_file, tmp_path):
    done = run_on_processes(5000, data=question_file, model=model_folder("llama"), folder=tmp_path)
    assert done.returncode == 2
    assert messages.TOO_MANY_GPUS.format(count=5000) in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_adapters_on_4bit_weights_train_on_two_processes_as_on_one(question_file, tmp_path):
    pytest.importorskip("bitsandbytes")
    for count in (1, 2):
        done = subprocess.run(
            [
                sys.executable,
                "sft_main.py",
                f"--num_gpus={count}",
                f"--per_device_train_batch_size={4 // count}",
                "--model_name_or_path=examples/tiny-chat",
                f"--train_file={question_file}",
                "--validation_split=0.2",
                "--max_seq_length=64",
                "--learning_rate=1e-2",
                "--max_steps=3",
                "--logging_steps=1",
                "--report_to=none",
                "--sample_prompts=[]",
                "--use_cpu",
                "--bf16=false",
                "--lora_config.r=4",
                "--quantization_config.load_in_4bit",
                f"--output_dir={tmp_path / str(count)}",
            ],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    one, two = tmp_path / "1", tmp_path / "2"
    for name in ("loss", "grad_norm", "eval_loss"):
        assert losses(two, name) == pytest.approx(losses(one, name), rel=1e-5)

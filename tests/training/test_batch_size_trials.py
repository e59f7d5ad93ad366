"""Batch sizes found by trial: what is chosen, that trials have no side effects, and that a resumed run keeps them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import sft_main
from config_manager import load_config
from data_handler import prepare_data
from sft.batching.layout import FlatCollator
from sft.checkpointing.manifest import read_manifest, write_manifest
from sft.common.errors import ConfigError, MemoryShortage
from sft.common.machine_records import MemoryLimits
from sft.common.run_records import DistributedContext, Precision
from sft.training import batch_size_trials
from sft.training.batch_size_trials import documents_of_a_batch, memory_limits, resolve_batches
from sft.training.memory_probe import MemoryProbe
from sft.training.model_preparation import prepare_model
from sft.training.row_layout import RowLayout
from tests.support import messages
from tests.support.small_models import build_model, build_tokenizer

FLOAT32 = Precision(weights="float32", mixed="no")
CPU = DistributedContext()
PLENTY = MemoryLimits(budget_bytes=2**36, process_bytes=2**28)


@pytest.fixture
def resolve(question_file, tmp_path):
    """Resolve the batch plan of some settings; returns it with the model that the trials used."""

    def resolve(*settings, context=CPU, limits=PLENTY, resume=None, architecture="llama"):
        config = load_config(
            None,
            [
                "--model_name_or_path=m",
                f"--train_file={question_file}",
                "--max_seq_length=64",
                "--validation_split=0.3",
                f"--output_dir={tmp_path}",
                "--bf16=false",
                *settings,
            ],
        )
        data = prepare_data(config.data, build_tokenizer(), seed=1)
        model, tokenizer = build_model(architecture), build_tokenizer()
        prepared = prepare_model(config, model, tokenizer, FLOAT32, CPU, is_chat=True)
        plan = resolve_batches(config, data, prepared, context, actual=CPU, limits=limits, resume=resume)
        return plan, model

    return resolve


@pytest.mark.parametrize("world_size", [1, 2])
def test_auto_keeps_the_global_batch_size(resolve, world_size):
    plan, _ = resolve("--global_batch_size=12", context=DistributedContext(world_size=world_size))
    assert plan.global_batch_size == 12
    assert plan.world_size == world_size
    assert plan.per_device_eval_batch_size == 8  # not set to auto


def test_auto_keeps_the_accumulation_where_no_global_batch_size_is_given(resolve, caplog):
    with caplog.at_level("INFO", logger="sft"):
        plan, _ = resolve("--auto_batch_size", "--gradient_accumulation_steps=3")
    assert plan.gradient_accumulation_steps == 3
    assert plan.per_device_train_batch_size in (1, 2, 4, 8)
    assert messages.WRITE_BATCH_SIZE.format(rows=plan.global_batch_size) in caplog.text
    assert messages.FOUND_BY_TRIAL in caplog.text


def test_global_batch_size_with_a_batch_size_decides_the_accumulation(resolve):
    plan, _ = resolve(
        "--global_batch_size=12", "--per_device_train_batch_size=3", context=DistributedContext(world_size=2)
    )
    assert (plan.per_device_train_batch_size, plan.gradient_accumulation_steps) == (3, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["--global_batch_size=10", "--per_device_train_batch_size=4"],
            "global_batch_size: 10 is not a multiple of per_device_train_batch_size 4 x 1 processes; use 8 or 12",
        ),
    ],
)
def test_incompatible_batch_sizes_are_refused(resolve, settings, message):
    with pytest.raises(ConfigError) as raised:
        resolve(*settings)
    assert raised.value.problems[0].startswith(message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["--auto_batch_size", "--per_device_train_batch_size=4"],
            "per_device_train_batch_size: is set by auto_batch_size",
        ),
        (
            ["--global_batch_size=8", "--gradient_accumulation_steps=2"],
            "gradient_accumulation_steps: is set by global_batch_size",
        ),
        (["--per_device_train_batch_size=auto", "--tokens_per_batch=128"], "tokens_per_batch: conflicts with"),
        (["--target_memory_utilization=1.5"], "target_memory_utilization: 1.5 is out of range"),
        (["--memory_budget_gib=0"], "memory_budget_gib: 0 is out of range"),
        (["--per_device_train_batch_size=many"], "per_device_train_batch_size: expected an integer >= 1 or auto"),
    ],
)
def test_contradictions_are_reported_before_anything_is_loaded(question_file, settings, message):
    with pytest.raises(ConfigError) as raised:
        load_config(None, ["--model_name_or_path=m", f"--train_file={question_file}", "--max_seq_length=64", *settings])
    assert len(raised.value.problems) == 1
    assert f"command line: {message}" in raised.value.problems[0]


def test_packs_are_tried_with_the_most_rows_too(resolve, monkeypatch):
    """As on a GPU, where the kernel for packed rows takes memory for each of them."""
    tried, train = [], MemoryProbe.train

    def record(probe, rows):
        trial = train(probe, rows)
        tried.append((len(rows), sum(len(row["input_ids"]) for row in rows)))
        # One byte more for each row beside the longest.
        return replace(trial, peak_bytes=2**28 + len(rows))

    monkeypatch.setattr(RowLayout, "uses_kernel", lambda layout, device: True)
    monkeypatch.setattr(MemoryProbe, "train", record)
    fits = []
    monkeypatch.setattr(batch_size_trials, "_log_choice", lambda what, fit, *_: fits.append(fit))
    plan, _ = resolve("--packing=true", "--per_device_train_batch_size=auto", "--max_steps=2")
    sizes = sorted((len(pack) for pack in plan.packs.deal(seed=0, epoch=0)), reverse=True)
    assert sizes[0] > 1
    assert tried[:2] == [(1, 64), (sizes[0], 64)]
    assert fits[0].trials[0].peak_bytes == 2**28 + sizes[0]
    layout = RowLayout(
        collator=FlatCollator(0), evaluation_collator=FlatCollator(0), attention=None, output=None, findings=None
    )
    assert documents_of_a_batch(layout, plan.packs, 2, "cuda:0") == sum(sizes[:2])
    assert documents_of_a_batch(layout, None, 2, "cuda:0") == 2
    fixed = replace(layout, collator=FlatCollator(0, fixed_tokens=64))
    assert documents_of_a_batch(fixed, None, 20, "cuda:0") == 31


def test_a_row_that_does_not_fit_is_refused(resolve):
    limits = MemoryLimits(budget_bytes=2**20, process_bytes=2**19)
    with pytest.raises(MemoryShortage, match=messages.ROW_DOES_NOT_FIT.format(tokens=".*", size="1 MiB")):
        resolve("--global_batch_size=4", limits=limits)


def test_memory_limits_come_from_settings_or_free_memory(monkeypatch):
    config = load_config(None, ["--model_name_or_path=m", "--train_file=tests/support/small_models.py"]).training
    monkeypatch.setattr(
        "sft.training.batch_size_trials.available_memory_bytes", lambda device, processes: 1000 // processes
    )
    assert memory_limits(config, CPU).budget_bytes == 900
    assert memory_limits(config, DistributedContext(world_size=2)).budget_bytes == 450
    from dataclasses import replace

    assert memory_limits(replace(config, memory_budget_gib=2.0), CPU).budget_bytes == 2**31
    assert memory_limits(replace(config, target_memory_utilization=0.5), CPU).budget_bytes == 500


def run(tmp_path, model_folder, question_file, *settings) -> tuple[list[float], dict]:
    output = tmp_path / "out"
    status = sft_main.main(
        [
            f"--model_name_or_path={model_folder('llama')}",
            f"--train_file={question_file}",
            "--max_seq_length=64",
            "--report_to=none",
            "--logging_steps=1",
            "--learning_rate=1e-2",
            "--use_cpu",
            "--bf16=false",
            "--sample_prompts=[]",
            "--validation_split=0.3",
            f"--output_dir={output}",
            *settings,
        ],
    )
    assert status == 0
    lines = (output / "metrics.jsonl").read_text().splitlines()
    summary = json.loads((output / "run_summary.json").read_text())
    return [event["loss"] for event in map(json.loads, lines) if "loss" in event], summary


def test_auto_gives_the_same_losses_as_a_given_batch_size(tmp_path, model_folder, question_file):
    given, _ = run(
        tmp_path, model_folder, question_file, "--max_steps=4", "--per_device_train_batch_size=8", "--save_strategy=no"
    )
    auto, summary = run(
        tmp_path,
        model_folder,
        question_file,
        "--max_steps=4",
        "--global_batch_size=8",
        "--auto_batch_size",
        "--save_strategy=no",
    )
    assert auto == pytest.approx(given, rel=1e-5)
    assert summary["batch_plan"]["global_batch_size"] == 8
    assert summary["memory_shortages"] == {"training": 0, "evaluation": 0}


def test_a_resumed_run_keeps_the_plan_without_a_trial(tmp_path, model_folder, question_file, capsys):
    settings = ["--global_batch_size=8", "--auto_batch_size", "--save_steps=2"]
    _, before = run(tmp_path, model_folder, question_file, "--max_steps=2", *settings)
    checkpoint = tmp_path / "out/checkpoint-2"
    # Another size than any trial would choose now, to see that it is kept.
    manifest = read_manifest(checkpoint)
    plan = manifest["batch_plan"]
    size = 4 if plan["per_device_train_batch_size"] != 4 else 2
    plan |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
    write_manifest(checkpoint, manifest)
    capsys.readouterr()
    _, after = run(tmp_path, model_folder, question_file, "--max_steps=4", "--resume_from_checkpoint=auto", *settings)
    assert after["batch_plan"]["per_device_train_batch_size"] == size
    assert after["batch_plan"]["global_batch_size"] == before["batch_plan"]["global_batch_size"] == 8
    output = capsys.readouterr().out
    assert messages.RESUMED_BATCH_SIZES in output
    assert messages.FOUND_BY_TRIAL not in output


def test_metrics_contain_memory_and_utilization(tmp_path, model_folder, question_file):
    run(tmp_path, model_folder, question_file, "--max_steps=1", "--save_strategy=no")
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    (event,) = [line for line in lines if "loss" in line]
    assert 0 < event["memory_allocated_bytes"] <= event["peak_memory_bytes"]
    assert 0 < event["memory_share"] < 1
    assert 0 <= event["cpu_utilization"] <= 1

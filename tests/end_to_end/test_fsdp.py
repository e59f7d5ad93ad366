"""Weights sharded over two real processes (gloo, on CPU), compared with one process that holds all of them."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sft.checkpointing.manifest import find_damage, read_manifest
from tests.support import messages
from tests.support.checkpoints import as_if_killed, evaluated, trained
from tests.support.in_process import run_command
from tests.support.runs_in_turn import Turn, run_in_turn
from tests.support.small_models import build_model

KINDS = {
    "all": {"model": "llama", "settings": []},
    "tied": {"model": "qwen2", "settings": ["--gradient_checkpointing=true"]},
    "adapters": {"model": "qwen2", "settings": ["--lora_config.r=4"]},
}
"""All weights; a head tied to the embedding; adapters on frozen weights. Settings of both one and two processes."""
SHARDED = {
    "all": ["--fsdp={}", "--per_device_train_batch_size=2"],
    "tied": ["--fsdp.checkpoints=sharded", "--per_device_train_batch_size=1", "--gradient_accumulation_steps=2"],
    "adapters": ["--fsdp={}", "--fsdp.reshard_after_forward=false", "--per_device_train_batch_size=2"],
}


@pytest.fixture(scope="module")
def runs(model_folder, question_file, tmp_path_factory):
    """Each kind on one process and on two, resumed, and with faults. 19 rows, 4 per step: the last step is uneven."""
    folder = tmp_path_factory.mktemp("fsdp")
    common = [
        f"--train_file={question_file}",
        "--validation_split=0.2",
        "--max_seq_length=64",
        "--learning_rate=1e-2",
        "--num_train_epochs=1",
        "--logging_steps=1",
        "--report_to=none",
        "--eval_steps=3",
        "--save_steps=2",
        "--save_total_limit=null",
        "--sample_max_new_tokens=4",
        "--use_cpu",
        "--bf16=false",
    ]
    resume = "--resume_from_checkpoint=auto"

    # The weights of one model are stored in 16 bits and trained in 32: they are cast when they are sharded.
    narrow = shutil.copytree(model_folder("llama"), folder / "narrow")
    build_model("llama").to(torch.bfloat16).save_pretrained(narrow)

    def arguments(kind: str, name: str, *more: str) -> list[str]:
        model = f"--model_name_or_path={narrow if kind == 'all' else model_folder(KINDS[kind]['model'])}"
        return [*common, model, f"--output_dir={folder / name}", *KINDS[kind]["settings"], *more]

    def two(kind: str, name: str, *more: str, **faults: Any) -> Turn:
        return Turn(arguments=arguments(kind, name, *SHARDED[kind], *more), **faults)

    def one(kind: str, name: str, *more: str) -> int:
        return run_command(arguments(kind, name, "--per_device_train_batch_size=4", *more))

    assert [one(kind, f"{kind}-one") for kind in KINDS] == [0, 0, 0]
    statuses, output = run_in_turn(
        [
            *(two(kind, f"{kind}-two") for kind in KINDS),
            *(two(kind, f"{kind}-again", resume, killed=(folder / f"{kind}-two", 2)) for kind in KINDS),
            two("all", "bad-step", bad_micro_batch=2),
            two("tied", "stopped", stop_after=2),
            two("tied", "stopped", resume),
        ],
        folder,
    )
    assert statuses == [0] * 7 + [143, 0], output
    for kind in ("all", "tied"):  # from a full checkpoint, and from a sharded one
        as_if_killed(folder / f"{kind}-two", folder / f"{kind}-alone", 2)
        assert one(kind, f"{kind}-alone", resume) == 0
    yield folder, output
    logging.getLogger("sft").handlers.clear()


def steps(folder: Path) -> list[dict[str, float]]:
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [event for event in events if "loss" in event]


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*model.safetensors")
    return load_file(path)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_gradients_and_evaluations_equal_those_of_one_process(runs, kind):
    folder, _ = runs
    one, two = steps(folder / f"{kind}-one"), steps(folder / f"{kind}-two")
    assert len(one) == len(two) == 5
    for name in ("loss", "grad_norm", "learning_rate"):
        assert [step[name] for step in two] == pytest.approx([step[name] for step in one], rel=1e-5)
    expected = evaluated(folder / f"{kind}-one")
    assert len(expected) == 3
    assert evaluated(folder / f"{kind}-two") == [(step, pytest.approx(loss, rel=1e-5)) for step, loss in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_the_final_model_is_unsharded_and_equals_that_of_one_process(runs, kind):
    import transformers

    folder, _ = runs
    one, two = final_weights(folder / f"{kind}-one"), final_weights(folder / f"{kind}-two")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)
    names = {path.name for path in (folder / f"{kind}-two").iterdir()}
    assert names == {path.name for path in (folder / f"{kind}-one").iterdir()}
    if kind == "adapters":
        return
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / f"{kind}-two")
    assert type(model).__name__ == json.loads((folder / f"{kind}-one/config.json").read_text())["architectures"][0]
    assert json.loads((folder / f"{kind}-two/config.json").read_text())["architectures"] == [type(model).__name__]
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in two.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(runs, kind):
    folder, _ = runs
    uninterrupted, resumed = folder / f"{kind}-two", folder / f"{kind}-again"
    assert trained(resumed) == trained(uninterrupted)
    assert evaluated(resumed) == evaluated(uninterrupted)
    expected, found = final_weights(uninterrupted), final_weights(resumed)
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_checkpoints_are_full_or_sharded_and_have_a_manifest(runs):
    folder, _ = runs
    full, sharded = folder / "all-two/checkpoint-4", folder / "tied-two/checkpoint-4"
    assert find_damage(full) == find_damage(sharded) == []
    ordinary = read_manifest(folder / "all-one/checkpoint-4")["files"].keys() - {"rng_state.pth"}
    assert read_manifest(full)["files"].keys() - {"rng_state_0.pth", "rng_state_1.pth"} == ordinary
    names = read_manifest(sharded)["files"].keys()
    assert {"weights-1-of-2.safetensors", "weights-2-of-2.safetensors", "optimizer-2-of-2.pt"} <= names
    assert not [name for name in names if name.startswith("model")]
    own = load_file(sharded / "weights-2-of-2.safetensors")
    first = load_file(sharded / "weights-1-of-2.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    together = torch.cat([first[name], own[name]])
    assert first[name].shape == own[name].shape == (32, 32)
    assert not torch.equal(together, build_model("qwen2").state_dict()[name])


def test_a_sharded_run_is_resumed_without_sharding(runs):
    folder, _ = runs
    for kind in ("all", "tied"):
        expected, found = steps(folder / f"{kind}-two"), steps(folder / f"{kind}-alone")
        assert [step["step"] for step in found] == [1, 2, 3, 4, 5]
        for name in ("loss", "grad_norm"):
            assert [step[name] for step in found] == pytest.approx([step[name] for step in expected], rel=1e-5)


def test_a_bad_step_of_one_process_is_skipped_on_all_and_counted(runs):
    folder, output = runs
    found, expected = steps(folder / "bad-step"), steps(folder / "all-two")
    summary = json.loads((folder / "bad-step/run_summary.json").read_text())
    assert summary["bad_steps"] == 1
    assert summary["environment"]["data_parallel"] == "fsdp2"
    assert output.count(messages.BAD_STEP.format(step=2)) == 1
    assert "train.jsonl:" in output.partition(messages.BAD_STEP.format(step=2))[2].partition("\n")[0]
    assert found[0]["loss"] == expected[0]["loss"]
    assert found[1]["loss"] == 0.0
    # The third step starts from the weights of the first one, so its loss differs.
    assert all(weight.isfinite().all() for weight in final_weights(folder / "bad-step").values())
    assert found[2]["loss"] != expected[2]["loss"]


def test_a_signal_to_one_process_saves_and_the_resumed_run_equals_an_uninterrupted_one(runs):
    folder, output = runs
    assert messages.RESUME_WITH in output
    assert trained(folder / "stopped") == trained(folder / "tied-two")
    expected, found = final_weights(folder / "tied-two"), final_weights(folder / "stopped")
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("kind", KINDS)
def test_sample_answers_equal_those_of_one_process(runs, kind):
    folder, _ = runs
    one, two = (
        json.loads((folder / f"{kind}-{number}/run_summary.json").read_text())["samples"] for number in ("one", "two")
    )
    assert len(one) == 3
    assert two == one


def test_the_log_reports_sharding_and_padding_free_rows(runs):
    _, output = runs
    assert output.count(messages.SHARDED.format(count=2, layers=2)) == 9
    assert output.count(messages.PADDING_FREE) == 9

"""Sharded weights with settings that change a step or a run: packs, streams, bfloat16, dropout, the best checkpoint.

On two and four real processes (gloo, on CPU), compared with one process that holds all weights.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.checkpoints import evaluated, trained
from tests.support.in_process import run_command
from tests.support.runs_in_turn import Turn, run_in_turn

pytestmark = pytest.mark.slow

KINDS = {
    "packed": ("llama", ["--packing=true", "--gradient_accumulation_steps=1"], 2),
    "stream": ("llama", ["--streaming=true", "--max_steps=5"], 4),
    "bf16": ("llama", ["--bf16=true", "--learning_rate=1e-3"], 4),
    "best": ("llama", ["--load_best_model_at_end=true", "--greater_is_better=true"], 4),
    "dropout": ("gpt2", ["--max_seq_length=96"], 4),
}
"""Model, settings, and rows (or packs) per step.

Here the best checkpoint is that with the highest loss, so that it is not the last one.
"""
TOLERANCES = {"packed": 1e-5, "stream": 1e-5, "bf16": 0.02, "best": 1e-5}
"""Relative tolerance of metrics to those of one process. Dropout is missing: each process draws its own numbers."""


@pytest.fixture(scope="module")
def runs(model_folder, question_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp-settings")
    common = [
        f"--train_file={question_file}",
        f"--validation_file={question_file}",
        "--max_seq_length=64",
        "--learning_rate=1e-2",
        "--max_steps=5",
        "--logging_steps=1",
        "--report_to=none",
        "--eval_steps=2",
        "--save_steps=2",
        "--save_total_limit=null",
        "--sample_prompts=[]",
        "--use_cpu",
        "--bf16=false",
        "--max_leakage_share=1",
    ]

    def arguments(kind: str, processes: int, name: str, *more: str) -> list[str]:
        architecture, settings, rows = KINDS[kind]
        sharded = ["--fsdp={}"] if processes > 1 else []
        return [
            *common,
            f"--model_name_or_path={model_folder(architecture)}",
            f"--output_dir={folder / name}",
            f"--per_device_train_batch_size={rows // processes}",
            *sharded,
            *settings,
            *more,
        ]

    for kind in TOLERANCES:
        assert run_command(arguments(kind, 1, f"{kind}-1")) == 0
    two = [Turn(arguments=arguments(kind, 2, f"{kind}-2")) for kind in KINDS]
    again = [
        Turn(
            arguments=arguments(kind, 2, f"{kind}-again", "--resume_from_checkpoint=auto"),
            killed=(folder / f"{kind}-2", 2),
        )
        for kind in KINDS
    ]
    statuses, output = run_in_turn([*two, *again], folder)
    assert statuses == [0] * 10, output
    four = [Turn(arguments=arguments(kind, 4, f"{kind}-4")) for kind in ("best", "stream")]
    statuses, output = run_in_turn(four, folder, processes=4)
    assert statuses == [0, 0], output
    yield folder
    logging.getLogger("sft").handlers.clear()


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(("kind", "processes"), [*((kind, 2) for kind in TOLERANCES), ("best", 4), ("stream", 4)])
def test_metrics_equal_those_of_one_process(runs, kind, processes):
    one, several = runs / f"{kind}-1", runs / f"{kind}-{processes}"
    assert [step for step, *_ in trained(several)] == [1, 2, 3, 4, 5]
    for found, expected in zip(trained(several), trained(one), strict=True):
        assert found == pytest.approx(expected, rel=TOLERANCES[kind])
    found, expected = evaluated(several), evaluated(one)
    assert found == [(step, pytest.approx(loss, rel=TOLERANCES[kind])) for step, loss in expected]
    assert len(found) >= 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(runs, kind):
    uninterrupted, resumed = runs / f"{kind}-2", runs / f"{kind}-again"
    assert trained(resumed) == trained(uninterrupted)
    assert evaluated(resumed) == evaluated(uninterrupted)
    expected, found = final_weights(uninterrupted), final_weights(resumed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("processes", [2, 4])
def test_the_best_weights_are_loaded_at_the_end_and_saved(runs, processes):
    folder = runs / f"best-{processes}"
    losses = dict(evaluated(folder))
    best = max(losses, key=lambda step: step and losses[step])
    assert best == 2
    summary = json.loads((folder / "run_summary.json").read_text())
    assert summary["eval_after"]["loss"] == pytest.approx(losses[best], rel=1e-6)
    of_checkpoint = load_file(folder / f"checkpoint-{best}/model.safetensors")
    assert all(torch.equal(of_checkpoint[name], weight) for name, weight in final_weights(folder).items())

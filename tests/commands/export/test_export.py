"""The export command: data types, user errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import export_model
from tests.support import messages
from tests.support.paths import REPOSITORY
from tests.support.saved_models import save_adapters
from tests.support.small_models import build_model, build_tokenizer


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_16_bit_model_is_written_compared_and_answers_in_a_pipeline(export, model_folder, tmp_path, dtype):
    from transformers import pipeline

    adapters = save_adapters(model_folder("llama"), tmp_path / "adapters")
    status, out, err, output = export(adapters, "--merge", "--dtype", dtype)
    assert (status, err) == (0, "")
    assert messages.IDENTICAL.format(dtype=dtype) in out
    assert load_dtype(output) == getattr(torch, dtype)
    assert (output / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask()
    generate = pipeline("text-generation", model=str(output), device="cpu")
    chat = [{"role": "user", "content": "Say hello."}]
    said = generate(chat, max_new_tokens=5, do_sample=False)[0]["generated_text"]
    assert said[-1]["role"] == "assistant"
    assert said[-1]["content"]


def load_dtype(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).dtype


def umask():
    current = os.umask(0)
    os.umask(current)
    return current


def test_a_full_model_is_written_in_another_type(export, model_folder):
    status, out, err, output = export(model_folder("gpt2"), "--merge", "--dtype", "float16")
    assert (status, err) == (0, "")
    assert messages.MERGE_UNUSED in out
    assert load_dtype(output) == torch.float16
    assert "There is no chat template" in (output / "README.md").read_text()


def test_the_type_is_by_default_that_of_the_base(export, tmp_path):
    base = tmp_path / "base"
    build_model("llama").to(torch.bfloat16).save_pretrained(base)
    build_tokenizer().save_pretrained(base)
    adapters = save_adapters(str(base), tmp_path / "adapters")
    assert load_dtype(export(adapters, "--merge")[3]) == torch.bfloat16


def run_record_of(folder: Path, *, settings: str, **changed) -> None:
    """Write the records of a run into its model's folder."""
    source = {
        "name": "/home/me/rows|x.jsonl",
        "format_name": "messages",
        "rows_read": 1200,
        "rows_used": 1199,
        "rows_dropped": {"empty_answer": 1},
    }
    summary = {
        "eval_before": {"loss": 7.0, "perplexity": 1096.6, "token_accuracy": 0.25, "sequence_accuracy": 0.0},
        "eval_after": {"loss": 0.5, "perplexity": 1.65, "token_accuracy": 0.9, "sequence_accuracy": None},
        "train": {"steps": 75},
        "data": {"train": {"sources": [source], "tokens": 5000, "supervised_tokens": 2000}, "validation": None},
        "batch_plan": {"global_batch_size": 16},
        "samples": [{"prompt": "Hi\x1b[31m\n<b>", "before": "a | b", "after": "Hello."}],
        "versions": {"torch": "2.11.0"},
    }
    (folder / "run_summary.json").write_text(json.dumps(summary | changed))
    (folder / "resolved_config.yaml").write_text(settings)


def test_the_card_shows_what_the_run_recorded(export, model_folder, tmp_path):
    run = tmp_path / "home" / "run"
    shutil.copytree(model_folder("llama"), run)
    run_record_of(run, settings="model_name_or_path: owner/base\nlearning_rate: 0.002\npacking: false\n")
    card = (export(str(run))[3] / "README.md").read_text()
    assert "license: unknown  # fill in" in card
    assert "base_model: owner/base" in card
    assert "Fine-tuned from owner/base by supervised fine-tuning: all weights, 75 steps." in card
    assert "| train | rows\\|x.jsonl | messages | 1,200 | 1,199 | 1 |" in card
    assert "| validation loss | 7.0000 | 0.5000 |" in card
    assert "| sequence accuracy | 0.0% | - |" in card
    assert "```text\nprompt  Hi\\x1b[31m\n<b>\nbefore  a | b\nafter   Hello.\n```" in card
    assert "| `learning_rate` | 0.002 |" in card
    assert "`packing`" not in card
    assert "<|im_start|>assistant\nANSWER<|im_end|>" in card
    assert str(tmp_path) not in card
    import yaml

    assert yaml.safe_load(card.split("---")[1])["license"] == "unknown"


def test_the_card_of_a_checkpoint_omits_the_evaluation_of_the_run(export, model_folder, tmp_path):
    shutil.copytree(model_folder("llama"), tmp_path / "run" / "checkpoint-5")
    (tmp_path / "run" / "run_summary.json").write_text(json.dumps({"eval_after": {"loss": 0.5}, "data": {}}))
    card = (export(str(tmp_path / "run" / "checkpoint-5"))[3] / "README.md").read_text()
    assert "## Data" in card
    assert "## Evaluation" not in card
    assert "model-index" not in card


MISTAKES = {
    "adapters without merge": (["ADAPTERS"], "Add --merge to export the full model"),
    "a folder that is there": (
        ["MODEL", "--output", str(REPOSITORY / "tests")],
        "already exists. Name a new folder.",
    ),
    "below a file": (["MODEL", "--output", f"{__file__}/out"], "is not a folder that this user can write to"),
    "no converter": (
        ["MODEL", "--gguf_converter", "./nothing"],
        "no file nothing. Name llama.cpp's convert_hf_to_gguf.py",
    ),
    "private alone": (["MODEL", "--private"], "--private requires --push_to_hub"),
    "no repository": (["MODEL", "--push_to_hub", "a/b/c"], "'a/b/c' is not a valid repository name"),
    "no such type": (["MODEL", "--dtype", "int8"], "invalid choice: 'int8'"),
    "no folder": (["./nothing"], "./nothing: no such folder."),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_main_reports_a_mistake_in_one_line_with_exit_code_2(capfd, model_folder, tmp_path, mistake):
    arguments, expected = MISTAKES[mistake]
    if "ADAPTERS" in arguments:
        arguments = [save_adapters(model_folder("llama"), tmp_path / "adapters")]
    arguments = [model_folder("llama") if argument == "MODEL" else argument for argument in arguments]
    status = export_model.main([*arguments, *([] if "--output" in arguments else ["--output", str(tmp_path / "out")])])
    captured = capfd.readouterr()
    assert (status, captured.out) == (2, "")
    assert expected in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_help_does_not_import_torch():
    code = (
        "import sys, export_model\ntry: export_model.main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "--gguf_converter" in done.stdout

"""Exporting: merged equals unmerged for every kind of adapters, what is not is refused, and the result is used."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

import export_model
from sft.commands.export import full_model
from sft.commands.export.output_folder import temporary_folder
from sft.commands.export.sample_texts import tokenize_samples
from sft.commands.export.verification import (
    UNIT_ROUNDOFF,
    compare_logits,
    compute_logits,
    max_merging_difference,
    max_rounding_difference,
)
from sft.common.errors import ModelError
from sft.reporting.run_record import RunRecord
from tests.support.parts import ARCHITECTURES, REPOSITORY, build_model, build_tokenizer
from tests.support.saved_models import save_adapters

IDS = [[1, 40, 77, 300, 12, 5, 260, 8, 99, 31]]


@pytest.fixture
def export(capfd, tmp_path):
    """Exports in this process; gives the exit status, the log, the errors, and the new folder."""

    def run(model: str, *options: str, name: str = "exported") -> tuple[int, str, str, Path]:
        output = tmp_path / "out" / name
        status = export_model.main([model, "--output", str(output), *options])
        captured = capfd.readouterr()
        assert not list(tmp_path.glob("out/.*")), "something was left aside"
        return status, captured.out, captured.err, output

    yield run
    logging.getLogger("sft").handlers.clear()


def load(folder, adapters=None):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return PeftModel.from_pretrained(model, adapters).eval() if adapters else model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_adapters_are_the_unmerged_ones_to_float32s_rounding(export, model_folder, tmp_path, architecture):
    base = model_folder(architecture)
    adapters = save_adapters(base, tmp_path / "adapters")
    status, out, err, output = export(adapters, "--merge", "--dtype", "float32")
    assert (status, err) == (0, "")
    assert "merged in float32 into" in out
    found, expected = compute_logits(load(output), IDS), compute_logits(load(base, adapters), IDS)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert (compute_logits(load(base), IDS) - expected).abs().max() > 0.01, "the adapters do something"
    assert not (output / "adapter_config.json").exists()


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("qwen2", {"target_modules": ["q_proj", "lm_head"]}),
        ("qwen2", {"target_modules": ["q_proj", "embed_tokens"]}),
        ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
        ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}),
        ("gpt2", {"target_modules": ["c_attn", "wte"]}),
        ("llama", {"use_dora": True}),
        ("llama", {"use_rslora": True, "lora_alpha": 3}),
    ],
)
def test_heads_and_embeddings_come_out_as_trained(export, model_folder, tmp_path, architecture, settings):
    """A tied head and its embedding are parted where adapters make them differ, and only there."""
    base = model_folder(architecture)
    adapters = save_adapters(base, tmp_path / "adapters", **settings)
    status, _, err, output = export(adapters, "--merge", "--dtype", "float32")
    assert (status, err) == (0, "")
    whole = load(output)
    torch.testing.assert_close(compute_logits(whole, IDS), compute_logits(load(base, adapters), IDS), rtol=0, atol=2e-5)
    touches = {"lm_head", "embed_tokens", "wte"} & {
        *settings.get("target_modules", []),
        *settings.get("modules_to_save", []),
    }
    assert whole.config.tie_word_embeddings == (architecture != "llama" and not touches)


def test_a_tied_head_stays_tied_where_adapters_leave_it_alone(export, model_folder, tmp_path):
    adapters = save_adapters(model_folder("qwen2"), tmp_path / "adapters")
    _, _, _, output = export(adapters, "--merge")
    from safetensors import safe_open

    with safe_open(output / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118  (it is no mapping)


def test_added_tokens_keep_their_embeddings(export, model_folder, tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([f"<new{i}>" for i in range(12)])
    adapters = save_adapters(
        model_folder("llama"), tmp_path / "adapters", tokenizer=tokenizer, modules_to_save=["embed_tokens", "lm_head"],
        target_modules=["q_proj"],
    )  # fmt: skip
    status, _, err, output = export(adapters, "--merge", "--dtype", "float32")
    assert (status, err) == (0, "")
    whole = load(output)
    assert whole.get_input_embeddings().num_embeddings == len(tokenizer) == whole.config.vocab_size
    from safetensors.torch import load_file

    trained = load_file(Path(adapters) / "adapter_model.safetensors")["base_model.model.model.embed_tokens.weight"]
    assert torch.equal(whole.get_input_embeddings().weight, trained)


def quantized_run(base: str, folder: Path, **quantization) -> str:
    """Adapters with the record of a run on a quantized base."""
    adapters = save_adapters(base, folder)
    record = {"model_name_or_path": base, "lora_config": {"r": 4}, "quantization_config": quantization}
    (folder / "resolved_config.yaml").write_text(json.dumps(record))
    return adapters


@pytest.mark.parametrize(
    ("architecture", "quantization"),
    [
        ("llama", {"load_in_4bit": True}),
        ("gpt2", {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}),
        ("qwen2", {"load_in_8bit": True}),
    ],
)
def test_adapters_of_a_quantized_base_go_into_the_dequantized_one(
    export, model_folder, tmp_path, architecture, quantization
):
    pytest.importorskip("bitsandbytes")
    base = model_folder(architecture)
    adapters = quantized_run(base, tmp_path / "run", **quantization)
    status, out, err, output = export(adapters, "--merge", "--dtype", "float32")
    assert (status, err) == (0, "")
    assert f"de-quantized from {4 if 'load_in_4bit' in quantization else 8} bits as the adapters were trained" in out
    found = load(output)
    assert getattr(found.config, "quantization_config", None) is None
    status, _, err, plain = export(adapters, "--merge", "--dtype", "float32", "--no-load_in_4bit", name="plain")
    if "load_in_4bit" in quantization:  # the same adapters in the base as it is saved: another model
        assert (status, err) == (0, "")
        assert compare_logits(compute_logits(found, IDS), compute_logits(load(plain), IDS)).relative_rms > 0.01


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_16_bit_model_is_written_compared_and_answers_in_a_pipeline(export, model_folder, tmp_path, dtype):
    from transformers import pipeline

    adapters = save_adapters(model_folder("llama"), tmp_path / "adapters")
    status, out, err, output = export(adapters, "--merge", "--dtype", dtype)
    assert (status, err) == (0, "")
    assert f"Written in {dtype} and loaded again: all weights are identical" in out
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


def test_a_whole_model_is_written_in_another_type(export, model_folder):
    status, out, err, output = export(model_folder("gpt2"), "--merge", "--dtype", "float16")
    assert (status, err) == (0, "")
    assert "--merge has no effect" in out
    assert load_dtype(output) == torch.float16
    assert "There is no chat template" in (output / "README.md").read_text()


def test_the_type_is_by_default_that_of_the_base(export, tmp_path):
    base = tmp_path / "base"
    build_model("llama").to(torch.bfloat16).save_pretrained(base)
    build_tokenizer().save_pretrained(base)
    adapters = save_adapters(str(base), tmp_path / "adapters")
    assert load_dtype(export(adapters, "--merge")[3]) == torch.bfloat16


def test_what_rounding_explains_is_near_what_rounding_does():
    """The bound holds for every architecture, and is no more than some tens of times too wide."""
    for architecture in ARCHITECTURES:
        expected = compute_logits(build_model(architecture).eval(), IDS)
        for dtype in ("bfloat16", "float16"):
            model = build_model(architecture).eval()
            for parameter in model.parameters():
                parameter.data = parameter.data.to(getattr(torch, dtype)).float()
            share = compare_logits(compute_logits(model, IDS), expected).relative_rms
            assert UNIT_ROUNDOFF[dtype] / 20 < share < max_rounding_difference(model, dtype) < 60 * share


def flip_a_weight(folder: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    path = Path(folder, "model.safetensors")
    weights = load_file(path)
    weights[name].view(-1)[0] += 1
    save_file(weights, path, metadata={"format": "pt"})


def test_a_file_that_is_not_what_was_written_is_refused(export, model_folder, tmp_path, monkeypatch):
    """A disk that loses one number, in the row of a token that no text holds."""
    save = full_model.save_final_model

    def save_on_a_bad_disk(model, tokenizer, folder):
        save(model, tokenizer, folder)
        flip_a_weight(Path(folder), "model.embed_tokens.weight")

    monkeypatch.setattr(full_model, "save_final_model", save_on_a_bad_disk)
    status, _, err, output = export(save_adapters(model_folder("llama"), tmp_path / "adapters"), "--merge")
    assert status == 2
    assert "1 of 21 weights differ from those that were written, for example model.embed_tokens.weight" in err
    assert err.count("\n") == 1
    assert not output.exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merge_that_is_not_the_adapters_is_refused(export, model_folder, tmp_path, monkeypatch, dtype):
    """One adapter of fourteen counts a hundredth more than it should: less than what bfloat16 rounds away."""
    merge = full_model.merge_adapters

    def merge_wrongly(model):
        layer = next(module for name, module in model.named_modules() if name.endswith("layers.1.mlp.up_proj"))
        layer.scaling["default"] *= 1.01
        return merge(model)

    monkeypatch.setattr(full_model, "merge_adapters", merge_wrongly)
    adapters = save_adapters(model_folder("llama"), tmp_path / "adapters")
    status, _, err, output = export(adapters, "--merge", "--dtype", dtype)
    assert status == 2
    assert "merged in float32 into" in err
    assert "rounding explains" in err
    assert "Nothing was written." in err
    assert not output.exists()


def test_weights_that_float16_cannot_hold_are_refused(export, tmp_path):
    model = build_model("llama")
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e6
    model.save_pretrained(tmp_path / "large")
    build_tokenizer().save_pretrained(tmp_path / "large")
    status, _, err, output = export(str(tmp_path / "large"), "--dtype", "float16")
    assert status == 2
    assert err == "Some weights are too large for float16. Use --dtype bfloat16. Nothing was written.\n"
    assert not output.exists()


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def stopped_half_way():
        with temporary_folder(tmp_path / "out") as aside:
            (aside / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_half_way()
    assert list(tmp_path.iterdir()) == []


def run_record_of(folder: Path, *, settings: str, **changed) -> None:
    """Writes the records that a run leaves beside its model."""
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


def test_texts_are_the_runs_samples_in_the_chat_template():
    record = RunRecord(summary={"samples": [{"prompt": "Say hello.", "after": "Hello."}] * 20})
    tokenizer = build_tokenizer()
    rows = tokenize_samples(record, tokenizer)
    assert len(rows) == 8
    assert tokenizer.decode(rows[0]).startswith("<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\nHello.")
    assert max(map(len, rows)) == 64


def test_a_logit_that_is_no_number_never_passes():
    expected = torch.randn(3, 5)
    found = expected.clone()
    found[1, 2] = float("nan")
    assert compare_logits(found, expected).relative_rms == float("inf")
    assert compare_logits(expected, expected).relative_rms == 0
    assert max_merging_difference(build_model("llama")) < 1e-5


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
def test_main_answers_a_mistake_in_one_line_with_exit_code_2(capfd, model_folder, tmp_path, mistake):
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


def test_a_gguf_file_is_made_by_the_converter_that_is_named(export, model_folder, tmp_path):
    """A stand-in for llama.cpp's script, with its options."""
    converter = tmp_path / "llama.cpp" / "convert_hf_to_gguf.py"
    converter.parent.mkdir()
    converter.write_text(
        "import argparse, pathlib\nparser = argparse.ArgumentParser()\nparser.add_argument('model')\n"
        "parser.add_argument('--outfile')\nparser.add_argument('--outtype', choices=['f32', 'f16', 'bf16'])\n"
        "given = parser.parse_args()\nassert pathlib.Path(given.model, 'config.json').is_file()\n"
        "pathlib.Path(given.outfile).write_bytes(b'GGUF')\n"
    )
    status, out, err, output = export(model_folder("llama"), "--gguf", "--gguf_converter", str(converter.parent))
    assert (status, err) == (0, "")
    assert f"Saved {output / 'exported-f32.gguf'}." in out
    assert (output / "exported-f32.gguf").read_bytes() == b"GGUF"
    converter.write_text("raise SystemExit('Model LlamaForCausalLM is not supported')")
    status, _, err, output = export(model_folder("llama"), "--gguf_converter", str(converter), name="second")
    assert status == 2
    said = f"{output} was exported, but {converter.name} could not convert it to GGUF: "
    assert err == f"{said}Model LlamaForCausalLM is not supported\n"
    assert (output / "model.safetensors").is_file()


class SmallHub(BaseHTTPRequestHandler):
    """As much of the Hub as an upload of small files asks for; one repository is not the caller's."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, body, self.headers["Authorization"]))
        if self.path == "/api/repos/create":
            name = json.loads(body)["name"]
            status = 403 if name == "denied" else 200
            answer = {"url": f"http://{self.headers['Host']}/me/{name}"}
        elif "/preupload/" in self.path:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            status, answer = 200, {"files": files}
        elif self.path == "/api/validate-yaml":
            status, answer = 200, {"errors": [], "warnings": []}
        else:
            status, answer = (
                200,
                {"commitUrl": f"http://{self.headers['Host']}/me/mine/commit/1", "commitOid": "1", "success": True},
            )
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_):
        pass


def upload_in_a_process(folder: Path, endpoint: str, *repositories: str) -> list[str]:
    """What comes of uploads: addresses, or what is said in their place."""
    code = (
        "import sys, pathlib; from sft.commands.export.hub import upload; from sft.common.errors import ModelError\n"
        "for name in sys.argv[2:]:\n"
        "    try: print(upload(pathlib.Path(sys.argv[1]), name, private=True))\n"
        "    except ModelError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), *repositories], cwd=REPOSITORY, capture_output=True, text=True,
        check=False, env={**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_secret"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_folder_is_uploaded_to_the_hub_or_it_says_why_not(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: unknown\n---\n# Mine\n")
    (tmp_path / "config.json").write_text("{}")
    server = ThreadingHTTPServer(("127.0.0.1", 0), SmallHub)
    server.asked = []
    Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        uploaded, denied = upload_in_a_process(tmp_path, endpoint, "me/mine", "me/denied")
    finally:
        server.shutdown()
        server.server_close()
    assert "me/mine" in uploaded
    assert denied.startswith(f"{tmp_path} was exported, but could not be uploaded to me/denied: the Hub denied access")
    assert "Set HF_TOKEN" in denied
    made = next(json.loads(body) for path, body, _ in server.asked if path == "/api/repos/create")
    assert made.get("visibility") == "private" or made.get("private") is True  # newer and older versions
    (commit,) = [body.decode() for path, body, _ in server.asked if "/commit/main" in path]
    assert {"README.md", "config.json"} <= {
        line["value"].get("path") for line in map(json.loads, commit.splitlines()) if line["key"] == "file"
    }
    (unreachable,) = upload_in_a_process(tmp_path, endpoint, "me/mine")
    assert "could not be uploaded to me/mine: the Hub cannot be reached (" in unreachable


def test_an_upload_that_fails_leaves_the_folder(export, model_folder):
    """Nothing may look for a hub in this process: that it is offline is what fails."""
    status, _, err, output = export(model_folder("llama"), "--push_to_hub", "me/mine")
    assert status == 2
    assert err.startswith(f"{output} was exported, but could not be uploaded to me/mine")
    assert err.count("\n") == 1
    assert (output / "README.md").is_file()


def test_help_answers_without_torch():
    code = (
        "import sys, export_model\ntry: export_model.main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "--gguf_converter" in done.stdout


def test_adapters_that_are_no_weights_cannot_be_merged(export, model_folder, tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(load(model_folder("llama")), config).save_pretrained(tmp_path / "prompt")
    build_tokenizer().save_pretrained(tmp_path / "prompt")
    status, _, err, output = export(str(tmp_path / "prompt"), "--merge")
    assert status == 2
    assert "PROMPT_TUNING are not part of the weights" in err
    assert not output.exists()


def test_check_difference_says_both_numbers():
    from sft.commands.export.verification import check_difference

    difference = compare_logits(torch.ones(2, 3) + torch.eye(3)[:2], torch.arange(6.0).view(2, 3))
    with pytest.raises(
        ModelError,
        match=r"Mine: the relative difference .*, but rounding explains at most 0.01 .* of 2 positions",
    ):
        check_difference(difference, 0.01, "Mine")

"""The command, end to end, with small models and data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from sft.common.text import size
from tests.support import messages
from tests.support.paths import REPOSITORY
from tests.support.small_models import ARCHITECTURES

VALIDATION = {"validation_split": 0.25}
QUANTIZED = {"lora_config.r": 4, "quantization_config.load_in_4bit": True}


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (file,) = list(folder.glob("*model.safetensors"))
    return load_file(file)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_main_trains_saves_and_reloads_each_architecture(run_sft, model_folder, architecture):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = run_sft(model_name_or_path=model_folder(architecture), num_train_epochs=2, **VALIDATION)
    assert run.status == 0, run.err
    assert run.summary["eval_after"]["loss"] < run.summary["eval_before"]["loss"] - 0.5
    model = AutoModelForCausalLM.from_pretrained(run.output_dir)
    tokenizer = AutoTokenizer.from_pretrained(run.output_dir)
    assert model.dtype == torch.float32
    assert tokenizer.chat_template
    end = "<|endoftext|>" if architecture == "gpt2" else "<|im_end|>"
    assert model.generation_config.eos_token_id == [tokenizer.convert_tokens_to_ids(end)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_main_teaches_each_architecture_to_end_an_answer(run_sft, model_folder, tmp_path, architecture):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (tmp_path / "one.jsonl").write_text(json.dumps({"question": "Say hello.", "answer": "Hello, you."}) + "\n")
    run = run_sft(
        model_name_or_path=model_folder(architecture),
        train_file=str(tmp_path / "one.jsonl"),
        num_train_epochs=60,
        per_device_train_batch_size=1,
        logging_steps=30,
        save_strategy="no",
        sample_prompts="[]",
    )
    assert run.status == 0, run.err
    model = AutoModelForCausalLM.from_pretrained(run.output_dir)
    tokenizer = AutoTokenizer.from_pretrained(run.output_dir)
    chat = [{"role": "user", "content": "Say hello."}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=40, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    assert answer[-1] in model.generation_config.eos_token_id
    assert len(answer) < 40
    assert tokenizer.decode(answer[:-1]) == "Hello, you."


def test_main_summary_has_the_contract_keys(run_sft):
    run = run_sft(**VALIDATION, draws_curves=True)
    summary = run.summary
    assert summary["status"] == "completed"
    for when in ("eval_before", "eval_after"):
        means = {"loss", "perplexity", "token_accuracy", "sequence_accuracy"}
        assert set(summary[when]) == means | {"sets"}
        assert summary[when]["sets"] == {"validation": {**{name: summary[when][name] for name in means}, "rows": 6}}
    expected = {"steps", "epochs", "loss", "seconds", "examples_per_second", "tokens_per_second"}
    assert expected | {"supervised_tokens_per_second", "peak_memory_bytes"} <= set(summary["train"])
    assert summary["data"]["rows_read"] == summary["data"]["rows_used"] == 24
    assert summary["data"]["rows_dropped"] == {}
    assert summary["batch_plan"]["global_batch_size"] == 4
    assert summary["train"]["steps"] == 5  # 18 rows of 24 train, in batches of 4
    assert summary["versions"]["torch"] == torch.__version__.partition("+")[0] or summary["versions"]["torch"]
    assert summary["environment"]["data_parallel"] == "none"
    assert len(summary["config_sha256"]) == 64
    assert (run.output_dir / "training_curves.png").stat().st_size > 10_000
    assert_report_shows(run, summary)


def assert_report_shows(run, summary):
    page = ElementTree.fromstring((run.output_dir / "report.html").read_text(encoding="utf-8"))
    text = "".join(page.find("body").itertext())
    markdown = (run.output_dir / "report.md").read_text(encoding="utf-8")
    assert page.findall("head/meta[@http-equiv='refresh']") == []
    for when in ("eval_before", "eval_after"):
        assert f"{summary[when]['loss']:.4f}" in text
        assert f"{summary[when]['loss']:.4f}" in markdown
    digests = summary["data"]["digests"]
    for expected in ("Did it learn?", "5 of 5", summary["config_sha256"], digests["train"], digests["validation"]):
        assert expected in text
        assert expected in markdown
    lengths = summary["data"]["train"]["lengths"]
    assert sum(lengths["bin_counts"]) == summary["data"]["train"]["rows_read"] == 18
    assert text.count("reference answer") == len(summary["samples"]) == 3
    for sample in summary["samples"]:
        assert sample["after"] in text
    train = summary["train"]
    speed, peak = f"{train['tokens_per_second']:,.0f} tokens/s", size(train["peak_memory_bytes"])
    assert f" {speed}, {train['supervised_tokens_per_second']:,.0f} supervised tokens/s." in run.out
    for shown in (text, markdown):
        assert f" {speed}; peak memory {peak} of " in shown.replace("\\", "")
        assert shown.count(peak) >= 2


def test_main_metrics_file_has_a_step_and_known_names_in_each_line(run_sft):
    run = run_sft(**VALIDATION)
    assert all("step" in event for event in run.metrics)
    train = [event for event in run.metrics if "loss" in event]
    assert [event["step"] for event in train] == [1, 2, 3, 4, 5]
    assert {"learning_rate", "grad_norm", "epoch", "tokens_per_second"} <= set(train[0])
    evaluations = [event for event in run.metrics if "eval_loss" in event]
    assert [event["step"] for event in evaluations] == [0, 5]


def test_main_answers_the_same_prompts_before_and_after(run_sft):
    run = run_sft(sample_prompts="[Say hello., 'Two, or three?']", num_train_epochs=3)
    assert [sample["prompt"] for sample in run.summary["samples"]] == ["Say hello.", "Two, or three?"]
    assert all(sample["before"] != sample["after"] for sample in run.summary["samples"])
    assert run.out.count("prompt  ") == run.out.count("before  ") == run.out.count("after   ") == 2


def test_main_saves_a_configuration_that_runs_again_to_the_same_result(run_sft, tmp_path):
    from sft_main import main

    first = run_sft("--lora_config.r=4", **VALIDATION)
    again = tmp_path / "again"
    assert main(["--config_file", str(first.output_dir / "resolved_config.yaml"), "--output_dir", str(again)]) == 0
    second = json.loads((again / "run_summary.json").read_text())
    assert second["eval_after"] == first.summary["eval_after"]
    ours, theirs = load_weights(first.output_dir), load_weights(again)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_main_lora_saves_adapters_that_load_from_anywhere(run_sft, tmp_path, monkeypatch):
    from peft import AutoPeftModelForCausalLM

    run = run_sft("--lora_config.r=4", "--lora_config.target_modules=q_proj,v_proj", **VALIDATION)
    assert run.status == 0, run.err
    assert "adapters" in run.out
    monkeypatch.chdir(tmp_path)
    model = AutoPeftModelForCausalLM.from_pretrained(run.output_dir)
    assert {name.split(".")[-2] for name, _ in model.named_parameters() if "lora_A" in name} == {"default"}
    assert (run.output_dir / "generation_config.json").is_file()


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_main_trains_adapters_on_quantized_weights_on_cpu(run_sft, bits):
    run = run_sft("--lora_config.r=8", f"--quantization_config.{bits}", num_train_epochs=3, **VALIDATION)
    assert run.status == 0, run.err
    assert f"{bits[8]}-bit" in run.out, "the log names the quantization"
    assert run.summary["eval_after"]["loss"] < run.summary["eval_before"]["loss"] - 0.3


def test_main_gradient_checkpointing_changes_nothing_but_memory(run_sft, tmp_path):
    plain = run_sft(output_dir=str(tmp_path / "plain"), **VALIDATION)
    checkpointed = run_sft("--gradient_checkpointing", output_dir=str(tmp_path / "checkpointed"), **VALIDATION)
    assert checkpointed.summary["eval_after"]["loss"] == pytest.approx(plain.summary["eval_after"]["loss"], abs=1e-5)


def test_main_resumed_run_equals_uninterrupted(run_sft, tmp_path):
    settings = {"save_steps": 2, "num_train_epochs": 2, "per_device_train_batch_size": 2, "save_total_limit": "null"}
    uninterrupted = run_sft(output_dir=str(tmp_path / "uninterrupted"), **settings, **VALIDATION)
    # The same run, ended in its second epoch, then continued under the full schedule.
    checkpoint = tmp_path / "uninterrupted" / "checkpoint-12"
    resumed = run_sft(
        output_dir=str(tmp_path / "resumed"), resume_from_checkpoint=str(checkpoint), **settings, **VALIDATION
    )
    assert resumed.status == 0, resumed.err
    ours, theirs = load_weights(resumed.output_dir), load_weights(uninterrupted.output_dir)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert resumed.summary["train"]["steps"] == uninterrupted.summary["train"]["steps"] == 18
    losses = {event["step"]: event["loss"] for event in uninterrupted.metrics if "loss" in event}
    for event in resumed.metrics:
        if "loss" in event:
            assert event["loss"] == losses[event["step"]]


def test_main_resume_true_without_a_checkpoint_is_refused(run_sft):
    run = run_sft(resume_from_checkpoint="true")
    assert run.status == 2
    assert messages.NO_CHECKPOINT in run.err
    assert run.err.count("\n") == 1


def test_main_resume_auto_starts_from_the_beginning_and_then_resumes(run_sft):
    first = run_sft(resume_from_checkpoint="auto", save_steps=3)
    assert first.status == 0, first.err
    second = run_sft(resume_from_checkpoint="auto", save_steps=3)
    assert messages.RESUMING_FROM.format(path="") in second.out
    steps = [event["step"] for event in second.metrics if "loss" in event]
    assert steps == sorted(set(steps)) == [1, 2, 3, 4, 5, 6]


def test_main_sets_an_earlier_run_aside(run_sft):
    run_sft()
    second = run_sft()
    assert second.status == 0
    assert messages.EARLIER_RUN in second.out
    assert (second.output_dir / "earlier-run-1" / "run_summary.json").is_file()
    assert (second.output_dir / "earlier-run-1" / "report.html").is_file()
    assert (second.output_dir / "earlier-run-1" / "checkpoint-6").is_dir()


def test_main_keeps_the_best_model(run_sft):
    # A learning rate that destroys the model after a good start.
    run = run_sft(
        learning_rate=3e-2,
        lr_scheduler_type="constant",
        num_train_epochs=6,
        eval_steps=3,
        save_steps=3,
        save_total_limit=1,
        load_best_model_at_end=True,
        **VALIDATION,
    )
    assert run.status == 0, run.err
    losses = [event["eval_loss"] for event in run.metrics if "eval_loss" in event]
    assert run.summary["eval_after"]["loss"] == pytest.approx(min(losses[1:]), abs=1e-6)


def test_main_writes_tensorboard_and_offline_wandb(run_sft, tmp_path, monkeypatch):
    import wandb
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # An earlier run in this process may have left its own.
    wandb.teardown()
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_RESUME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    run = run_sft(
        report_to="[tensorboard, wandb]",
        run_name="a-run",
        wandb_project="a-project",
        logging_dir=str(tmp_path / "tb"),
        **VALIDATION,
    )
    assert run.status == 0, run.err
    accumulator = EventAccumulator(str(tmp_path / "tb")).Reload()
    losses = [event.value for event in accumulator.Scalars("train/loss")]
    logged = [event["loss"] for event in run.metrics if "loss" in event]
    assert losses == pytest.approx(logged)
    assert "eval/token_accuracy" in accumulator.Tags()["scalars"]
    (record,) = (run.output_dir / "wandb").glob("offline-run-*/run-*.wandb")
    content = record.read_bytes()
    assert b"a-project" in content
    assert b"a-run" in content


def test_main_reads_gguf_and_saves_safetensors(run_sft, tmp_path, model_folder):
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "gguf"
    folder.mkdir()
    write_gguf(model_folder("llama"), folder / "tiny.gguf")
    settings = {
        "model_name_or_path": str(folder),
        "gguf_file": "tiny.gguf",
        "tokenizer_name_or_path": model_folder("llama"),
    }
    run = run_sft(**settings, **VALIDATION)
    assert run.status == 0, run.err
    assert AutoModelForCausalLM.from_pretrained(run.output_dir).num_parameters() > 0
    adapters = run_sft("--lora_config.r=4", output_dir=str(tmp_path / "adapters"), **settings)
    assert adapters.status == 0, adapters.err
    from peft import AutoPeftModelForCausalLM

    AutoPeftModelForCausalLM.from_pretrained(adapters.output_dir)


def write_gguf(folder: str, path: Path) -> None:
    """A Llama's weights as an F32 GGUF file, names and head order as llama.cpp keeps them."""
    import gguf
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:
            half = tensor.shape[0] // heads // 2
            tensor = tensor.reshape(heads, 2, half, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def start_command(*arguments: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "sft_main.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def test_main_interrupted_logs_where_it_stopped_and_is_resumed(model_folder, question_file, tmp_path):
    arguments = [
        f"--model_name_or_path={model_folder('llama')}",
        f"--train_file={question_file}",
        "--max_seq_length=64",
        f"--output_dir={tmp_path / 'out'}",
        "--per_device_train_batch_size=1",
        "--max_steps=100000",
        "--logging_steps=1",
        "--report_to=none",
        "--sample_prompts=[]",
    ]
    process = start_command(*arguments)
    metrics = tmp_path / "out" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.is_file() and metrics.read_text().count("\n") > 3):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert messages.STOPPED_AT in out
    assert messages.RESUME_OPTION in out
    assert "Traceback" not in err
    summary = json.loads((tmp_path / "out" / "run_summary.json").read_text())
    assert summary["status"] == "interrupted"
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert messages.REPORT_STOPPED.format(signal="SIGINT", step=f"{summary['train']['steps']:,}") in page
    assert messages.REPORT_NO_MODEL in page
    stopped = summary["train"]["steps"]
    process = start_command(*arguments, f"--max_steps={stopped + 2}", "--resume_from_checkpoint=auto")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert f"checkpoint-{stopped}" in out


def test_main_prints_nothing_of_other_libraries(model_folder, question_file, tmp_path):
    process = start_command(
        f"--model_name_or_path={model_folder('llama')}",
        f"--train_file={question_file}",
        "--max_seq_length=64",
        f"--output_dir={tmp_path / 'out'}",
        "--max_steps=2",
        "--lora_config.r=4",
        "--validation_split=0.2",
        "--report_to=tensorboard",
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert err == ""
    assert out.startswith("Train: ")


MISTAKES = {
    "unknown key": ({"learning_rat": 1}, "unknown key 'learning_rat'. Did you mean 'learning_rate'?"),
    "wrong type": ({"max_steps": "many"}, "max_steps: expected an integer >= 1, or -1, found 'many'"),
    "out of range": ({"learning_rate": -1}, "learning_rate: -1 is out of range"),
    "both precisions": ({"fp16": True, "bf16": True}, "fp16 and bf16 are mutually exclusive"),
    "fp16 without a GPU": ({"fp16": True}, "write fp16: auto"),
    "no validation data": ({"load_best_model_at_end": True}, "requires validation data"),
    "missing file": ({"train_file": "nowhere.jsonl"}, "no such file or folder: 'nowhere.jsonl'"),
    "missing model": ({"model_name_or_path": "./nowhere"}, "no such folder: './nowhere'"),
    "unknown target": ({"lora_config.target_modules": "c_attn"}, messages.LINEAR_LAYERS.format(names="down_proj")),
    "quantized without adapters": ({"quantization_config.load_in_4bit": True}, "add a lora_config section"),
    "unknown optimizer": ({"optim": "adamw_torh"}, "Did you mean 'adamw_torch'?"),
    "unknown template": ({"chat_template": "chatmll"}, "Did you mean 'chatml'?"),
    "unknown setting of the schedule": (
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": '{"num_cycle": 1}'},
        "lr_scheduler_kwargs: {'num_cycle': 1} does not fit lr_scheduler_type cosine: ",
    ),
    "unknown attention": (
        {"attn_implementation": "flash_attention_9"},
        "attn_implementation: flash_attention_9 cannot",
    ),
    "data file as a model": ({"model_name_or_path": __file__}, "test_sft_main.py is a file. Name its folder"),
    "folder without a model": ({"model_name_or_path": str(REPOSITORY / "examples" / "data")}, messages.NO_CONFIG),
    "log folder below a file": ({"report_to": "tensorboard", "logging_dir": f"{__file__}/logs"}, "logging_dir: "),
    "output below a file": ({"output_dir": f"{__file__}/out"}, "is a file; choose a folder"),
    "too many processes": ({"num_gpus": 3}, "num_gpus is 3 but 1 processes were started"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_main_reports_a_mistake_in_one_line_with_exit_code_2(run_sft, mistake, monkeypatch):
    if mistake == "fp16 without a GPU" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    if mistake == "too many processes":
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "1")
    settings, expected = MISTAKES[mistake]
    run = run_sft(**settings)
    assert run.status == 2
    assert expected in run.err
    assert run.err.count("\n") == 1
    assert not run.output_dir.exists()


def test_main_refuses_rows_longer_than_learned_positions(run_sft, model_folder):
    run = run_sft(model_name_or_path=model_folder("gpt2"), max_seq_length=512)
    assert run.status == 2
    assert f"{messages.LEARNED_POSITIONS.format(length=128)}{messages.WRITE_LENGTH.format(length=128)}." in run.err


def test_main_help_does_not_import_torch():
    code = "import sys, sft_main; sft_main.main(['--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "--lora_config.r  (an integer >= 1; default 16)" in done.stdout

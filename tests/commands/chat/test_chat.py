"""The chat command: one question, a pipe, full models and adapters, user errors."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import sys

import pytest

import chat
from sft.common.shown_rows import SamplePrompt
from sft.modeling.answering import answer_prompts
from tests.support import messages
from tests.support.paths import REPOSITORY
from tests.support.saved_models import ESCAPE, QUESTION, greedy_answer, loaded, save_endless_model

SHORT = ["--max_new_tokens", "8", "--device", "cpu"]


@pytest.fixture
def ask(capfd):
    """Asks once, in this process; gives the exit status, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = chat.main([*arguments, *SHORT])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    yield run
    logging.getLogger("sft").handlers.clear()


def test_a_prompt_is_answered_as_in_training_and_alone_on_standard_output(ask, model_folder):
    status, out, err = ask(model_folder("llama"), "--prompt", QUESTION, "--system", "Be short.")
    assert (status, out) == (0, greedy_answer(*loaded(model_folder("llama")), system="Be short."))
    assert messages.LOADED_AS.format(weights="float32", device="cpu") in err


def test_adapters_answer_unmerged_and_merged(ask, model_folder, adapters):
    tuned = greedy_answer(*loaded(model_folder("llama"), adapters))
    base = greedy_answer(*loaded(model_folder("llama")))
    assert tuned != base
    assert ask(adapters, "--prompt", QUESTION)[1] == tuned
    status, out, err = ask(adapters, "--prompt", QUESTION, "--merge", "--compare")
    assert (status, out) == (0, f"base:\n{base}\ntuned:\n{tuned}")
    assert messages.LOADED_AS.format(weights="merged: float32", device="cpu") in err


def test_comparing_adapters_with_their_base_loads_it_once(ask, model_folder, adapters):
    status, out, err = ask(adapters, "--prompt", QUESTION, "--compare")
    base, tuned = (greedy_answer(*loaded(model_folder("llama"), folder)) for folder in (None, adapters))
    assert (status, out) == (0, f"base:\n{base}\ntuned:\n{tuned}")
    assert err.count(messages.LOADED_AS.format(weights="float32", device="cpu")) == 1


def test_the_model_before_training_is_found_in_the_runs_record(ask, model_folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(model_folder("qwen2"), run / "checkpoint-7")
    (run / "resolved_config.yaml").write_text(f"model_name_or_path: {model_folder('llama')}\n")
    status, out, _ = ask(str(run / "checkpoint-7"), "--prompt", QUESTION, "--compare")
    base, tuned = (greedy_answer(*loaded(model_folder(name))) for name in ("llama", "qwen2"))
    assert (status, out) == (0, f"base:\n{base}\ntuned:\n{tuned}")


def test_adapters_of_a_quantized_base_answer_on_it_unless_set_otherwise(ask, model_folder, adapters, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(adapters, run)
    record = {"model_name_or_path": model_folder("llama"), "quantization_config": {"load_in_4bit": True}}
    (run / "resolved_config.yaml").write_text(json.dumps(record))
    status, quantized, err = ask(str(run), "--prompt", QUESTION)
    assert status == 0
    assert messages.LOADED_AS.format(weights="4-bit weights", device="cpu") in err
    status, whole, err = ask(str(run), "--prompt", QUESTION, "--no-load_in_4bit")
    assert (status, whole) == (0, greedy_answer(*loaded(model_folder("llama"), adapters)))
    assert quantized != whole
    assert ask(str(run), "--prompt", QUESTION, "--merge")[2].startswith(f"command line: {messages.MERGING_QUANTIZED}")


def test_a_model_without_a_template_continues_text(ask, model_folder):
    model, tokenizer = loaded(model_folder("gpt2"))
    tokenizer.pad_token = tokenizer.eos_token
    expected = answer_prompts(model, tokenizer, [SamplePrompt(text="The quick")], [0], 8)[0].text + "\n"
    assert ask(model_folder("gpt2"), "--prompt", "The quick")[:2] == (0, expected)
    status, _, err = ask(model_folder("gpt2"), "--prompt", "The quick", "--system", "Be short.")
    assert status == 2
    assert messages.NO_CHAT_TEMPLATE in err


def test_the_same_seed_draws_the_same_answer(ask, model_folder):
    drawn = [
        ask(model_folder("llama"), "--prompt", QUESTION, "--temperature", "2", "--seed", seed)[1] for seed in "112"
    ]
    assert drawn[0] == drawn[1] != drawn[2]


MISTAKES = {
    "no folder": (["./nothing"], "./nothing: no such folder."),
    "no model": (
        [str(REPOSITORY / "examples" / "data")],
        "no model in this folder (neither config.json nor adapter_config.json)",
    ),
    "a file": ([__file__], "test_chat.py is not a folder. Name the folder"),
    "a device": (["/dev/null"], "/dev/null is not a folder. Name the folder"),
    "not on the hub": (["nobody/nothing"], "nobody/nothing: "),
    "an empty prompt": (["model", "--prompt", " "], "the prompt (--prompt or standard input) is empty"),
    "a prompt of other bytes": (["model", "--prompt", "caf\udce9"], "--prompt: not UTF-8 text"),
    "a system prompt of other bytes": (["model", "--system", "\udcff"], "--system: not UTF-8 text"),
    "a number": (["model", "--temperature", "hot"], "--temperature: expected a number >= 0, found 'hot'"),
    "top_p alone": (["model", "--top_p", "0.5"], "--top_p has no effect without --temperature"),
    "unknown option": (["model", "--sytem", "x"], "unrecognized arguments: --sytem"),
    "no such device": (["MODEL", "--device", "cuda:99"], "this machine has no device cuda:99"),
    "nothing to merge": (["MODEL", "--merge"], "is a full model without adapters; remove --merge"),
    "nothing to compare": (["MODEL", "--compare"], "was trained from is not known"),
    "a base for a whole model": (["MODEL", "--base", "x"], "is a full model; remove it"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_main_reports_a_mistake_in_one_line_with_exit_code_2(capfd, model_folder, mistake):
    arguments, expected = MISTAKES[mistake]
    arguments = [model_folder("llama") if argument == "MODEL" else argument for argument in arguments]
    status = chat.main([*arguments, *([] if "--prompt" in arguments else ["--prompt", "Hi"])])
    captured = capfd.readouterr()
    assert (status, captured.out) == (2, "")
    said = captured.err.splitlines()
    if mistake == "not on the hub":  # which may take a while
        assert messages.HUB_LOOKUP.format(name="nobody/nothing") in said.pop(0)
    (line,) = said
    assert expected in line


def test_a_run_that_did_not_end_names_its_checkpoints(ask, model_folder, tmp_path):
    for step in (5, 10):
        shutil.copytree(model_folder("llama"), tmp_path / f"checkpoint-{step}")
    status, _, err = ask(str(tmp_path), "--prompt", QUESTION)
    assert status == 2
    newest = tmp_path / "checkpoint-10"
    assert messages.NAME_A_CHECKPOINT.format(names="checkpoint-5, checkpoint-10", path=newest) in err


def test_adapters_with_an_unusable_base_are_refused_with_the_reason(ask, model_folder, adapters, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(adapters, moved)
    settings = json.loads((moved / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "/gone/base"
    (moved / "adapter_config.json").write_text(json.dumps(settings))
    status, _, err = ask(str(moved), "--prompt", QUESTION)
    assert status == 2
    assert messages.BASE_IS_GONE.format(base="/gone/base") in err
    assert ask(str(moved), "--prompt", QUESTION, "--base", model_folder("llama"))[0] == 0
    status, _, err = ask(str(moved), "--prompt", QUESTION, "--base", model_folder("gpt2"))
    assert status == 2
    assert messages.ADAPTERS_NOT_LOADED in err
    assert err.count("\n") == 1


def test_adapters_that_lack_weights_are_refused(ask, adapters, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapters, tmp_path / "lacking")
    path = tmp_path / "lacking" / "adapter_model.safetensors"
    weights = load_file(path)
    weights.pop(next(name for name in weights if "q_proj.lora_A" in name))
    save_file(weights, path)
    status, _, err = ask(str(tmp_path / "lacking"), "--prompt", QUESTION)
    assert status == 2
    assert messages.ADAPTERS_LACK_WEIGHTS in err


def test_help_does_not_import_torch():
    code = (
        "import sys, chat\ntry: chat.main(['--help'])\nexcept SystemExit as left: assert left.code == 0\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "--compare [BASE]" in done.stdout


def test_a_pipe_is_answered_and_ctrl_c_stops_it_with_130(tmp_path):
    folder = save_endless_model(tmp_path / "endless")
    with subprocess.Popen(
        [sys.executable, "chat.py", folder, "--max_new_tokens", "90000", "--device", "cpu"],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdin.write(b"Say hello.\n")
        process.stdin.close()
        assert process.stdout.read(len(ESCAPE)).decode() == ESCAPE
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert b"Traceback" not in process.stderr.read()


def test_an_empty_pipe_is_an_error():
    done = subprocess.run(
        [sys.executable, "chat.py", "model"], cwd=REPOSITORY, input="\n", capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == messages.NO_PROMPT

"""Talking: one question, a pipe, a terminal; whole models and adapters; what is too long; mistakes."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest

import chat
from sft.commands.chat.options import Sampling
from sft.commands.chat.responder import Responder
from sft.commands.chat.session import ChatSession, answer_once
from sft.commands.chat.text_stream import TextStream, escape_controls
from sft.common.data_records import SamplePrompt
from sft.common.errors import ModelError
from sft.modeling.answering import answer_prompts
from tests.support import messages
from tests.support.parts import POSITIONS, REPOSITORY, build_model, build_tokenizer
from tests.support.saved_models import ESCAPE, save_adapters, save_endless_model

QUESTION = "What comes after one?"
SHORT = ["--max_new_tokens", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def adapters(model_folder, tmp_path_factory):
    return save_adapters(model_folder("llama"), tmp_path_factory.mktemp("chat") / "adapters")


@pytest.fixture
def ask(capfd):
    """Asks once, in this process; gives the exit status, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = chat.main([*arguments, *SHORT])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    yield run
    logging.getLogger("sft").handlers.clear()


def greedy_answer(model, tokenizer, question=QUESTION, *, system=None):
    begin = ({"role": "system", "content": system},) if system else ()
    prompt = SamplePrompt(messages=(*begin, {"role": "user", "content": question}))
    return answer_prompts(model, tokenizer, [prompt], [2], 8)[0].text + "\n"


def loaded(folder, adapters=None):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    if adapters is not None:
        model = PeftModel.from_pretrained(model, adapters)
    return model, AutoTokenizer.from_pretrained(folder)


def test_a_prompt_is_answered_as_in_training_and_alone_on_standard_output(ask, model_folder):
    status, out, err = ask(model_folder("llama"), "--prompt", QUESTION, "--system", "Be short.")
    assert (status, out) == (0, greedy_answer(*loaded(model_folder("llama")), system="Be short."))
    assert "float32 on cpu" in err


def test_adapters_answer_beside_their_base_and_merged_into_it(ask, model_folder, adapters):
    tuned = greedy_answer(*loaded(model_folder("llama"), adapters))
    base = greedy_answer(*loaded(model_folder("llama")))
    assert tuned != base
    assert ask(adapters, "--prompt", QUESTION)[1] == tuned
    status, out, err = ask(adapters, "--prompt", QUESTION, "--merge", "--compare")
    assert (status, out) == (0, f"base:\n{base}\ntuned:\n{tuned}")
    assert "merged: float32 on cpu" in err


def test_comparing_adapters_with_their_base_loads_it_once(ask, model_folder, adapters):
    status, out, err = ask(adapters, "--prompt", QUESTION, "--compare")
    base, tuned = (greedy_answer(*loaded(model_folder("llama"), folder)) for folder in (None, adapters))
    assert (status, out) == (0, f"base:\n{base}\ntuned:\n{tuned}")
    assert err.count("float32 on cpu") == 1


def test_the_model_before_training_is_found_in_the_runs_record(ask, model_folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(model_folder("qwen2"), run / "checkpoint-7")
    (run / "resolved_config.yaml").write_text(f"model_name_or_path: {model_folder('llama')}\n")
    status, out, _ = ask(str(run / "checkpoint-7"), "--prompt", QUESTION, "--compare")
    base, tuned = (greedy_answer(*loaded(model_folder(name))) for name in ("llama", "qwen2"))
    assert (status, out) == (0, f"base:\n{base}\ntuned:\n{tuned}")


def test_adapters_of_a_quantized_base_answer_on_it_unless_told_otherwise(ask, model_folder, adapters, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(adapters, run)
    record = {"model_name_or_path": model_folder("llama"), "quantization_config": {"load_in_4bit": True}}
    (run / "resolved_config.yaml").write_text(json.dumps(record))
    status, quantized, err = ask(str(run), "--prompt", QUESTION)
    assert status == 0
    assert "4-bit weights on cpu" in err
    status, whole, err = ask(str(run), "--prompt", QUESTION, "--no-load_in_4bit")
    assert (status, whole) == (0, greedy_answer(*loaded(model_folder("llama"), adapters)))
    assert quantized != whole
    assert ask(str(run), "--prompt", QUESTION, "--merge")[2].startswith(
        "command line: --merge: merging into quantized weights"
    )


def test_a_model_without_a_template_continues_text(ask, model_folder):
    model, tokenizer = loaded(model_folder("gpt2"))
    tokenizer.pad_token = tokenizer.eos_token
    expected = answer_prompts(model, tokenizer, [SamplePrompt(text="The quick")], [0], 8)[0].text + "\n"
    assert ask(model_folder("gpt2"), "--prompt", "The quick")[:2] == (0, expected)
    status, _, err = ask(model_folder("gpt2"), "--prompt", "The quick", "--system", "Be short.")
    assert status == 2
    assert "has no chat template" in err


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
    "a file": ([__file__], "test_chat.py is a file. Name the folder"),
    "not on the hub": (["nobody/nothing"], "nobody/nothing: "),
    "an empty prompt": (["model", "--prompt", " "], "the prompt (--prompt or standard input) is empty"),
    "a number": (["model", "--temperature", "hot"], "--temperature: expected a number >= 0, found 'hot'"),
    "top_p alone": (["model", "--top_p", "0.5"], "--top_p has no effect without --temperature"),
    "unknown option": (["model", "--sytem", "x"], "unrecognized arguments: --sytem"),
    "no such device": (["MODEL", "--device", "cuda:99"], "this machine has no device cuda:99"),
    "nothing to merge": (["MODEL", "--merge"], "is a full model without adapters; remove --merge"),
    "nothing to compare": (["MODEL", "--compare"], "was trained from is not known"),
    "a base for a whole model": (["MODEL", "--base", "x"], "is a full model; remove it"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_main_answers_a_mistake_in_one_line_with_exit_code_2(capfd, model_folder, mistake):
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
    assert (
        f"but checkpoints: checkpoint-5, checkpoint-10. Name one of them, for example {tmp_path / 'checkpoint-10'}"
        in err
    )


def test_adapters_say_what_is_wrong_with_their_base(ask, model_folder, adapters, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(adapters, moved)
    settings = json.loads((moved / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "/gone/base"
    (moved / "adapter_config.json").write_text(json.dumps(settings))
    status, _, err = ask(str(moved), "--prompt", QUESTION)
    assert status == 2
    assert "were trained on /gone/base, which does not exist. Name the base model: --base BASE." in err
    assert ask(str(moved), "--prompt", QUESTION, "--base", model_folder("llama"))[0] == 0
    status, _, err = ask(str(moved), "--prompt", QUESTION, "--base", model_folder("gpt2"))
    assert status == 2
    assert "adapters cannot be loaded" in err
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
    assert "the adapters lack weights" in err


def build_responder(positions=POSITIONS):
    model = build_model("llama").eval()
    model.config.max_position_embeddings = positions
    return Responder(model, build_tokenizer(), name="model", is_chat=True)


def test_a_long_conversation_loses_its_first_turns_but_not_the_system_prompt():
    responder, sampling = build_responder(), Sampling(max_new_tokens=16)
    turns = [{"role": "system", "content": "Be short."}]
    for index in range(12):
        turns += [{"role": "user", "content": f"{QUESTION} {index}"}, {"role": "assistant", "content": "Two."}]
    turns.append({"role": "user", "content": "Say hello."})
    token_ids, num_dropped = responder._fit_turns(turns, sampling)
    assert num_dropped > 0
    assert num_dropped % 2 == 0
    assert len(token_ids) + 16 <= POSITIONS
    text = build_tokenizer().decode(token_ids)
    assert "Be short." in text
    assert text.count("user") == (len(turns) - num_dropped) // 2
    answer = responder.answer(turns, sampling, turn=0, write=lambda _: None)
    assert answer.num_dropped_turns == num_dropped
    short = build_responder(positions=100_000).answer(turns, sampling, turn=0, write=lambda _: None)
    assert short.num_dropped_turns == 0


@pytest.mark.parametrize("keeps_history", [True, False])
def test_a_question_comes_with_those_before_it_or_not(model_folder, monkeypatch, keeps_history):
    lines = iter(["Say hello.", QUESTION, "/exit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    heard = []

    class Listening(Responder):
        def answer(self, messages, *further, **named):
            heard.append([message["content"] for message in messages])
            return super().answer(messages, *further, **named)

    model, tokenizer = loaded(model_folder("llama"))
    responder = Listening(model.eval(), tokenizer, name="model", is_chat=True)
    talk = ChatSession([responder], "Be short.", Sampling(max_new_tokens=8), io.StringIO(), keeps_history=keeps_history)
    assert talk.run() == 0
    answer = greedy_answer(model, tokenizer, "Say hello.", system="Be short.").removesuffix("\n")
    before = ["Say hello.", answer] if keeps_history else []
    assert heard == [["Be short.", "Say hello."], ["Be short.", *before, QUESTION]]


def test_an_answer_ends_where_the_positions_end_and_says_so(tmp_path):
    model, tokenizer = loaded(save_endless_model(tmp_path))
    model.config.max_position_embeddings = 64
    responder = Responder(model.eval(), tokenizer, name="model", is_chat=True)
    answer = responder.answer(
        [{"role": "user", "content": "Say hello."}], Sampling(max_new_tokens=500), turn=0, write=lambda _: None
    )
    assert answer.end_reason == "context length"
    prompt = len(responder._tokenize_messages([{"role": "user", "content": "Say hello."}]))
    assert answer.text == ESCAPE * (64 - prompt)


def test_a_message_that_does_not_fit_at_all_is_refused():
    responder = build_responder()
    with pytest.raises(ModelError, match=r"takes [\d,]+ tokens, but model has a context length of 128 tokens"):
        responder.answer([{"role": "user", "content": QUESTION * 40}], Sampling(), turn=0, write=lambda _: None)


def test_a_long_text_is_continued_from_its_end(model_folder):
    model, tokenizer = loaded(model_folder("gpt2"))
    tokenizer.pad_token = tokenizer.eos_token
    responder = Responder(model.eval(), tokenizer, name="model", is_chat=False)
    text = "The quick brown fox. " * 60
    answer = responder.answer([{"role": "user", "content": text}], Sampling(max_new_tokens=8), turn=0, write=len)
    assert answer.num_dropped_tokens == len(tokenizer(text)["input_ids"]) - (POSITIONS - 8)


def test_text_comes_whole_in_pieces_of_whole_characters():
    tokenizer = build_tokenizer()
    text = "Grüße, 你好 👋🏽 — fin.\nTwo plus two"
    pieces: list[str] = []
    stream = TextStream(tokenizer, {2}, pieces.append)
    import torch

    stream.put(torch.tensor([[1, 5, 7]]))  # the prompt
    for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], 2]:
        stream.put(torch.tensor([token]))
    stream.end()
    assert "".join(pieces) == stream.text == text
    assert stream.ended
    assert len(pieces) > 10
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_what_would_act_on_a_terminal_is_written_out_there_and_only_there(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert escape_controls("a\tb\n\x1b[31m\r\u202e\x07") == "a\tb\n\\x1b[31m\\r\\u202e\\x07"
    model, tokenizer = loaded(save_endless_model(tmp_path))
    responder = Responder(model.eval(), tokenizer, name="model", is_chat=True)
    for out, expected in ((Terminal(), "\\x1b[31mred" * 2 + "\n"), (io.StringIO(), ESCAPE * 2 + "\n")):
        answer_once([responder], "Hi", None, Sampling(max_new_tokens=2), out)
        assert out.getvalue() == expected


def test_help_answers_without_torch():
    code = (
        "import sys, chat\ntry: chat.main(['--help'])\nexcept SystemExit as left: assert left.code == 0\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "--compare [BASE]" in done.stdout


class InTerminal:
    """The command behind a pseudo-terminal."""

    def __init__(self, *arguments: str):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "chat.py", *arguments], cwd=REPOSITORY, stdin=slave, stdout=slave, stderr=slave,
            env={**os.environ, "TERM": "dumb"}, start_new_session=True, preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def read_until(self, wanted: str, seconds: float = 120) -> str:
        seen, until = "", time.monotonic() + seconds
        while wanted not in seen:
            ready, _, _ = select.select([self.master], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"{wanted!r} did not come; seen: {seen!r}"
            seen += os.read(self.master, 4096).decode("utf-8", errors="replace")
        return seen

    def leave(self) -> int:
        try:
            return self.process.wait(timeout=60)
        finally:
            os.close(self.master)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C on it is a signal to this process


def test_a_talk_in_a_terminal(tmp_path):
    talk = InTerminal(save_endless_model(tmp_path), "--max_new_tokens", "90000", "--device", "cpu", "--system", "Hm.")
    assert "Chat; greedy decoding" in talk.read_until("you> ")
    talk.type("/system\n")
    assert "(System prompt: Hm.)" in talk.read_until("you> ")
    talk.type("/sytsem Be short.\n")
    assert "(Unknown command /sytsem; /help lists the commands." in talk.read_until("you> ")
    talk.type("Say hello.\n")
    seen = talk.read_until("\\x1b[31mred\\x1b[31mred")
    assert "model> " in seen
    talk.type("\x03")
    seen += talk.read_until("you> ")
    assert "(Stopped.)" in seen
    assert ESCAPE not in seen
    talk.type("/system Be brief.\n")
    assert "(New conversation.)" in talk.read_until("you> ")
    talk.type("\x03")
    assert "Press Ctrl-C again to quit" in talk.read_until("you> ")
    talk.type("\x04")
    assert talk.leave() == 0


@pytest.mark.slow
def test_ctrl_c_twice_at_the_prompt_leaves_with_130(model_folder):
    talk = InTerminal(model_folder("gpt2"), "--device", "cpu")
    assert "Text completion: each line is continued on its own" in talk.read_until("text> ")
    talk.type("\x03")
    talk.read_until("text> ")
    talk.type("\x03")
    assert talk.leave() == 130


def test_a_pipe_is_answered_and_ctrl_c_stops_it_with_130(tmp_path):
    folder = save_endless_model(tmp_path / "endless")
    with subprocess.Popen(
        [sys.executable, "chat.py", folder, "--max_new_tokens", "90000", "--device", "cpu"], cwd=REPOSITORY,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdin.write(b"Say hello.\n")
        process.stdin.close()
        assert process.stdout.read(len(ESCAPE)).decode() == ESCAPE
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert b"Traceback" not in process.stderr.read()


def test_nothing_in_a_pipe_is_a_mistake():
    done = subprocess.run(
        [sys.executable, "chat.py", "model"], cwd=REPOSITORY, input="\n", capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "command line: the prompt (--prompt or standard input) is empty.\n"

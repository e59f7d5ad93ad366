"""Real parts, made small and in process: a trained tokenizer, random models of several architectures, data files."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before any library is imported: nothing in the tests may look for a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# Prepared rows are kept between runs: a test must find none but its own session's.
_CACHE = tempfile.TemporaryDirectory(prefix="sft-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name

REPOSITORY = Path(__file__).resolve().parent.parent
CHATML = (REPOSITORY / "prompting" / "templates" / "chatml.jinja").read_text(encoding="utf-8")
VOCABULARY = 400
POSITIONS = 128
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "What is the capital of France? Paris is the capital of France.",
    "Two plus two is four, and four plus four is eight.",
    "Please write the number that comes after seven: eight.",
    "User: hello Assistant: good morning, how are you today?",
]
QUESTIONS = [
    ("What comes after one?", "Two comes after one."),
    ("What is the capital of France?", "Paris."),
    ("Say hello.", "Hello, how are you today?"),
    ("How much is two plus two?", "Two plus two is four."),
]


def build_tokenizer(chat_template: str | None = CHATML, **special: str) -> Any:
    """A byte-level BPE tokenizer trained on a few sentences; ChatML's markers are special tokens of it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    special = special or {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    wrapped.chat_template = chat_template
    return wrapped


def build_model(architecture: str) -> Any:
    """A random model of 2 layers, the same numbers each time."""
    import torch
    import transformers as t

    size = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": POSITIONS,
        "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    gpt2 = {
        "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS,
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    if architecture == "gpt2":
        return t.GPT2LMHeadModel(t.GPT2Config(**gpt2))
    if architecture == "llama":
        return t.LlamaForCausalLM(t.LlamaConfig(**size))
    if architecture == "qwen2":
        return t.Qwen2ForCausalLM(t.Qwen2Config(**size, tie_word_embeddings=True))
    if architecture == "phi3":
        return t.Phi3ForCausalLM(t.Phi3Config(**size, original_max_position_embeddings=POSITIONS))
    if architecture == "gemma2":
        return t.Gemma2ForCausalLM(t.Gemma2Config(**size, head_dim=8, sliding_window=64))
    raise ValueError(architecture)


ARCHITECTURES = ("gpt2", "llama", "qwen2", "phi3", "gemma2")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A folder with a model and tokenizer of an architecture, made once. GPT-2's has no chat template and no pad."""
    made: dict[str, str] = {}

    def folder(architecture: str) -> str:
        if architecture not in made:
            path = tmp_path_factory.mktemp(architecture)
            build_model(architecture).save_pretrained(path)
            base_like = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
            tokenizer = build_tokenizer(None, **base_like) if architecture == "gpt2" else build_tokenizer()
            tokenizer.save_pretrained(path)
            made[architecture] = str(path)
        return made[architecture]

    return folder


@pytest.fixture(scope="session")
def question_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """24 question/answer rows of different lengths."""
    path = tmp_path_factory.mktemp("questions") / "train.jsonl"
    rows = [{"question": f"{question} ({i})", "answer": answer} for i in range(6) for question, answer in QUESTIONS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def run_sft(
    model_folder: Callable[[str], str], question_file: str, tmp_path: Path, capfd: pytest.CaptureFixture
) -> Iterator[Callable[..., Any]]:
    """Runs the command in this process with small settings; gives exit status, output and the output folder.

    `run_sft(key=value, ...)` changes settings; a value of None leaves the setting out.
    """
    from sft_main import main

    def run(*extra: str, **settings: Any) -> "Run":
        defaults = {
            "model_name_or_path": model_folder("llama"),
            "train_file": question_file,
            "output_dir": str(tmp_path / "out"),
            "max_seq_length": 64,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "num_train_epochs": 1,
            "logging_steps": 1,
            "report_to": "none",
            "sample_max_new_tokens": 4,
            "bf16": False,  # auto would try out what this machine is fast at
        }
        arguments = [f"--{key}={value}" for key, value in (defaults | settings).items() if value is not None]
        status = main([*arguments, *extra])
        captured = capfd.readouterr()
        return Run(status, captured.out, captured.err, Path(settings.get("output_dir", defaults["output_dir"])))

    yield run
    logging.getLogger("sft").handlers.clear()


@pytest.fixture(autouse=True)
def _environment_as_it_was() -> Iterator[None]:
    """A run in this process sets variables for the trackers; the next test must not see them."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


class Run:
    """What came of one command."""

    def __init__(self, status: int, out: str, err: str, output_dir: Path):
        self.status, self.out, self.err, self.output_dir = status, out, err, output_dir

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.output_dir / "run_summary.json").read_text(encoding="utf-8"))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        lines = (self.output_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


_FAULTS: Counter[str] = Counter()
_FAULT_WORDS = ("faults injected", "runs continued", "runs equal to the bit")


class Tally:
    """Counts faults, and what the runs that went on after them came to."""

    def injected(self) -> None:
        _FAULTS["faults injected"] += 1

    def continued(self) -> None:
        _FAULTS["runs continued"] += 1

    def equal(self) -> None:
        _FAULTS["runs equal to the bit"] += 1


@pytest.fixture(scope="session")
def tally() -> Tally:
    return Tally()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _FAULTS:
        told = ", ".join(f"{_FAULTS[word]} {word}" for word in _FAULT_WORDS)
        lost = _FAULTS["faults injected"] - _FAULTS["runs equal to the bit"]
        terminalreporter.write_line(f"Faults: {told}; lost or changed: {lost}.")

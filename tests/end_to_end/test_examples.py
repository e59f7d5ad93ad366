"""Every configuration that people copy loads and, shrunk, runs; what the README and the pages in docs/ show too."""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from config_manager import load_config
from sft.batching.advice import with_4bit_weights, with_adapters
from sft.batching.memory import MemoryFacts, estimate_memory
from sft.common.errors import ConfigError
from sft.common.run_records import ModelFootprint
from sft.configuration.checks.sharding import GATHER_ON_SAVE, check_deepspeed
from sft.configuration.command_line import read_command
from sft.configuration.keys import flat_keys, keys_of
from sft.configuration.schema import NESTED_SECTIONS, DatasetSource
from tests.support import forked, messages
from tests.support.in_process import run_command
from tests.support.paths import REPOSITORY

EXAMPLES = sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "examples").glob("*.yaml"))
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = [README, *(path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "docs").glob("*.md")))]
SHRUNK = ["--max_steps=2", "--logging_steps=1", "--report_to=none", "--sample_max_new_tokens=4"]


def snippets(language: str, pages=PAGES) -> list[str]:
    """The blocks of a language, each once, in the README and in docs/."""
    found = [block for page in pages for block in re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)]
    return list(dict.fromkeys(found))


@pytest.fixture
def small_files(tmp_path, monkeypatch):
    """A new working folder with the repository's examples, with fewer rows."""
    (tmp_path / "examples" / "data").mkdir(parents=True)
    for name in ("orders_train", "orders_validation"):
        lines = (REPOSITORY / "examples" / "data" / f"{name}.jsonl").read_text().splitlines()[:12]
        (tmp_path / "examples" / "data" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "examples" / "tiny-chat").symlink_to(REPOSITORY / "examples" / "tiny-chat")
    for path in ("sample_config.yaml", *EXAMPLES):
        (tmp_path / path).write_text((REPOSITORY / path).read_text())
    (tmp_path / "my_data.jsonl").write_text(
        "".join(json.dumps({"question": f"{i} + 1?", "answer": str(i + 1)}) + "\n" for i in range(24))
    )
    (tmp_path / "other.jsonl").write_text('{"question": "1 + 100?", "answer": "101"}\n' * 3)
    texts = [{"text": " ".join(f"Sentence {i} of text {number}." for i in range(9))} for number in range(24)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    functions = "def keep(row):\n    return True\n\n\ndef to_messages(row):\n    return row\n"
    (tmp_path / "my_rows.py").write_text(functions)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    logging.getLogger("sft").handlers.clear()


def test_sample_config_runs_with_fewer_steps(small_files):
    assert run_command(["--config_file", "sample_config.yaml", *SHRUNK]) == 0
    summary = json.loads((small_files / "sft_output" / "run_summary.json").read_text())
    assert summary["samples"][0]["prompt"] == "Please send 3 red apples to Anna on Friday."
    assert all(sample["before"] for sample in summary["samples"])


def test_sample_config_shows_every_common_key_in_order():
    text = (REPOSITORY / "sample_config.yaml").read_text()
    shown = re.findall(r"^#? ?([a-z_0-9]+):", text, flags=re.MULTILINE)
    inner = re.findall(r"^#   ([a-z_0-9]+):", text, flags=re.MULTILINE)
    assert set(flat_keys()) <= set(shown)
    for section in (section for _, section in NESTED_SECTIONS.values()):
        assert set(keys_of(section)) <= set(inner)
    places = [shown.index(key) for key in ("model_name_or_path", "train_file", "output_dir", "lora_config", "num_gpus")]
    assert places == sorted(places)


@pytest.mark.parametrize("key", ["lora_config", "quantization_config", "fsdp"])
def test_sample_config_still_loads_with_a_section_uncommented(tmp_path, monkeypatch, key):
    monkeypatch.chdir(REPOSITORY)
    lines = (REPOSITORY / "sample_config.yaml").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"# {key}:"))
    end = start + 1
    while lines[end].startswith("#   "):
        end += 1
    lines[start:end] = [line.removeprefix("# ") for line in lines[start:end]]
    path = tmp_path / "config.yaml"
    path.write_text("\n".join(lines))
    overrides = [] if key == "lora_config" else ["--lora_config.r=8"]
    assert getattr(load_config(str(path), overrides), NESTED_SECTIONS[key][0]) is not None


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_loads_and_shrunk_runs(small_files, model_folder, example):
    # Of DeepSpeed, which is not installed, only the file is looked at.
    without_deepspeed = ["--deepspeed=null"] if "deepspeed" in example else []
    config = load_config(example, without_deepspeed)
    if config.training.optim.startswith("adamw_bnb") or config.quantization is not None:
        pytest.importorskip("bitsandbytes")
    architecture = "gpt2" if "gpt" in config.model.model_name_or_path.lower() else "llama"
    small = [f"--model_name_or_path={model_folder(architecture)}", "--max_seq_length=128", "--num_gpus=1"]
    small += ["--save_steps=2", "--eval_steps=2"]
    if config.training.optim.startswith("adamw_bnb"):
        small.append("--optim=adamw_torch")  # in 8 bits it needs a GPU
    if config.training.bf16 is True:
        small.append("--bf16=auto")
    small += without_deepspeed
    assert run_command(["--config_file", example, *small, *SHRUNK]) == 0


@pytest.mark.parametrize(
    "example", [example for example in EXAMPLES if "my_data.jsonl" in (REPOSITORY / example).read_text()]
)
def test_the_command_in_an_example_loads(small_files, example):
    header = [line.removeprefix("#").strip() for line in Path(example).read_text().splitlines() if line[:1] == "#"]
    (line,) = [line for line in header if "my_data.jsonl" in line]
    words = [("--config_file" if word == "--config" else word) for word in shlex.split(line)]
    first = words.index("--config_file")
    assert words[:first] in (["python", "sft_main.py"], ["./launch_training.sh"])
    command = read_command([*words[first:], *(["--deepspeed=null"] if "deepspeed" in example else [])])
    assert command.config_file == example
    config = load_config(command.config_file, command.overrides)
    assert config.data.train_file == "my_data.jsonl"
    assert config.data.validation_split or "validation" not in Path(example).read_text()


def llama(num_parameters, hidden_size, num_layers, intermediate_size, num_lookup_parameters=0):
    """The size of a Llama 3, by its published config."""
    return ModelFootprint(
        num_parameters=num_parameters,
        num_trainable_parameters=num_parameters,
        weight_bytes=4 * num_parameters,
        hidden_size=hidden_size,
        num_layers=num_layers,
        vocab_size=128_256,
        intermediate_size=intermediate_size,
        num_attention_heads=32,
        num_lookup_parameters=num_lookup_parameters,
    )


LLAMAS = {
    "1B": llama(1_235_814_400, 2048, 16, 8192),
    "8B": llama(8_030_261_248, 4096, 32, 14_336, 128_256 * 4096),
    "70B": llama(70_553_706_496, 8192, 80, 28_672, 128_256 * 8192),
}


def test_memory_in_the_fsdp_example_equals_the_estimate():
    example = REPOSITORY / "examples/fsdp_8b.yaml"
    config, text = load_config(str(example), [f"--dataset_path={REPOSITORY}"]), example.read_text()
    comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    training, length = config.training, config.data.max_seq_length
    rows = training.per_device_train_batch_size
    facts = MemoryFacts(
        footprint=LLAMAS["8B"],
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=2,
        tokens=rows * length,
        longest_row=length,
        weights="float32",
        mixed="bf16",
        optimizer=training.optim,
        gradient_checkpointing=training.gradient_checkpointing,
        device="cuda",
        logits_chunk_bytes=2**30,
        world_size=8,
        sharded_over=8,
    )
    sharded, unsharded = estimate_memory(facts), estimate_memory(replace(facts, sharded_over=1))
    components = (sharded.weights_bytes, sharded.gradients_bytes, sharded.optimizer_bytes, sharded.activations_bytes)
    for count in (sharded.total_bytes, unsharded.total_bytes, *components):
        assert f" {count / 2**30:.1f}" in comment
    assert estimate_memory(replace(facts, sharded_over=4)).total_bytes < 80 * 2**30


def test_deepspeed_that_would_save_no_model_is_refused(small_files, tmp_path):
    settings = tmp_path / "zero.json"
    config = load_config("examples/deepspeed_zero3.yaml", ["--deepspeed=null"])
    training = replace(config.training, extra_training_arguments={"deepspeed": str(settings)})
    for stage, more, is_refused in ((3, {}, True), (3, {GATHER_ON_SAVE: True}, False), (2, {}, False)):
        settings.write_text(json.dumps({"zero_optimization": {"stage": stage, **more}}))
        told = [text for _, text in check_deepspeed(replace(config, training=training))]
        requires = messages.REQUIRES.format(name="", key=f"{GATHER_ON_SAVE}: true")
        assert any(requires in text for text in told) == is_refused


def test_the_deepspeed_example_names_its_package_and_its_file(small_files):
    with pytest.raises(ConfigError) as raised:
        load_config("examples/deepspeed_zero3.yaml", ["--deepspeed=examples/no.json"])
    assert any(messages.NO_SUCH_FILE.format(path="examples/no.json") in problem for problem in raised.value.problems)
    document = json.loads((REPOSITORY / "examples/deepspeed_zero3.json").read_text())
    assert document["zero_optimization"]["stage"] == 3


@pytest.mark.parametrize("example", [name for name in EXAMPLES if "llama" in name and "gb.yaml" in name])
def test_memory_in_a_recipe_equals_the_estimate(example):
    """Each number of the comment: the total, its components, and the total with another batch size."""
    config, text = load_config(str(REPOSITORY / example), [f"--dataset_path={REPOSITORY}"]), Path(REPOSITORY, example)
    comment = " ".join(line.lstrip("# ") for line in text.read_text().splitlines() if line.startswith("#"))
    size = next(size for size in LLAMAS if f"-{size}-" in config.model.model_name_or_path)
    training, length = config.training, config.data.max_seq_length

    def predicted(rows, chunk_bytes=2**28):
        facts = MemoryFacts(
            footprint=LLAMAS[size],
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=2,
            tokens=rows * length,
            longest_row=length,
            documents=rows,
            weights="float32",
            mixed="bf16",
            optimizer=training.optim,
            gradient_checkpointing=training.gradient_checkpointing,
            device="cuda",
            logits_chunk_bytes=chunk_bytes,
        )
        facts = with_adapters(facts, rank=config.lora.r) if config.lora is not None else facts
        return estimate_memory(with_4bit_weights(facts) if config.quantization is not None else facts)

    def gib(num_bytes):
        return f"{num_bytes / 2**30:.1f}"

    rows = training.per_device_train_batch_size
    # As `sft.modeling.supervised_loss` chooses by the device's memory.
    estimate = predicted(rows, 2**30 if "80gb" in example else 2**28)
    assert f"Memory: {gib(estimate.total_bytes)} GiB per device, predicted, not measured" in comment
    assert re.search(rf"weights {gib(estimate.weights_bytes)} ", comment)
    assert f"activations {gib(estimate.activations_bytes)}" in comment
    assert f"logits {gib(estimate.logits_bytes)}" in comment
    others = re.findall(r"per_device_train_batch_size: (\d+), predicted ([\d.]+) GiB", comment)
    assert all(gib(predicted(int(fewer)).total_bytes) == figure for fewer, figure in others)
    (gigabytes,) = re.findall(r"one GPU with (\d+) GB", comment)
    assert estimate.total_bytes < 0.9 * int(gigabytes) * 2**30
    assert training.global_batch_size % rows == 0


def load_entry(entry):
    """An entry of `datasets` with every key spelled as the schema spells it."""
    return DatasetSource(**entry)


@pytest.mark.parametrize("snippet", [pytest.param(text, id=text.split(":")[0]) for text in snippets("yaml")])
def test_shown_yaml_runs(small_files, model_folder, snippet):
    config = small_files / "shown.yaml"
    given = yaml.safe_load(snippet)
    given.pop("dataset_columns", None)  # names columns that the small file does not have
    given.pop("chat_template_kwargs", None)  # the small template has no arguments
    data = ["--train_file=my_data.jsonl", "--validation_split=0.2"]
    for key in ("validation_file", "test_file", "forgetting_check"):
        if isinstance(given.get(key), dict):
            given[key] = dict.fromkeys(given[key], "other.jsonl")
        elif key in given:
            given[key] = "other.jsonl"
    if isinstance(given.get("validation_file"), str):
        data.pop()
    if given.get("on_too_long") == "split":
        data = ["--train_file=texts.jsonl", "--split_overlap=8", "--validation_split=0.2"]
    if "datasets" in given:
        # The shape of the entries stays; what they name is made to be there.
        given["datasets"] = [
            {"path": "my_data.jsonl", "weight": entry.get("weight", 1), "max_rows": 20}
            for entry in given["datasets"]
            if load_entry(entry)
        ]
        data = ["--validation_split=0.2"]
    config.write_text(yaml.safe_dump(given))
    load_config(str(config), ["--model_name_or_path=gpt2", *data, "--lora_config.r=4"])
    small = [
        f"--model_name_or_path={model_folder('llama')}",
        *data,
        "--max_seq_length=64",
        "--num_gpus=1",
        "--output_dir=out",
        "--save_steps=2",
        "--eval_steps=2",
    ]
    if "quantization_config" in given:
        small.append("--lora_config.r=4")
    if given.get("torch_compile"):
        small.append("--torch_compile_backend=eager")  # all of torch.compile but the code generator
    assert run_command(["--config_file", str(config), *small, *SHRUNK]) == 0


def test_shown_commands_run(small_files, tmp_path_factory):
    """In the README and in docs/, each once; a line's comment and a continued line's end belong to the shell."""
    lines = [line for block in snippets("bash") for line in block.replace("\\\n", " ").splitlines()]
    commands = dict.fromkeys(line.partition("  #")[0] for line in lines if "sft_main.py --config" in line)
    assert len(commands) >= 3
    for command in commands:
        words = shlex.split(command.rpartition("&& ")[2])
        assert words[:2] == ["python", "sft_main.py"]
        shutil.rmtree(small_files / "sft_output", ignore_errors=True)
        done = forked.run(tmp_path_factory.mktemp("terminal"), *words[2:], *SHRUNK, cwd=small_files)
        assert done.status == 0, done.err


def test_readme_python_uses_the_result(small_files, capsys):
    assert run_command(["--config_file", "sample_config.yaml", *SHRUNK]) == 0
    capsys.readouterr()
    (code,) = snippets("python", [README])
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_shown_rows_are_read_in_the_stated_format(small_files, model_folder):
    rows = [re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| `(\{.*\})` \|$", page, flags=re.MULTILINE) for page in PAGES]
    table = dict.fromkeys(row for found in rows for row in found)
    assert len(table) == 8
    from data_handler import prepare_data
    from sft.modeling.tokenizer import load_tokenizer

    for columns, row in table:
        Path("row.jsonl").write_text(row + "\n")
        config = load_config(None, [f"--model_name_or_path={model_folder('llama')}", "--train_file=row.jsonl"])
        report = prepare_data(config.data, load_tokenizer(config.model), seed=0).report
        assert report.rows_used == 1
        assert set(re.findall(r"\w+", columns)) == set(json.loads(row))


def test_shown_errors_are_those_of_the_program(tmp_path, capsys):
    config = tmp_path / "my.yaml"
    lines = [""] * 12
    lines[0], lines[6] = "model_name_or_path: gpt2", "learning_rat: 1"
    lines[1], lines[8] = "train_file: README.md", "max_seq_length: long"
    lines[10], lines[11] = "fp16: true", "bf16: true"
    config.write_text("\n".join(lines))
    (tmp_path / "README.md").write_text("")
    assert run_command(["--config_file", str(config), f"--dataset_path={tmp_path}"]) == 2
    said = capsys.readouterr().err.replace(str(config), "my.yaml")
    (expected,) = [block for block in snippets("text") if block.startswith("my.yaml:")]
    assert said == expected


@pytest.mark.slow
def test_sample_config_teaches_the_small_model(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert run_command(["--config_file", "sample_config.yaml", f"--output_dir={tmp_path / 'out'}"]) == 0
    summary = json.loads((tmp_path / "out" / "run_summary.json").read_text())
    before, after = summary["eval_before"], summary["eval_after"]
    assert before["sequence_accuracy"] == 0
    assert after["sequence_accuracy"] > 0.7
    assert after["token_accuracy"] > 0.95
    assert after["loss"] < before["loss"] / 10

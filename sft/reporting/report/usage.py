"""How to reproduce a run and how to use its model: commands and a program to copy."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from sft.configuration.command_line import program
from sft.reporting.report.records import COMPLETED, FAILED, INTERRUPTED, RUNNING, ReportRecords

MAX_PROMPT_CHARACTERS = 200


def reproduce_commands(records: ReportRecords) -> str:
    """Shell commands that repeat the run, and that resume it if it did not complete."""
    output = str(records.settings.get("output_dir"))
    config, again = str(Path(output, "resolved_config.yaml")), f"{output.rstrip('/')}-again"
    lines = [
        "# same versions, same data, from the same directory",
        *_install_commands(records.machine.versions),
        shlex.join([*program("sft_main.py"), "--config_file", config, "--output_dir", again]),
        "# the original command",
        records.command,
    ]
    if records.status in (INTERRUPTED, FAILED):
        lines += ["# resume from the latest checkpoint", f"{records.command} --resume_from_checkpoint auto"]
    return "\n".join(lines)


def _install_commands(versions: Mapping[str, str]) -> list[str]:
    """Commands that install the same packages; torch builds such as `2.13.0+cpu` come from the PyTorch index."""
    pins = {name: f"{name}=={number}" for name, number in versions.items() if name != "python"}
    build = versions.get("torch", "").partition("+")[2]
    commands = []
    if re.fullmatch(r"cpu|cu\d+|rocm[\d.]+|xpu", build):
        commands.append(f"pip install {pins.pop('torch')} --index-url https://download.pytorch.org/whl/{build}")
    if pins:
        commands.append(f"pip install {' '.join(pins.values())}")
    return commands


_HEAD = """\
{imports}

folder = {folder!r}
model = {load}
tokenizer = AutoTokenizer.from_pretrained(folder)
"""
_CHAT = """\
chat = [{{"role": "user", "content": {prompt!r}}}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
"""
_TEXT = """\
inputs = tokenizer({prompt!r}, return_tensors="pt")
"""
_TAIL = """\
answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)[0, inputs["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))"""


def use_program(records: ReportRecords) -> str:
    """A Python program that loads the model and generates an answer; empty if no model was saved."""
    if records.status != COMPLETED:
        return ""
    is_adapter = bool(records.settings.get("lora_config"))
    prompt = records.prompts[0].prompt if records.prompts else "Hello."
    # A model of images and text has no AutoModelForCausalLM.
    is_whole = records.model_class.endswith("ForConditionalGeneration")
    loader = records.model_class if is_whole else "AutoModelForCausalLM"
    load, imports = (
        f"{loader}.from_pretrained(folder)",
        f"from transformers import {', '.join(sorted((loader, 'AutoTokenizer')))}",
    )
    if is_adapter and is_whole:
        base = str(records.settings.get("model_name_or_path"))
        at = records.settings.get("model_revision")
        revision = f", revision={at!r}" if at else ""
        load = f"PeftModel.from_pretrained({loader}.from_pretrained({base!r}{revision}), folder)"
        imports = f"from peft import PeftModel\n{imports}"
    elif is_adapter:
        load = "AutoPeftModelForCausalLM.from_pretrained(folder)"
        imports = "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer"
    return (_HEAD + (_CHAT if records.is_chat else _TEXT) + _TAIL).format(
        imports=imports,
        load=load,
        folder=str(records.settings.get("output_dir")),
        prompt=prompt if len(prompt) <= MAX_PROMPT_CHARACTERS else "Hello.",
    )


def use_note(records: ReportRecords) -> str:
    """What was saved and how to use it, in one or two sentences."""
    if records.status == COMPLETED:
        is_adapter = bool(records.settings.get("lora_config"))
        kind = "The adapters (loaded on top of their base model)" if is_adapter else "The model"
        folder = str(records.settings.get("output_dir"))
        merging = shlex.join([*program("export_model.py"), folder, "--merge"])
        merge = f"; to merge them into the base model: {merging}" if is_adapter else ""
        return (
            f"{kind} and the tokenizer with its chat template are saved in output_dir. To chat with the model: "
            f"{shlex.join([*program('chat.py'), folder])}{merge}"
        )
    if records.status == RUNNING:
        return "The model is saved when the run completes."
    why = "the run failed" if records.status == FAILED else "the run was stopped"
    return f"No model was saved: {why}. To resume it, see Reproduce above."

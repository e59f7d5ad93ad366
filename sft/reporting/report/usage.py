"""How to have a run again, and how to use what it left: commands and a program to copy."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from sft.reporting.report.records import COMPLETED, FAILED, INTERRUPTED, RUNNING, ReportRecords

LONGEST_PROMPT = 200


def reproduce_commands(records: ReportRecords) -> str:
    """Commands for a shell: the run again, and how to go on where it did not come to its end."""
    output = str(records.settings.get("output_dir"))
    config = shlex.quote(str(Path(output, "resolved_config.yaml")))
    again = shlex.quote(f"{output.rstrip('/')}-again")
    lines = [
        "# with the same versions, the same data, from the same folder",
        *_install_commands(records.machine.versions),
        f"python sft_main.py --config_file {config} --output_dir {again}",
        "# as it was typed",
        records.command,
    ]
    if records.status in (INTERRUPTED, FAILED):
        lines += ["# to go on from the newest checkpoint", f"{records.command} --resume_from_checkpoint auto"]
    return "\n".join(lines)


def _install_commands(versions: Mapping[str, str]) -> list[str]:
    """What installs the same packages; builds of torch that only its own index has (`2.13.0+cpu`) come from there."""
    pins = {name: f"{name}=={number}" for name, number in versions.items() if name != "python"}
    build = versions.get("torch", "").partition("+")[2]
    commands = []
    if re.fullmatch(r"cpu|cu\d+|rocm[\d.]+|xpu", build):
        commands.append(f"pip install {pins.pop('torch')} --index-url https://download.pytorch.org/whl/{build}")
    return [*commands, f"pip install {' '.join(pins.values())}"]


_HEAD = """\
{imports}

folder = {folder!r}
model = {model_class}.from_pretrained(folder)
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
    """A Python program that loads the result and lets it answer; empty where none was saved."""
    if records.status != COMPLETED:
        return ""
    is_adapter = bool(records.settings.get("lora_config"))
    prompt = records.prompts[0].prompt if records.prompts else "Hello."
    model_class, imports = "AutoModelForCausalLM", "from transformers import AutoModelForCausalLM, AutoTokenizer"
    if is_adapter:
        model_class = "AutoPeftModelForCausalLM"
        imports = "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer"
    return (_HEAD + (_CHAT if records.is_chat else _TEXT) + _TAIL).format(
        imports=imports,
        model_class=model_class,
        folder=str(records.settings.get("output_dir")),
        prompt=prompt if len(prompt) <= LONGEST_PROMPT else "Hello.",
    )


def use_note(records: ReportRecords) -> str:
    """What there is to use, in a sentence."""
    if records.status == COMPLETED:
        is_adapter = bool(records.settings.get("lora_config"))
        kind = "The adapters, which load on top of their base model," if is_adapter else "The model"
        folder = shlex.quote(str(records.settings.get("output_dir")))
        merge = f"; to make one model of both: python export_model.py {folder} --merge" if is_adapter else ""
        return (
            f"{kind} and the tokenizer with its chat template are saved in the output folder. To talk to it: "
            f"python chat.py {folder}{merge}"
        )
    if records.status == RUNNING:
        return "The model is saved when the run has come to its end."
    why = "the run failed" if records.status == FAILED else "the run was stopped"
    return f"No model was saved: {why}. To go on, see above."

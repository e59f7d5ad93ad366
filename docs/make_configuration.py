"""Writes docs/configuration.md from the settings' declarations: `python docs/make_configuration.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

from sft.configuration.coercion import describe, record_type  # noqa: E402
from sft.configuration.keys import Key, keys_of  # noqa: E402
from sft.configuration.schema import FLAT_SECTIONS, NESTED_SECTIONS  # noqa: E402

HEAD = """\
# Every configuration key

Made by `python docs/make_configuration.py` from the declarations in `sft/configuration/schema.py`; do not edit it by hand.
`python sft_main.py --help` prints the same meanings, `--print_config` what is in force and where it was given.

The file is flat YAML; each key may stand on the command line as well, where it wins: `--learning_rate 1e-4`,
`--lora_config.r 8`. Where a unit is "steps", a step is an optimizer step. Which values suit your hardware:
[choose_settings.md](choose_settings.md).
"""
TAIL = """
## Further keys

Any other field of the installed transformers' `TrainingArguments` may stand in the file too (`adam_beta2`,
`neftune_noise_alpha`, `label_smoothing_factor`, ...). Its name and type are checked, and it is passed on.
"""


def notes() -> dict[str, list[str]]:
    """Key -> unit, why its default."""
    return yaml.safe_load((FOLDER / "configuration_notes.yaml").read_text(encoding="utf-8"))


def all_keys() -> Iterator[tuple[str, Key]]:
    """Every key by its full name, in order; those of a list's entries behind the list."""
    for section in FLAT_SECTIONS.values():
        yield from _keys_in(section, "")
    for name, (_, section) in NESTED_SECTIONS.items():
        yield from _keys_in(section, f"{name}.")


def page() -> str:
    """The text of docs/configuration.md."""
    parts = [HEAD]
    for name, section in FLAT_SECTIONS.items():
        parts.append(_table(name.capitalize(), section, ""))
    for name, (_, section) in NESTED_SECTIONS.items():
        parts.append(_table(f"`{name}`", section, f"{name}."))
    return "\n".join([*parts, TAIL.lstrip("\n")])


def _keys_in(section: type, prefix: str) -> Iterator[tuple[str, Key]]:
    for key in keys_of(section).values():
        yield f"{prefix}{key.name}", key
        record = record_type(key.annotation)
        if record is not None:
            yield from _keys_in(record, f"{key.name}[].")


def _table(title: str, section: type, prefix: str) -> str:
    lines = [f"## {title}", "", (section.__doc__ or "").strip(), ""]
    lines += ["| key | type | default | unit | meaning | why this default |", "|---|---|---|---|---|---|"]
    remarks = notes()
    for name, key in _keys_in(section, prefix):
        unit, why = remarks.get(name, ["", ""])
        default = "required" if key.required else f"`{_shown(key.default)}`"
        shown = name.removeprefix(prefix)
        cells = (f"`{shown}`", describe(key.annotation), default, unit, key.documentation, why)
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join([*lines, ""])


def _shown(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")


if __name__ == "__main__":
    (FOLDER / "configuration.md").write_text(page(), encoding="utf-8")

"""The help text and the documentation of keys."""

from __future__ import annotations

import pytest

from sft.common.errors import ConfigError
from sft.configuration import help as help_text
from sft.configuration.coercion import record_type
from sft.configuration.command_line import read_help
from sft.configuration.help import format_help, format_key_help
from sft.configuration.keys import flat_keys, keys_of
from sft.configuration.schema import (
    FLAT_SECTIONS,
    NESTED_SECTIONS,
    DatasetSource,
)


def test_every_key_is_documented_and_belongs_to_one_section():
    sections = [*FLAT_SECTIONS.values(), *(section for _, section in NESTED_SECTIONS.values())]
    sections += [record for key in flat_keys().values() if (record := record_type(key.annotation))]
    assert DatasetSource in sections
    for section in sections:
        assert section.__doc__, section
        for key in keys_of(section).values():
            assert len(key.documentation) > 10, key.name
            assert key.documentation.endswith("."), key.name
    names = [name for section in FLAT_SECTIONS.values() for name in keys_of(section)]
    assert len(names) == len(set(names))


def test_format_help_lists_every_key_with_type_default_and_meaning():
    text = format_help()
    folded = " ".join(text.split())
    for name, key in flat_keys().items():
        assert f"\n  --{name}  (" in text
        assert key.documentation in folded
    assert "  --learning_rate  (a number >= 0; default 5e-05)\n      Peak learning rate." in text
    assert "  --model_name_or_path  (a path; required)\n" in text
    assert "  --report_to  (a name or a list of names; default [tensorboard])\n" in text
    assert "  --lora_config.r  (an integer >= 1; default 16)\n      Rank of the adapters.\n" in text
    assert "  --quantization_config.load_in_4bit  (true or false; default false)\n" in text
    assert "  --datasets  (a list of mappings; default [])\n      Several sources of training rows, instead" in text
    assert "\n  datasets[].path  (a path or null; default null)\n      A file, a folder or a glob." in text
    assert (
        "\n  datasets[].weight  (a number > 0 and <= 1000; default 1.0)\n      How often each row of this source"
        in text
    )
    assert all(f"\n  datasets[].{name}  (" in text for name in keys_of(DatasetSource))
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["max_seq_length"],
            "  --max_seq_length  (an integer from 2 to 1000000000; default 1024)\n"
            "      Maximum length of a row, in tokens.\n"
            "      Unit: tokens.\n"
            "      Why this default: long enough for most chats; memory depends on the actual row lengths.",
        ),
        (["--lora-config.r"], None),
        (["lora_config.r"], "  --lora_config.r  (an integer >= 1; default 16)\n      Rank of the adapters.\n"),
        (["datasets[].path"], "  datasets[].path  (a path or null; default null)\n"),
        (["datasets"], "\n  datasets[].row_filter  (a path or null; default null)\n"),
        (["seed", "packing"], "\n  --packing  (true or false; default false)\n"),
        (
            ["lora_config"],
            "`lora_config`: train low-rank adapters (LoRA) instead of all weights.\n  --lora_config.r  (",
        ),
        (["max_length"], "max_length is called max_seq_length here:\n  --max_seq_length  ("),
        (["do_train"], "do_train is no longer needed: a run always trains."),
        (["label_names"], "label_names cannot be set: labels are made from the chat template."),
        (
            ["adam-beta2"],
            "  --adam_beta2  (a number >= 0 and < 1; default in transformers 0.999)\n      The exponential decay",
        ),
        (["neftune_noise_alpha"], "  --neftune_noise_alpha  (a number >= 0 or null; default in transformers null)\n"),
    ],
)
def test_help_of_single_keys(names, expected):
    if expected is None:  # only the first word has dashes for underscores on the command line
        expected = format_key_help([names[0].removeprefix("--").replace("-", "_")])
    assert expected in format_key_help(names)


def test_help_of_unknown_keys_suggests_others():
    with pytest.raises(ConfigError) as caught:
        format_key_help(
            ["learning_rat", "seed", "lr", "lora_config.rr", "datasets.path", "bias", "hub_strateg", "dry_run"]
        )
    assert caught.value.problems == (
        "command line: --help: unknown key 'learning_rat'. Did you mean 'learning_rate'?",
        "command line: --help: unknown key 'lr'. Use 'learning_rate' instead.",
        "command line: --help: unknown key 'lora_config.rr'. Did you mean 'lora_config.r'?",
        "command line: --help: unknown key 'datasets.path'. Did you mean 'datasets[].path'?",
        "command line: --help: unknown key 'bias'. Did you mean 'lora_config.bias'?",
        "command line: --help: unknown key 'hub_strateg'. Did you mean 'hub_strategy'?",
        "command line: --help: unknown key 'dry_run'. `python sft_main.py --help` lists all keys.",
    )


def test_help_without_the_documentation_leaves_the_notes_out(tmp_path, monkeypatch):
    monkeypatch.setattr(help_text, "_NOTES", tmp_path / "configuration_notes.yaml")
    assert format_key_help(["packing"]).endswith("      rows: adjust the learning rate.")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], None),
        (["--config_file", "a.yaml"], None),
        (["--help"], []),
        (["-h"], []),
        (["--help", "seed", "packing"], ["seed", "packing"]),
        (["--help=seed"], ["seed"]),
        (["--help", "seed", "--config_file", "a.yaml"], ["seed"]),
        (["--config_file", "a.yaml", "--help"], []),
    ],
)
def test_the_keys_after_help(arguments, expected):
    assert read_help(arguments) == expected

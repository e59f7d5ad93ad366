"""The help text and the documentation of keys."""

from __future__ import annotations

from sft.configuration.coercion import record_type
from sft.configuration.help import format_help
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

"""Commands and programs to copy from a report."""

from __future__ import annotations

import ast
import dataclasses

import pytest

from sft.reporting.report.facts import find_facts
from sft.reporting.report.usage import reproduce_commands
from tests.support.report_records import records, untrusted_records


@pytest.mark.parametrize(
    ("torch", "expected"),
    [
        ("2.13.0", ["pip install torch==2.13.0 peft==1.0"]),
        (
            "2.13.0+cpu",
            [
                "pip install torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu",
                "pip install peft==1.0",
            ],
        ),
        (
            "2.13.0+cu130",
            [
                "pip install torch==2.13.0+cu130 --index-url https://download.pytorch.org/whl/cu130",
                "pip install peft==1.0",
            ],
        ),
        ("2.13.0+ours", ["pip install torch==2.13.0+ours peft==1.0"]),
    ],
)
def test_reproduce_commands_install_the_same_build_of_torch(torch, expected):
    found = records()
    machine = dataclasses.replace(found.machine, versions={"python": "3.11", "torch": torch, "peft": "1.0"})
    lines = reproduce_commands(dataclasses.replace(found, machine=machine)).splitlines()
    assert [line for line in lines if line.startswith("pip ")] == expected


def test_usage_program_is_valid_python():
    program = ast.parse(find_facts(records(**untrusted_records())).use)
    assert any(isinstance(node, ast.ImportFrom) and node.module == "transformers" for node in program.body)

"""The pages under docs/ and the README: links lead somewhere, tables are current, commands and settings exist."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex

import pytest

from sft.configuration.coercion import describe
from sft.configuration.help import all_keys, read_notes
from sft.configuration.keys import flat_keys
from sft.configuration.schema import NESTED_SECTIONS
from tests.support.paths import REPOSITORY

PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md"), *(REPOSITORY / "benchmarks").glob("*.md")]
)
SCRIPTS = r"(?:python|\./launch_training\.sh|sbatch)"


def maker(name="make_configuration"):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(page) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_configuration_page_is_current():
    written = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == maker().page(), "run python docs/make_configuration.py"


def test_schema_for_editors_is_current():
    """With another transformers than it was made with, what is read from there may differ."""
    text = (REPOSITORY / "docs" / "config.schema.json").read_text(encoding="utf-8")
    written, made = json.loads(text), json.loads(maker().schema())
    if written["$comment"] == made["$comment"]:
        assert text == maker().schema(), "run python docs/make_configuration.py"
    own = {*flat_keys(), *NESTED_SECTIONS} - {"optim", "lr_scheduler_type"}
    for name in sorted(own):
        assert written["properties"].get(name) == made["properties"][name], "run python docs/make_configuration.py"


def test_the_table_of_architectures_has_those_that_are_tried():
    module, page = maker("make_architectures"), REPOSITORY / "docs" / "architectures.md"
    rows = [line[2:-2].split(" | ") for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert [tuple(row[:3]) for row in rows[2:]] == list(map(module.described, module.ARCHITECTURES.values()))
    assert tuple(rows[0]) == module.COLUMNS


@pytest.mark.slow
def test_the_table_of_architectures_is_current():
    written = (REPOSITORY / "docs" / "architectures.md").read_text(encoding="utf-8")
    assert written == maker("make_architectures").page(), "run python docs/make_architectures.py"


def test_every_key_has_its_reason_and_every_number_its_unit():
    notes, keys = read_notes(), dict(all_keys())
    assert set(notes) == set(keys), "add the key to docs/configuration_notes.yaml, or take it out there"
    without_unit = {"learning_rate", "weight_decay", "seed", "lora_config.lora_alpha"}
    for name, key in keys.items():
        unit, why = notes[name]
        assert why, f"{name}: say in docs/configuration_notes.yaml why this default"
        is_number = any(word in describe(key.annotation) for word in ("number", "integer"))
        assert bool(unit) == (is_number and name not in without_unit), f"{name}: unit {unit!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_point_to_existing_files_and_headings(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(place), f"{page.name}: no heading for {target}"


def test_every_page_is_linked_from_the_readme():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in readme, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_existing_scripts(page):
    for block in re.findall(r"```(?:bash|sh)?\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        for line in block.splitlines():
            for script in re.findall(rf"(?:^|&& ){SCRIPTS}(?: --\S+)* (\S+\.(?:py|sh))", line):
                assert (REPOSITORY / script).is_file(), f"{page.name}: {line}"
            if line.startswith("./"):
                assert (REPOSITORY / shlex.split(line)[0]).is_file(), f"{page.name}: {line}"


def test_files_named_in_contributing_exist():
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:sft|tests|docs|benchmarks)/[\w/.]+|\w+\.(?:py|toml|yaml))`", text))
    assert len(paths) > 30
    assert [path for path in sorted(paths) if not (REPOSITORY / path).exists()] == []


def test_messages_in_troubleshooting_are_those_of_the_program():
    """Each message in troubleshooting occurs in the code, except for its variable parts (`...`, numbers, N)."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in REPOSITORY.rglob("*.py") if "tests" not in path.parts)
    code = re.sub(r"\"\s*\n\s*f?\"", "", code)  # texts that are written over several lines
    code = re.sub(r"\{[^{}]*\}", "...", code)
    text = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    seen = [
        span
        for cell in re.findall(r"^\| ([^|]*) \|", text, flags=re.MULTILINE)
        for span in re.findall("`([^`]+)`", cell)
    ]
    assert len(seen) > 25
    for message in seen:
        if message == "We couldn't connect to":  # a message of a library
            continue
        for part in re.split(r"\.\.\.|\[\.\.\.\]|\bN\b|(?<![\w.])\d+", message):
            part = part.strip(" :`[]()")
            assert part in code, f"{message!r}: no {part!r} in the code"

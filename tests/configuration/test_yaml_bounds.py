"""Bounds of YAML values: each node is visited once, whatever it stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from config_manager import load_config
from sft.common.errors import ConfigError
from sft.configuration.yaml_bounds import MAX_LEVELS, MAX_REPEATED, YamlBounds, load_bounded
from sft.reporting.run_record import read_run_record
from tests.support import messages
from tests.support.configurations import load, problems_of, value_of

REPEATED = f"its aliases (*name) repeat more than {MAX_REPEATED:,} values and characters; write out what is meant."


def laughs(open_: str = "[", close: str = "]", item: str = "{}", levels: int = 9) -> str:
    """Ten to the power of `levels` values, in the flow style."""
    parts = [f"a0: &a0 {open_}{', '.join(item.format('x') for _ in range(10))}{close}"]
    for level in range(1, levels):
        inner = ", ".join(item.format(f"*a{level - 1}") for _ in range(10))
        parts.append(f"a{level}: &a{level} {open_}{inner}{close}")
    return "{" + ", ".join(parts) + "}"


def merged(levels: int = 9) -> str:
    return "".join(
        f"b{i}: &b{i} {{<<: [{', '.join([f'*b{i - 1}'] * 10 if i else ['{x: 1}'])}]}}\n" for i in range(levels)
    )


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        (f"lr_scheduler_kwargs: {laughs()}\n", "lr_scheduler_kwargs", 3),
        (f"model_init_kwargs: {{a: {laughs()}}}\n", "model_init_kwargs", 3),
        (f"lora_config: {{r: {laughs()}}}\n", "lora_config.r", 3),
        (f"datasets: [{{path: {laughs()}}}]\n", "datasets", 3),
        (f"banana: {laughs()}\n", "banana", 3),
        (
            "lr_scheduler_kwargs: {long: &long " + "x" * 3000 + ", more: [" + ", ".join(["*long"] * 8) + "]}\n",
            "lr_scheduler_kwargs",
            3,
        ),
    ],
    ids=["kwargs", "inside a mapping", "in a section", "in a dataset", "unknown key", "a long string"],
)
def test_aliases_that_repeat_too_much_are_one_line(text, key, line):
    assert f"my.yaml:{line}: {key}: {REPEATED}" in problems_of(text)


@pytest.mark.parametrize("text", [f"? {laughs()}\n: 1\n", f"lr_scheduler_kwargs: {{? {laughs()} : 1}}\n", merged()])
def test_aliases_inside_keys_and_merge_keys_are_not_expanded(text):
    assert all(len(problem) < 300 for problem in problems_of(text))


def test_aliases_on_the_command_line_are_bounded():
    assert problems_of("", "--lr_scheduler_kwargs", laughs()) == [f"command line: lr_scheduler_kwargs: {REPEATED}"]


def test_usual_aliases_are_read():
    config = load("lr_scheduler_kwargs: {a: &a [1, 2], b: *a, c: [*a, *a]}\nrun_name: &n tiny\nwandb_project: *n\n")
    assert value_of(config, "lr_scheduler_kwargs") == {"a": [1, 2], "b": [1, 2], "c": [[1, 2], [1, 2]]}
    assert value_of(config, "wandb_project") == "tiny"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("lr_scheduler_kwargs: &a {b: [{c: *a}]}\n", "lr_scheduler_kwargs.b[0].c"),
        ("lora_config: &a {r: *a}\n", "lora_config.r.r"),
        ("lr_scheduler_kwargs: &a [&b [*a, *b], *b]\n", "lr_scheduler_kwargs[0][0]"),
    ],
)
def test_a_value_that_contains_itself_is_one_line(text, name):
    assert problems_of(text) == [f"my.yaml:3: {name}: refers to itself."]


@pytest.mark.parametrize("levels", [MAX_LEVELS - 2, MAX_LEVELS, MAX_LEVELS + 100, 4 * MAX_LEVELS])
@pytest.mark.parametrize("pair", ["[]", "{}"])
@pytest.mark.parametrize("on_command_line", [False, True])
def test_deep_nesting_is_one_line(levels, pair, on_command_line):
    opened = "[" if pair == "[]" else "{a: "
    value = "{a: " + opened * levels + "1" + pair[1] * levels + "}"
    given = ("", "--lr_scheduler_kwargs", value) if on_command_line else (f"lr_scheduler_kwargs: {value}\n",)
    if levels < MAX_LEVELS:
        load(*given)
    else:
        (problem,) = problems_of(*given)
        assert "\n" not in problem
        assert len(problem) < 300
        assert messages.NESTED_TOO_DEEPLY in problem


def test_each_node_is_visited_once(monkeypatch):
    node = yaml.compose("{" + ", ".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 10 if i else 'x, '}]" for i in range(4)) + "}")
    bounds = YamlBounds()
    visits = []
    visit = YamlBounds._visit

    def counted(self, name, node):
        visits.append(id(node))
        return visit(self, name, node)

    monkeypatch.setattr(YamlBounds, "_visit", counted)
    bounds.check("x", node)
    assert len(visits) == 1 + 8 + 1 + 30  # the mapping, its keys and values, what stands in the lists


@pytest.mark.parametrize("text", [laughs(), "&a [*a]", "[" * 400 + "]" * 400, "[" * 150 + "]" * 150])
def test_a_run_record_is_bounded_too(text, tmp_path: Path):
    with pytest.raises(ValueError, match=r"aliases|itself|deeply"):
        load_bounded(text)
    (tmp_path / "resolved_config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"resolved_config\.yaml: {messages.CANNOT_BE_READ}"):
        read_run_record(tmp_path)


@pytest.mark.parametrize("text", ["", "a: 1", "{a: &x [1, 2.5, null, yes, 2024-01-01], b: *x}", "- 1\n- 'b'"])
def test_load_bounded_reads_as_safe_load(text):
    assert load_bounded(text) == yaml.safe_load(text)


@pytest.mark.parametrize("text", ["# " + "x" * 2**20, "run_name: " + "x" * 2**20, "key: 1\n" * 200_000])
def test_a_large_file_is_not_read(tmp_path, text):
    (tmp_path / "my.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"my.yaml: has 1,\d{3},\d{3} bytes; a configuration has at most 1,048,576"):
        load_config(str(tmp_path / "my.yaml"), [])


@pytest.mark.parametrize("text", ["max_steps: 1000000000000000000000000", "num_train_epochs: 1e300"])
def test_numbers_of_steps_are_bounded(text):
    (problem,) = problems_of(text)
    assert "is out of range; " in problem


def test_the_escapes_that_json_writes_for_one_character_are_that_character():
    assert value_of(load('run_name: "a\\ud83d\\ude00"\n'), "run_name") == "a😀"

"""Templates escape what they print, and are in the installed package."""

from __future__ import annotations

import tomllib

import pytest
from jinja2 import UndefinedError

from sft.common.markdown import Markdown
from sft.reporting.templates import html_environment, markdown_environment
from tests.support.paths import REPOSITORY


def test_html_templates_escape_text_but_not_markup(tmp_path):
    (tmp_path / "t").write_text("{% macro bold(text) %}<b>{{ text }}</b>{% endmacro %}{{ bold(text) }} {{ 1 }}")
    template = html_environment(tmp_path).get_template("t")
    assert template.render(text="<i>\x1b\u202e") == "<b>&lt;i&gt;\\x1b\\u202e</b> 1"


def test_markdown_templates_escape_text_but_not_markdown(tmp_path):
    (tmp_path / "t").write_text("**{{ text }}** {{ given }}\n{{ text | fenced }}\n")
    template = markdown_environment(tmp_path).get_template("t")
    assert template.render(text="*a*", given=Markdown("*b*")) == "**\\*a\\*** *b*\n```text\n*a*\n```\n"


@pytest.mark.parametrize("environment", [html_environment, markdown_environment])
def test_templates_refuse_a_missing_value(tmp_path, environment):
    (tmp_path / "t").write_text("{{ missing }}")
    with pytest.raises(UndefinedError, match="missing"):
        environment(tmp_path).get_template("t").render()


def test_every_template_is_package_data():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["*"]
    folders = [path for path in (REPOSITORY / "sft").glob("**/templates") if path.is_dir()]
    files = {path for folder in folders for path in folder.iterdir() if path.is_file() and path.suffix != ".py"}
    names = {path.name for path in files}
    assert {"report.html.jinja", "report.md.jinja", "report.css", "model_card.md.jinja"} <= names
    assert files <= {path for pattern in patterns for path in (REPOSITORY / "sft").glob(pattern)}

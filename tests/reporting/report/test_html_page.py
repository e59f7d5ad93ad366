"""`report.html`: well-formed, complete, and untrusted text stays text."""

from __future__ import annotations

import re
import shlex
from xml.etree import ElementTree

import pytest

from sft.configuration.command_line import program
from sft.reporting.report.facts import SHOWN_PROMPTS, find_facts
from sft.reporting.report.html_page import report_html
from sft.reporting.report.markdown_page import report_markdown
from sft.reporting.report.records import AnsweredPrompt, StepAnswer
from tests.support.report_records import (
    data,
    evaluation,
    falling,
    in_order,
    records,
    result,
    split,
    train_event,
    untrusted_records,
    with_experts,
    words,
)


def page_of(**changed):
    """The page as text and as a tree; which only well-formed XML has."""
    text = report_html(find_facts(records(**changed)))
    return text, ElementTree.fromstring(text)


def test_page_describes_the_run():
    text, tree = page_of()
    found = words(tree.find("body"))
    for fact in (
        "a-run",
        "completed",
        "a/model",
        "Did it learn?",
        "Yes. The validation loss fell.",
        "Validation loss 3.0000 before",
        "100 of 100",
        "2 min 5 s",
        "4 rows = 2 per device x 2 accumulated x 1 process",
        "The capital of France?",
        "Hm.",
        "2,000",
        "500 (25.0%)",
        "my.yaml:1",
        "A processor",
        "torch",
        "c" * 64,
        "1" * 64,
        f"{shlex.join(program('sft_main.py'))} --config_file out/resolved_config.yaml --output_dir out-again",
        "pip install torch==2.13.0",
        f"{shlex.join(program('chat.py'))} out",
        "AutoModelForCausalLM.from_pretrained(folder)",
        "Answers in between (1)",
        "ended with an end token",
    ):
        assert fact in found, fact
    assert len(text) < 200_000


def test_every_section_is_in_the_navigation():
    _, tree = page_of()
    links = [link.get("href") for link in tree.findall(".//nav/a")]
    assert links == [f"#{section.get('id')}" for section in tree.iter("section")]


def test_a_page_of_a_mixture_has_its_experts():
    text, tree = page_of(events=in_order(falling(), [with_experts(evaluation(100, 1.0))]))
    links = [link.get("href") for link in tree.findall(".//nav/a")]
    assert links == [f"#{section.get('id')}" for section in tree.iter("section")]
    assert "#experts" in links
    assert "<b>Expert load</b>" in text
    assert "<td>1 of 4</td>" in text


def test_page_needs_no_network_and_no_script():
    text, tree = page_of(status="running", result=None)
    tags = {node.tag.rpartition("}")[2] for node in tree.iter()}
    assert not tags & {"script", "link", "img", "iframe", "object", "form", "base"}
    assert not re.search(r'(src|href)="(?!#)', text)
    assert not re.search(r"url\(|@import", text)
    for known in ("http://www.w3.org/2000/svg", "http-equiv", "--index-url https://download.pytorch.org/whl/cpu"):
        text = text.replace(known, "")  # the last is a command to copy
    assert "http" not in text
    policy = tree.find("head/meta[@http-equiv='Content-Security-Policy']").get("content")
    assert policy.startswith("default-src 'none'")


@pytest.mark.parametrize(("status", "reloads"), [("running", 1), ("completed", 0), ("interrupted", 0), ("failed", 0)])
def test_page_reloads_itself_only_while_the_run_runs(status, reloads):
    text, tree = page_of(status=status, result=None, failure="No space left.")
    assert len(tree.findall("head/meta[@http-equiv='refresh']")) == reloads
    assert ("AutoModelForCausalLM" in text) == (status == "completed")
    assert ("--resume_from_checkpoint auto" in text) == (status in ("interrupted", "failed"))


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_page_shows_untrusted_text_as_text(status):
    text, tree = page_of(**untrusted_records(), status=status)
    assert "<script" not in text.lower()
    assert words(tree).count("<script>alert(1)</script> & \"quotes' ]]> -->") >= 12
    assert text.isprintable() or not set(text) & {"\x1b", "\x00", "\ud800", "\u202e"}
    text.encode()


@pytest.mark.parametrize(
    "changed",
    [
        {"events": [], "result": None, "status": "running", "step": 0, "prompts": ()},
        {"events": [train_event(1, 1.0)], "result": None, "status": "running", "step": 1},
        {"events": [{"step": 3, "loss": None}], "result": None, "status": "failed", "failure": "No."},
        {"events": [evaluation(0, None), evaluation(5, None)], "result": result(before=None, after=None)},
        {"data": data(has_validation=False), "events": falling()},
        {"data": data(train=split(lengths=None, tokens=0, supervised_tokens=0, rows_used=0))},
        {"prompts": (AnsweredPrompt(prompt="", reference="", answers=(StepAnswer(step=4, text=""),)),)},
        {"events": in_order(falling(steps=5000, every=1), [evaluation(0, 1e9), evaluation(5000, 1e-9)])},
    ],
)
def test_reports_of_runs_with_little_or_much_data(changed):
    text, _ = page_of(**changed)
    assert len(text) < 400_000
    assert report_markdown(find_facts(records(**changed)))


def test_page_shows_the_first_prompts_and_their_number():
    many = tuple(
        AnsweredPrompt(prompt=f"p{n}", reference=None, answers=(StepAnswer(step=0, text="a"),)) for n in range(40)
    )
    _, tree = page_of(prompts=many)
    assert len(tree.findall(".//article[@class='card sample']")) == SHOWN_PROMPTS
    assert f"The first {SHOWN_PROMPTS} of 40 prompts." in words(tree)


def test_page_of_adapters_shows_how_to_load_them():
    settings = {**records().settings, "lora_config": {"r": 4}}
    assert "from peft import AutoPeftModelForCausalLM" in page_of(settings=settings)[0]
    assert "apply_chat_template" not in page_of(is_chat=False)[0].partition("Usage</h2>")[2]

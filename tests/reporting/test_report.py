"""The report of a run: well-formed, complete, and nothing out of the data acts in it."""

from __future__ import annotations

import ast
import dataclasses
import json
import logging
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from config_manager import load_config
from sft.common.data_records import DroppedRow, LengthReport, RowProblem, RowSource, TrainingData
from sft.common.run_records import BatchPlan, DistributedContext, SampleAnswer
from sft.reporting.report.curves import find_curves
from sft.reporting.report.facts import SHOWN_PROMPTS, find_facts
from sft.reporting.report.html_page import report_html
from sft.reporting.report.markdown_page import report_markdown
from sft.reporting.report.markup import Markup, element, joined, shown
from sft.reporting.report.records import AnsweredPrompt, StepAnswer, answers_of, read_answers
from sft.reporting.report.svg import curve_svg, histogram_svg, short, thinned
from sft.reporting.report.usage import reproduce_commands
from sft.training.run_report import RunReport
from tests.support.parts import REPOSITORY, build_model
from tests.support.report_records import data, evaluation, falling, in_order, records, result, split, train_event

NASTY = "<script>alert(1)</script> & \"quotes' ]]> --> `|` \x1b[31m\x00 \ud800 \u202e ```\n# head"


def page_of(**changed):
    """The page as text and as a tree; to be a tree it must be well-formed."""
    text = report_html(find_facts(records(**changed)))
    return text, ElementTree.fromstring(text)


def words(tree):
    return re.sub(r"\s+", " ", "".join(tree.itertext()))


def test_page_says_what_the_run_was():
    text, tree = page_of()
    found = words(tree.find("body"))
    for fact in (
        "a-run", "completed", "a/model", "Did it learn?", "Yes. It predicts rows", "Validation loss 3.0000 before",
        "100 of 100", "2 min 5 s", "4 rows = 2 a device x 2 accumulated x 1 process", "The capital of France?",
        "Hm.", "2,000", "500 (25.0%)", "my.yaml:1", "A processor", "torch", "c" * 64, "1" * 64,
        "python sft_main.py --config_file out/resolved_config.yaml --output_dir out-again", "pip install torch==2.13.0",
        "python chat.py out",
        "AutoModelForCausalLM.from_pretrained(folder)", "Answers in between (1)", "ended by itself",
    ):  # fmt: skip
        assert fact in found, fact
    assert len(text) < 200_000


@pytest.mark.parametrize(
    ("torch", "expected"),
    [
        ("2.13.0", ["pip install torch==2.13.0 peft==1.0"]),
        ("2.13.0+cpu", [
            "pip install torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu", "pip install peft==1.0",
        ]),
        ("2.13.0+cu130", [
            "pip install torch==2.13.0+cu130 --index-url https://download.pytorch.org/whl/cu130",
            "pip install peft==1.0",
        ]),
        ("2.13.0+ours", ["pip install torch==2.13.0+ours peft==1.0"]),
    ],
)  # fmt: skip
def test_the_same_build_of_torch_is_installed(torch, expected):
    found = records()
    machine = dataclasses.replace(found.machine, versions={"python": "3.11", "torch": torch, "peft": "1.0"})
    lines = reproduce_commands(dataclasses.replace(found, machine=machine)).splitlines()
    assert [line for line in lines if line.startswith("pip ")] == expected


def test_every_section_stands_in_the_navigation():
    _, tree = page_of()
    links = [link.get("href") for link in tree.findall(".//nav/a")]
    assert links == [f"#{section.get('id')}" for section in tree.iter("section")]


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


def nasty_records():
    bad = DroppedRow(source=RowSource(file=f"/data/{NASTY}", line=3), problem=RowProblem(reason=NASTY, message=NASTY))
    prompt = AnsweredPrompt(
        prompt=NASTY, reference=NASTY, answers=(StepAnswer(step=0, text=NASTY), StepAnswer(step=9, text=NASTY))
    )
    train = split(name=f"/data/{NASTY}", rows_read=101, rows_dropped={NASTY: 1}, dropped_examples=(bad,))
    return {
        "name": NASTY, "data": data(train=train), "prompts": (prompt,), "given": {"output_dir": NASTY},
        "settings": {"output_dir": NASTY, "model_name_or_path": NASTY}, "settings_yaml": NASTY, "command": NASTY,
        "failure": NASTY, "written_at": NASTY, "model_class": NASTY, "data_digests": {"train": NASTY},
    }  # fmt: skip


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_page_shows_what_it_is_given_as_text(status):
    text, tree = page_of(**nasty_records(), status=status)
    assert "<script" not in text.lower()
    assert words(tree).count("<script>alert(1)</script> & \"quotes' ]]> -->") >= 12
    assert text.isprintable() or not set(text) & {"\x1b", "\x00", "\ud800", "\u202e"}
    text.encode()


def test_markdown_shows_what_it_is_given_as_text():
    text = report_markdown(find_facts(records(**nasty_records())))
    text.encode()
    assert not set(text) & {"\x1b", "\x00", "\ud800", "\u202e"}
    outside = outside_of_fences(text)
    assert not re.search(r"(?<!\\)<script", outside)
    assert "# head" not in outside.splitlines()
    rows = [line for line in outside.splitlines() if line.startswith("|")]
    for line, before in zip(rows[1:], rows, strict=False):
        if line.startswith("| ---"):
            assert cells(line) == cells(before)


def cells(line):
    return len(re.findall(r"(?<!\\)\|", line))


def outside_of_fences(text):
    """The lines that Markdown reads, by its own rule: a fence is closed by one at least as long."""
    kept, fence = [], ""
    for line in text.splitlines():
        found = re.match(r"(`{3,})(.*)$", line)
        if fence:
            fence = "" if found and len(found[1]) >= len(fence) and not found[2].strip() else fence
        elif found:
            fence = found[1]
        else:
            kept.append(line)
    return "\n".join(kept)


def test_markdown_says_what_the_page_says():
    text = report_markdown(find_facts(records()))
    for verdict in find_facts(records()).verdicts:
        assert f"**{verdict.question}** {verdict.sentence}" in text
    for fact in ("| validation loss | 3.0000 | 1.0000 |", "| rows read | 100 | 100 |", "before  Hm.  [did not end]",
                 "step 100 Paris.", "data    Paris.", "loss, training", "3 -> 0.5 nats a token"):  # fmt: skip
        assert fact in text, fact


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
def test_reports_of_runs_that_have_little_or_much_to_tell(changed):
    text, _ = page_of(**changed)
    assert len(text) < 400_000
    assert report_markdown(find_facts(records(**changed)))


def test_page_shows_the_first_prompts_and_says_how_many_there_are():
    many = tuple(
        AnsweredPrompt(prompt=f"p{n}", reference=None, answers=(StepAnswer(step=0, text="a"),)) for n in range(40)
    )
    _, tree = page_of(prompts=many)
    assert len(tree.findall(".//article[@class='card sample']")) == SHOWN_PROMPTS
    assert f"The first {SHOWN_PROMPTS} of 40 prompts." in words(tree)


def test_page_of_adapters_tells_how_to_load_them():
    settings = {**records().settings, "lora_config": {"r": 4}}
    assert "from peft import AutoPeftModelForCausalLM" in page_of(settings=settings)[0]
    assert "apply_chat_template" not in page_of(is_chat=False)[0].partition("Use</h2>")[2]


def test_program_of_the_page_is_python():
    program = ast.parse(find_facts(records(**nasty_records())).use)
    assert any(isinstance(node, ast.ImportFrom) and node.module == "transformers" for node in program.body)


def test_element_escapes_all_but_markup():
    assert element("p", "<b>", Markup("<i/>"), 3, None, class_='a"b') == '<p class="a&quot;b">&lt;b&gt;<i/>3</p>'
    assert joined("a", "<") == "a&lt;"
    assert element("meta", name="x") == '<meta name="x"/>'
    assert shown("a\x1b\u202eb\n\t\ud800ä😀") == "a\\x1b\\u202eb\n\t\\ud800ä😀"


def test_curves_choose_their_scale_and_mark_the_best():
    wide = find_curves(in_order(falling(first=5.0, last=0.01), [evaluation(0, 5.0), evaluation(50, 0.3)]))
    assert (wide[0].title, wide[0].is_log, wide[0].marked) == ("Loss", True, (50, 0.3))
    narrow = find_curves(falling(first=2.0, last=1.0))
    assert (narrow[0].is_log, narrow[0].marked) == (False, None)
    assert [curve.title for curve in narrow] == [
        "Loss", "Learning rate", "Gradient norm", "Throughput", "Memory", "Utilization",
    ]  # fmt: skip


def test_curve_stands_within_its_picture_and_tells_its_figures():
    for curve in find_curves(in_order(falling(), [evaluation(0, 3.0), evaluation(50, 2.0)])):
        tree = ElementTree.fromstring(curve_svg(curve))
        _, _, width, height = map(float, tree.get("viewBox").split())
        for path in tree.iter("{http://www.w3.org/2000/svg}path"):
            for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path.get("d")):
                assert 0 <= float(x) <= width
                assert 0 <= float(y) <= height
        told = [title.text for title in tree.iter("{http://www.w3.org/2000/svg}title")]
        assert told
        if curve.title == "Loss":
            assert "step 50\ntraining: 1.8158 nats a token\nvalidation: 2 nats a token\nbest validation" in told


def test_histogram_has_a_bar_for_each_bin():
    lengths = LengthReport(
        median=20, p90=30, p95=35, p99=40, longest=45, bin_edges=(10, 20, 30, 46), bin_counts=(40, 0, 10)
    )
    tree = ElementTree.fromstring(histogram_svg(lengths, 32))
    told = [title.text for title in tree.iter("{http://www.w3.org/2000/svg}title")]
    assert told == ["10 to 19 tokens: 40 rows", "20 to 29 tokens: 0 rows", "30 to 45 tokens: 10 rows"]
    assert "max_seq_length 32" in words(tree)
    assert "max_seq_length" not in words(ElementTree.fromstring(histogram_svg(lengths, 256)))


def test_thinned_keeps_ends_and_peaks():
    points = [(float(x), 1.0) for x in range(10_000)]
    points[5001] = (5001.0, 99.0)
    kept = thinned(points, 100)
    assert len(kept) <= 101
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert (5001.0, 99.0) in kept
    assert thinned(points[:7], 100) == points[:7]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.002, "0.002"), (2e-5, "2e-5"), (12_500, "12.5k"), (3e6, "3M"), (1500, "1,500")]
)
def test_short_numbers(value, text):
    assert short(value) == text


def test_read_answers_by_prompt_and_step(tmp_path):
    path = tmp_path / "samples.jsonl"
    assert read_answers(path) == ()
    lines = [
        {"step": 0, "prompt": "a", "answer": "1", "ended": False, "reference": "r"},
        {"step": 0, "prompt": "b", "answer": "2", "ended": True, "reference": None},
        {"step": 5, "prompt": "a", "answer": "old", "ended": True, "reference": "r"},
        {"step": 5, "prompt": "a", "answer": "new\u2028line", "ended": True, "reference": "r"},
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text + '{"step": 9, "prom', encoding="utf-8")
    first, second = read_answers(path)
    assert (first.prompt, first.reference, second.reference) == ("a", "r", None)
    assert first.answers == (
        StepAnswer(step=0, text="1", ended=False),
        StepAnswer(step=5, text="new\u2028line", ended=True),
    )


def test_answers_of_a_result_without_a_file():
    (prompt,) = answers_of([SampleAnswer(prompt="p", before="x", after="y", reference="z")], 7)
    assert [(answer.step, answer.text, answer.ended) for answer in prompt.answers] == [(0, "x", None), (7, "y", None)]


# The files


@pytest.fixture(scope="module")
def tiny_model():
    return build_model("llama")


def report_into(folder, model, *, rank=0):
    train_file = REPOSITORY / "examples/data/orders_train.jsonl"
    config = load_config(
        None, [f"--output_dir={folder}", "--model_name_or_path=examples/tiny-chat", f"--train_file={train_file}"]
    )
    plan = BatchPlan(
        per_device_train_batch_size=1, gradient_accumulation_steps=1, world_size=1, steps_per_epoch=10, total_steps=10
    )
    return RunReport(
        config, TrainingData(train=None, validation=None, report=data(has_validation=False)),
        DistributedContext(rank=rank), model=model, plan=lambda: plan, bad_steps=lambda: 0, data_digests={},
        command="python sft_main.py",
    )  # fmt: skip


def state(step):
    return SimpleNamespace(global_step=step)


def test_report_is_written_as_the_run_goes_on_and_tells_a_failure(tmp_path, tiny_model):
    report = report_into(tmp_path, tiny_model)
    report.on_train_begin(None, state(0), None)
    assert "Running: step 0 of 10." in (tmp_path / "report.md").read_text()
    report.on_save(None, state(4), None)
    assert "Running: step 4 of 10." in (tmp_path / "report.md").read_text()
    report.on_step_end(None, state(6), None)
    with pytest.raises(OSError, match="No space"), report.told_of_failure():
        raise OSError("No space left on device")
    text = (tmp_path / "report.html").read_text()
    assert "Failed at step 6 of 10." in text
    assert "No space left on device" in text
    assert 'http-equiv="refresh"' not in text


def test_report_that_cannot_be_written_is_one_warning_and_no_more(tmp_path, tiny_model, caplog):
    report = report_into(tmp_path, tiny_model)
    (tmp_path / "report.html").mkdir()
    with caplog.at_level(logging.WARNING, logger="sft.train"):
        for step in (1, 2, 3):
            report.on_evaluate(None, state(step), None)
    (line,) = caplog.messages
    assert "report.html cannot be written" in line
    assert "\n" not in line


def test_report_of_a_model_that_tells_nothing_does_not_end_the_run(tmp_path, caplog):
    report = report_into(tmp_path, object())
    with caplog.at_level(logging.WARNING, logger="sft.train"):
        report.on_train_begin(None, state(0), None)
        report.finish(result())
    assert [message.partition("cannot be written")[1] for message in caplog.messages] == ["cannot be written"] * 2


def test_report_is_the_main_process_s_alone(tmp_path, tiny_model):
    report = report_into(tmp_path, tiny_model, rank=1)
    report.on_train_begin(None, state(0), None)
    report.on_save(None, state(1), None)
    report.finish(result())
    assert list(tmp_path.iterdir()) == []

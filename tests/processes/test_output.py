"""What is written to a terminal or a log is masked and visible, from every command."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress

import pytest

import chat
import compare_runs
import export_model
import sft_main
from sft.common.errors import DataError
from sft.processes.exit_records import print_problems
from sft.processes.live_line import LiveLine
from sft.processes.logs import configure_logging, rank_log
from sft.processes.output import SafeFormatter

HOSTILE = {
    "escape": "\x1b]0;pwned\x07\x1b[31m",
    "C1": "\x9b31m\x85",
    "bidi": "\u202e\u2066\u2069\u200f",
    "back": "\rOK\b\b",
    "surrogate": "\udcff\udc9b",
    "unpaired": "\ud800",
    "separator": "\u2028\u2029\x0b\x0c",
    "tags": "\U000e0041\ufeff\u200b",
    "line": "a\nINFO all is well",
    "null": "\x00\x7f",
}
ALLOWED = {"\n"}


def acts(text: str) -> set[str]:
    """The characters of a text that are not visible."""
    return {character for character in text if not character.isprintable()} - ALLOWED


@pytest.fixture(params=HOSTILE)
def hostile(request) -> str:
    return HOSTILE[request.param]


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """The log's handlers and Python's own hook, as they were."""
    root, hook = logging.getLogger("sft"), sys.excepthook
    before, level, propagates = list(root.handlers), root.level, root.propagate
    yield
    root.handlers[:], sys.excepthook, root.propagate = before, hook, propagates
    root.setLevel(level)


def test_the_log_its_files_and_exceptions(hostile, capsys, tmp_path):
    configure_logging()
    log = logging.getLogger("sft.train")
    with suppress(DataError), rank_log(str(tmp_path)):
        log.info("column %s", hostile)
        log.info(f"column {hostile}")
        try:
            raise ValueError(hostile)
        except ValueError:
            log.exception("failed")
        raise DataError(f"x.csv: column {hostile}")
    shown, written = capsys.readouterr().out, (tmp_path / "rank-0.log").read_text(encoding="utf-8")
    for text in (shown, written):
        assert not acts(text)
        assert sum("column" in line for line in text.splitlines()) == (2 if text is shown else 3)
        assert sum(line == "INFO all is well" for line in text.splitlines()) <= 1  # in the traceback alone
        assert "raise ValueError(hostile)\n" in text


def test_errors_and_crashes(hostile, capsys):
    configure_logging()
    print_problems([f"my.yaml: {hostile}", "second"])
    lines = capsys.readouterr().err
    assert not acts(lines)
    assert len(lines.splitlines()) == 2
    try:
        raise RuntimeError(hostile)
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    crash = capsys.readouterr().err
    assert not acts(crash)
    assert "Traceback" in crash


def test_the_progress_line_and_tables(hostile, tmp_path):
    with (tmp_path / "out").open("w+", encoding="utf-8") as stream:
        line = LiveLine(stream, width=300)
        table = line.table(f"validation {hostile}", ["", "value"], [[f"row {hostile}", hostile]])
    assert not acts("".join(table))
    assert len(table) == 4  # title, header, rule, row


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (sft_main.main, ["--config_file", "a{}.yaml"]),
        (sft_main.main, ["{}"]),
        (sft_main.main, ["--a{}", "1"]),
        (sft_main.main, ["--nodes", "{}"]),
        (sft_main.main, ["--learning_rate", "{}"]),
        (sft_main.main, ["--init", "a.yaml", "--{}"]),
        (chat.main, ["model", "--{}"]),
        (chat.main, ["model", "--dtype", "{}"]),
        (chat.main, ["model", "--seed", "{}"]),
        (export_model.main, ["model", "more{}"]),
        (export_model.main, ["model", "--private", "--x{}"]),
        (compare_runs.main, ["a{}", "a{}"]),
        (compare_runs.main, ["none{}", "b"]),
    ],
)
@pytest.mark.parametrize("kind", ["escape", "bidi", "surrogate", "line"])
def test_every_command_answers_hostile_arguments_with_one_safe_line(main, arguments, kind, capsys):
    assert main([argument.replace("{}", HOSTILE[kind]) for argument in arguments]) == 2
    shown = capsys.readouterr()
    assert not acts(shown.out + shown.err)
    assert "all is well" not in shown.err.splitlines()
    assert not [line for line in shown.err.splitlines() if line.startswith("INFO")]


def test_print_config_of_hostile_names(tmp_path, capsys):
    path = tmp_path / "a\x1b[31m\u202e.yaml"
    path.write_text(f"model_name_or_path: gpt2\ntrain_file: {__file__}\n")
    assert sft_main.main(["--config_file", str(path), "--run_name", HOSTILE["bidi"], "--print_config"]) == 0
    text = capsys.readouterr().out
    assert not acts(text)
    assert 'run_name: "\\u202E\\u2066\\u2069\\u200F"' in text


def test_only_colours_of_our_own_pass():
    formatter = SafeFormatter("%(message)s")

    def shown(message: str, **extra: bool) -> str:
        record = logging.makeLogRecord({"msg": message, **extra})
        return formatter.format(record)

    green = "\x1b[30;42mtext\x1b[0m"
    assert shown(green) == "\\x1b[30;42mtext\\x1b[0m"
    assert shown(green, is_coloured=True) == green
    assert shown(f"{green}\x1b]0;title\x07\r", is_coloured=True) == f"{green}\\x1b]0;title\\x07\\r"


def test_secrets_of_the_environment_are_masked(monkeypatch, capsys):
    monkeypatch.setenv("MY_API_KEY", "Xy7-s3cr3t")
    monkeypatch.setenv("HF_TOKEN_PATH", "/home/me/token")
    configure_logging()
    logging.getLogger("sft").info("denied: %s in /home/me/token", "Xy7-s3cr3t")
    print_problems(["denied: Xy7-s3cr3t"])
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("denied: *** in /home/me/token\n", "denied: ***\n")

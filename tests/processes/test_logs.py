"""The log file of a rank."""

from __future__ import annotations

import io
import logging
import os

import pytest

from sft.common.errors import ConfigError
from sft.processes.logs import configure_logging, rank_log
from sft.processes.terminal import log_drawn
from tests.support import messages


@pytest.fixture(autouse=True)
def log():
    logger = logging.getLogger("sft")
    before = (logger.handlers[:], logger.propagate, logger.level)
    configure_logging()
    yield logger
    logger.handlers[:], logger.propagate = before[:2]
    logger.setLevel(before[2])


@pytest.mark.parametrize("name", ["plain", "a b", "[0]", "$HOME", "'\"", "two\nlines", "{x}", os.fsdecode(b"\xff")])
@pytest.mark.parametrize("text", ["plain", "\udcff"])
def test_a_log_file_may_have_any_name_and_content(tmp_path, log, name, text):
    for _ in range(2):
        with rank_log(str(tmp_path / name)):
            log.info(text)
    content = (tmp_path / name / "rank-0.log").read_bytes()
    assert content.count(b"\n") == 2
    assert text.encode("utf-8", "backslashreplace") in content


@pytest.mark.parametrize("target", ["precious", "nowhere", "/dev/full"])
def test_a_log_file_that_is_a_link_is_refused(tmp_path, target):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "rank-0.log").symlink_to(tmp_path / target)
    with pytest.raises(ConfigError, match=messages.LINK), rank_log(str(tmp_path)):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_folder_that_is_a_link_is_what_it_points_to(tmp_path, log):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with rank_log(str(tmp_path / "link")):
        log.info("text")
    assert (tmp_path / "real" / "rank-0.log").is_file()


def test_a_log_file_that_cannot_be_written_is_one_line(tmp_path, log, monkeypatch, capfd):
    monkeypatch.setattr("sft.processes.logs.open_to_append", lambda path: os.open("/dev/full", os.O_WRONLY))
    with rank_log(str(tmp_path)):
        for _ in range(3):
            log.info("text")
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert f"rank-0.log {messages.CANNOT_BE_WRITTEN}" in err


@pytest.mark.parametrize("drawn", [None, [], ["\x1b[1mdrawn\x1b[0m", "twice"]])
def test_what_is_drawn_goes_to_the_terminal_and_the_plain_lines_to_the_file(tmp_path, log, drawn):
    shown = io.StringIO()
    configure_logging(shown)
    with rank_log(str(tmp_path)):
        log_drawn(log, ["plain", "lines"], drawn)
        log.info("both")
    in_file = (tmp_path / "rank-0.log").read_text().splitlines()
    assert [line.split()[-1] for line in in_file] == ["plain", "lines", "both"]
    assert shown.getvalue().splitlines() == [*(["plain", "lines"] if drawn is None else drawn), "both"]

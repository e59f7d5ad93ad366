"""Data files as streams: compressed, truncated, in other encodings."""

import gzip
import re

import pytest

from sft.common.errors import DataError
from sft.data.sources import streams
from sft.data.sources.streams import zstd
from tests.support import messages
from tests.support.source_files import JSONL, read_rows


def test_read_file_reads_every_frame_of_an_archive(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(zstd.compress(b'{"a": 1}\n') + zstd.compress(b'{"a": 2}\n'))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n') + gzip.compress(b'{"a": 2}\n'))
    for name in ("a.jsonl.zst", "a.jsonl.gz"):
        assert [row.record for row in read_rows(tmp_path / name)] == [{"a": 1}, {"a": 2}]


def test_read_file_reports_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=rf"no\.jsonl: {messages.pattern(messages.NO_FILE)}$"):
        list(read_rows(tmp_path / "no.jsonl"))


def test_read_file_uses_the_last_suffix(tmp_path):
    (tmp_path / "a.tsv.csv").write_bytes(b"a,b\n1,2\n")
    assert [row.record for row in read_rows(tmp_path / "a.tsv.csv")] == [{"a": "1", "b": "2"}]


def test_read_file_detects_a_truncated_frame_after_a_complete_one(tmp_path):
    whole = zstd.compress(JSONL * 2_000)
    path = tmp_path / "a.jsonl.zst"
    for cut in (whole[:-1], whole[: len(whole) // 2], whole[:4]):
        path.write_bytes(whole + cut)
        with pytest.raises(DataError, match=re.escape(messages.TRUNCATED_ARCHIVE)):
            read_rows(path)


def test_read_file_without_the_package_for_zstd_fails_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "zstd", None)
    (tmp_path / "a.jsonl.zst").write_bytes(b"anything")
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path / "a.jsonl.zst")
    package = messages.MISSING_PACKAGE.format(name="backports.zstd")
    assert caught.value.problems == (f"{tmp_path}/a.jsonl.zst: reading .zst {package}.",)

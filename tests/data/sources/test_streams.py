"""Data files as streams: compressed, truncated, in other encodings."""

import gzip

import pytest

from sft.common.errors import DataError
from sft.data.sources.streams import zstd
from tests.support.source_files import JSONL, read_rows


def test_read_file_reads_every_frame_of_an_archive(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(zstd.compress(b'{"a": 1}\n') + zstd.compress(b'{"a": 2}\n'))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n') + gzip.compress(b'{"a": 2}\n'))
    for name in ("a.jsonl.zst", "a.jsonl.gz"):
        assert [row.record for row in read_rows(tmp_path / name)] == [{"a": 1}, {"a": 2}]


def test_read_file_names_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"no\.jsonl: no such file\.$"):
        list(read_rows(tmp_path / "no.jsonl"))


def test_read_file_goes_by_the_last_ending(tmp_path):
    (tmp_path / "a.tsv.csv").write_bytes(b"a,b\n1,2\n")
    assert [row.record for row in read_rows(tmp_path / "a.tsv.csv")] == [{"a": "1", "b": "2"}]


def test_read_file_finds_a_frame_that_was_cut_off_behind_a_whole_one(tmp_path):
    whole = zstd.compress(JSONL * 2_000)
    path = tmp_path / "a.jsonl.zst"
    for cut in (whole[:-1], whole[: len(whole) // 2], whole[:4]):
        path.write_bytes(whole + cut)
        with pytest.raises(DataError, match=r"cannot be read: the compressed file is truncated\."):
            read_rows(path)

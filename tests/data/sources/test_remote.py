"""Files at addresses: found, read, noticed when they change, and one line for whatever goes wrong."""

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from data_handler import prepare_data
from sft.common.errors import DataError
from sft.configuration.schema import DataConfig, DatasetSource
from sft.data.sources.load import open_sources
from tests.support.data_files import pairs


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows):
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


CONTENTS = {
    "a.jsonl": lines(pairs(5)),
    "b.jsonl.gz": gzip.compress(lines(pairs(5))),
    "c.json": json.dumps(pairs(5)).encode(),
    "d.csv": b"question,answer\n" + b"".join(f"q {i},a {i}\n".encode() for i in range(5)),
    "e.parquet": parquet(pairs(5)),
}


@pytest.fixture
def memory():
    """The memory file system of fsspec, empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


class Server(ThreadingHTTPServer):
    """Serves `files`, name -> content; `tags` may have an ETag for a name. `asked` counts requests by name."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.tags, self.asked, self.short, self.logins = dict(CONTENTS), {}, [], set(), {}

    def address(self, name):
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.lstrip("/").partition("?")[0]
        self.server.asked.append(name)
        self.server.logins[name] = self.headers.get("Authorization")
        content = self.server.files.get(name)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        if name in self.server.tags:
            self.send_header("ETag", self.server.tags[name])
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if name in self.server.short else content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def rows_of(source):
    return [row.record for chunk in source.chunks() for row in chunk.rows()]


def train(path, **settings):
    (source,) = open_sources(DataConfig(train_file=path, **settings)).train
    return source


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("place", ["memory", "http"])
def test_every_kind_of_file_is_read_from_an_address(memory, server, name, place):
    memory.pipe(f"/folder/{name}", CONTENTS[name])
    source = train(f"memory://folder/{name}" if place == "memory" else server.address(name))
    found = rows_of(source)
    assert [row["question"] for row in found] == [row["question"] for row in pairs(5)]
    assert [chunk.share_read for chunk in source.chunks()][-1] == 1


def test_folders_and_globs_are_listed_and_split_by_name(memory):
    for name in ("train-1.jsonl", "train-2.jsonl", "dev.jsonl", "_hidden.jsonl", "notes.md"):
        memory.pipe(f"/data/{name}", CONTENTS["a.jsonl"])
    opened = open_sources(DataConfig(datasets=[DatasetSource(path="memory://data")]))
    assert opened.train[0].files == ("memory:///data/train-1.jsonl", "memory:///data/train-2.jsonl")
    assert opened.validation[0].files == ("memory:///data/dev.jsonl",)
    opened = open_sources(
        DataConfig(train_file="memory://data/train-*.jsonl", validation_file="memory://data/dev.jsonl")
    )
    assert len(opened.train[0].files) == 2
    assert open_sources(DataConfig(dataset_path="memory://data")).train[0].files == opened.train[0].files
    assert train("dev.jsonl", dataset_path="memory://data").files == ("memory://data/dev.jsonl",)


def test_rows_are_prepared_and_changed_content_is_noticed(memory, tokenizer, cache):
    memory.pipe("/a.jsonl", CONTENTS["a.jsonl"])
    memory.pipe("/v.jsonl", lines(pairs(3, 100)))
    settings = DataConfig(train_file="memory://a.jsonl", validation_file="memory://v.jsonl", data_cache_dir=str(cache))

    def used():
        report = prepare_data(settings, tokenizer, seed=0).report
        return report.train.rows_used, report.validation.rows_used, len(list(cache.glob("sft-*[0-9a-f]")))

    assert used() == (5, 3, 2)
    assert used() == (5, 3, 2)
    created = memory.store["/a.jsonl"].created
    memory.pipe("/a.jsonl", CONTENTS["a.jsonl"].replace(b"q 1", b"q 7"))  # of the same size
    memory.store["/a.jsonl"].created = created
    assert used() == (5, 3, 3)


def test_a_web_server_is_asked_for_its_tag_and_else_for_the_content(server):
    address = server.address("a.jsonl")
    before = train(address).digest()
    server.files["a.jsonl"] = CONTENTS["a.jsonl"].replace(b"q 1", b"q 7")
    changed = train(address).digest()
    assert changed != before
    server.tags["a.jsonl"] = '"one"'
    tagged = train(address).digest()
    assert tagged == train(address).digest()
    server.tags["a.jsonl"] = '"two"'
    assert train(address).digest() != tagged


def test_a_stream_reads_an_address(server, tokenizer):
    data = prepare_data(DataConfig(train_file=server.address("a.jsonl"), streaming=True), tokenizer, seed=0)
    read = data.stream(0, lambda slots: slots >= 0)
    assert [len(next(read).rows) for _ in range(12)] == [1] * 12


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("memory://none.jsonl", "memory://none.jsonl: no such file."),
        ("memory://none/", "memory://none/: no data files found. Supported"),
        ("memory://none/*.jsonl", "no data files found"),
        ("s3://bucket/a.jsonl", "s3://bucket/a.jsonl: reading s3:// requires the package s3fs: pip install s3fs."),
        ("gs://bucket/*.jsonl", "gs://bucket/*.jsonl: reading gs:// requires the package gcsfs: pip install gcsfs."),
        ("s4://bucket/a.jsonl", "s4://bucket/a.jsonl: s4:// is no known kind of address."),
        ("http://127.0.0.1:9/a.jsonl", "http://127.0.0.1:9/a.jsonl: cannot be read: connection refused."),
        ("https://127.0.0.1/data/*.jsonl", "files at web addresses cannot be listed. Name each file, with its suffix."),
    ],
)
def test_what_cannot_be_found_is_one_line(memory, address, said):
    with pytest.raises(DataError) as caught:
        rows_of(train(address))
    (line,) = caught.value.problems
    assert said in line


def test_what_a_web_server_refuses_or_cuts_off_is_one_line(server):
    with pytest.raises(DataError, match=r"/none.jsonl: no such file\.$"):
        rows_of(train(server.address("none.jsonl")))
    server.short.add("a.jsonl")
    with pytest.raises(DataError, match=r"cannot be read: the connection ended after \d+ of \d+ bytes"):
        rows_of(train(server.address("a.jsonl")))


def test_passwords_of_an_address_are_used_and_not_shown(server):
    address = server.address("a.jsonl").replace("http://", "http://me:se%3Acret@") + "?token=abcdef"
    source = train(address)
    assert len(rows_of(source)) == 5
    assert server.logins["a.jsonl"] == "Basic bWU6c2U6Y3JldA=="
    assert "cret" not in f"{source.name} {source.files}"
    assert "abcdef" not in f"{source.name} {source.files}"


def test_a_saved_dataset_at_an_address_is_refused(memory):
    for name in ("state.json", "dataset_info.json", "data-00000-of-00001.arrow"):
        memory.pipe(f"/saved/{name}", b"{}")
    with pytest.raises(DataError, match=r"contains a dataset that `save_to_disk` wrote .* Copy it to a local folder"):
        train("memory://saved")


def test_the_library_of_a_file_system_may_fail_in_any_way(memory, monkeypatch):
    memory.pipe("/a.jsonl", CONTENTS["a.jsonl"])
    source = train("memory://a.jsonl")

    class Broken(Exception):
        pass

    def fail(*_, **__):
        raise Broken("token expired")

    monkeypatch.setattr(type(memory), "info", fail)
    for use in (lambda: rows_of(source), source.digest):
        with pytest.raises(DataError, match=r"memory://a.jsonl: cannot be read: Broken: token expired"):
            use()

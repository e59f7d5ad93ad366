"""One source to rows on disk: found there by what they would be made from, or prepared now."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from functools import cache
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.common.data_records import DroppedRow, RowProblem, RowSource
from sft.common.did_you_mean import did_you_mean
from sft.common.errors import DataError
from sft.configuration.schema import DataConfig
from sft.data.cache import content_key, find_or_make
from sft.data.counts import PreparedSource
from sft.data.progress import PreparationProgress
from sft.data.rows import Refusals, RowPreparer, prepare_chunks
from sft.data.sources.load import Chunk, Source
from sft.data.store import RowWriter, StoredRows
from sft.processes.environment import num_usable_cores, user_cache_folder
from sft.prompting.formats import FORMATS, RecordFormat, find_format
from sft.prompting.templates import PLAIN, resolve_chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("sft.data")
ROWS_THAT_TELL = 1000
"""The format is chosen by the columns of the first so many rows."""
ROWS_TILL_GIVEN_UP = 10_000
"""If none of so many can be read, no format can be chosen."""
ROW_CODE = ("data", "prompting", "common/data_records.py", "configuration/schema.py")
"""Packages and modules of `sft/` that decide what a row becomes: a change there makes cached rows stale."""


class SourcePreparation:
    """Prepares sources with one tokenizer and the same settings."""

    def __init__(
        self,
        config: DataConfig,
        tokenizer: "PreTrainedTokenizerBase",
        on_progress: Callable[[bool], None] | None = None,
    ):
        """Args:
        config: the data section.
        tokenizer: its chat template may be set here.
        on_progress: see `sft.data.progress`.
        """
        self.config = config
        self._on_progress = on_progress
        self._tokenizer = tokenizer
        self._folder = Path(config.data_cache_dir) if config.data_cache_dir else user_cache_folder() / "sft_data"
        self._num_workers = config.preprocessing_num_workers
        if self._num_workers == "auto":
            self._num_workers = num_usable_cores()
        # Now: a source without a chat template gives the tokenizer one, and the tokenizer's first use sets these two.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        self._tokenizer_key = {
            "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
            "special_tokens": tokenizer.special_tokens_map,
            "chat_template": tokenizer.chat_template,
        }

    def prepare(self, split: str, source: Source) -> PreparedSource:
        """The rows of a source on disk.

        Raises:
            DataError: if the source cannot be read, or has no row that makes a known format.
            ConfigError: if the chat template cannot render a plain exchange.
        """
        key = self._key(source)

        def make(folder: Path) -> None:
            self._make(split, source, folder)
            if self._key(source) != key:
                raise DataError(f"{source.name}: changed while it was read. Start again once it is written.")

        entry, was_there = find_or_make(self._folder, key, make)
        return self._found(source, entry, split, " (prepared before)" if was_there else "")

    def _found(self, source: Source, entry: Path, split: str, remark: str) -> PreparedSource:
        """The rows in a folder, and a line that says what they are."""
        report = json.loads((entry / "report.json").read_text(encoding="utf-8"))
        prepared = _prepared_source(source, StoredRows(entry / "rows.arrow"), report)
        record_format = format_named(prepared.format_name)
        if record_format.is_chat:
            self._need_template()
        more = f" and {len(source.files) - 3} more" if len(source.files) > 3 else ""
        logger.info(
            "%s: %s, read as %s%s.",
            split.capitalize(),
            ", ".join(source.files[:3]) + more,
            record_format.description,
            remark,
        )
        if prepared.unused_columns:
            logger.info("%s: columns not used: %s.", split.capitalize(), _listed(prepared.unused_columns))
        return prepared

    def look_at(self, source: Source) -> PreparedSource:
        """The first rows of a source that is streamed, prepared as all others are. Nothing is kept.

        Raises:
            DataError, ConfigError: as `prepare` does.
        """
        first = dataclasses.replace(source, max_rows=min(source.max_rows or ROWS_THAT_TELL, ROWS_THAT_TELL))
        with tempfile.TemporaryDirectory(prefix="sft-data-") as folder:
            self._make("train", first, Path(folder))
            return self._found(
                first, Path(folder), "train", f"; at most its first {ROWS_THAT_TELL:,} rows were looked at"
            )

    def preparer(self, source: Source, record_format: RecordFormat) -> RowPreparer:
        """What prepares the rows of a source."""
        if record_format.is_chat:
            self._need_template()
        return RowPreparer(self.config, self._tokenizer, record_format, source.columns)

    def _make(self, split: str, source: Source, folder: Path) -> None:
        """Prepares a source's rows into an empty folder."""
        record_format, chunks = find_source_format(source)
        preparer = self.preparer(source, record_format)
        refusals = Refusals()
        seen: set[str] = set()
        rows_read = 0
        with (
            RowWriter(folder / "rows.arrow") as writer,
            PreparationProgress(f"Preparing {split} rows", self._on_progress) as progress,
            closing(prepare_chunks(preparer, chunks, self._num_workers)) as prepared_chunks,
        ):
            for chunk, prepared in prepared_chunks:
                if len(prepared.lengths):
                    columns = dataclasses.replace(prepared.columns, number=prepared.columns.number + rows_read)
                    writer.write(prepared.input_ids, prepared.labels, prepared.lengths, columns)
                refusals.update(prepared.refusals)
                rows_read += prepared.rows_read
                seen |= prepared.seen_columns
                progress.show(rows_read, chunk.share_read)
        ours = {source.columns.get(name, name) for name in seen}
        report = {
            "format_name": record_format.name,
            "rows_read": rows_read,
            "unused_columns": sorted(ours - record_format.columns - record_format.optional),
            "refusals": {
                "counts": refusals.counts,
                "examples": [dataclasses.asdict(row) for row in refusals.examples],
                "too_long": refusals.too_long,
                "full_lengths": refusals.full_lengths,
            },
        }
        (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")

    def _need_template(self) -> None:
        """Gives a tokenizer without a chat template the plain one, and says so."""
        tokenizer = self._tokenizer
        if tokenizer.chat_template is not None:
            return
        begins_with_bos = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = resolve_chat_template(PLAIN, begins_with_bos=begins_with_bos)
        logger.info(
            "The tokenizer has no chat template: using `plain` (User: / Assistant: lines, each answer ends with %s).",
            tokenizer.eos_token,
        )

    def _key(self, source: Source) -> str:
        """All that the prepared rows of a source depend on, as the name of an entry."""
        config = self.config
        return content_key(
            {
                "content": source.digest(),
                "files": source.files,
                "format": source.format,
                "columns": source.columns,
                "max_seq_length": config.max_seq_length,
                "cuts": config.on_too_long == "truncate",
                "train_on": config.train_on,
                "add_end_token": config.add_end_token,
                **self._tokenizer_key,
                "code": _code_digest(),
                "versions": {name: version(name) for name in ("tokenizers", "transformers", "jinja2")},
            }
        )


def format_named(name: str) -> RecordFormat:
    """The record format of that name."""
    return next(known for known in FORMATS if known.name == name)


def find_source_format(source: Source) -> tuple[RecordFormat, Iterator[Chunk]]:
    """How the records of a source are written, and its chunks, of which the first were read to tell.

    Raises:
        DataError: if no row can be read, its columns make no known format, or the settings name columns or a format
            that are not there.
    """
    chunks = iter(source.chunks())
    seen: Counter[str] = Counter()
    looked_at: list[Chunk] = []
    rows = 0
    first_problem = None
    for chunk in chunks:
        looked_at.append(chunk)
        for row in chunk.rows():
            rows += 1
            seen.update(list(row.record or ()))
            first_problem = first_problem or (row.source, row.problem)
        if rows >= ROWS_THAT_TELL and (seen or rows >= ROWS_TILL_GIVEN_UP):
            break
    if not seen:
        place, problem = first_problem
        message = problem.message if problem is not None else "an object without fields"
        which = "No row there" if rows < ROWS_TILL_GIVEN_UP else f"None of the first {rows:,} rows there"
        raise DataError(f"{place}: {message}. {which} can be used.")
    return _choose_format(source, _our_columns(source, seen)), chain(looked_at, chunks)


def _our_columns(source: Source, seen: Mapping[str, int]) -> set[str]:
    """The columns of a source by our names.

    Raises:
        DataError: if the settings name one that is not there, or give two the same name.
    """
    place, names = source.files[0], source.columns
    for column in names:
        if column not in seen:
            hint = did_you_mean(column, seen)
            raise DataError(f"{place}: dataset_columns names {column!r}; the columns are {_listed(seen)}.{hint}")
    ours = Counter(names.get(name, name) for name in seen)
    twice = [name for name, count in ours.items() if count > 1]
    if twice:
        theirs = [name for name in seen if names.get(name, name) == twice[0]]
        raise DataError(f"{place}: with dataset_columns, {' and '.join(theirs)} are both {twice[0]!r}. Choose one.")
    return set(ours)


def _choose_format(source: Source, columns: set[str]) -> RecordFormat:
    if source.format is not None:
        chosen = format_named(source.format)
        if not chosen.columns <= columns:
            missing = ", ".join(sorted(chosen.columns - columns))
            raise DataError(
                f"{source.files[0]}: format {chosen.name} needs the columns {missing}; there: "
                f"{_listed(sorted(columns))}. Map yours with columns: {{their_name: our_name}}."
            )
        return chosen
    found = find_format(columns)
    if found is None:
        known = "; ".join(known.description for known in FORMATS)
        raise DataError(
            f"{source.files[0]}: its columns ({_listed(sorted(columns))}) make no known format. Known: {known}. "
            "Map yours with dataset_columns: {their_name: our_name}."
        )
    return found


def _prepared_source(source: Source, rows: StoredRows, report: Mapping[str, Any]) -> PreparedSource:
    refusals = report["refusals"]
    return PreparedSource(
        name=source.name,
        files=source.files,
        weight=source.weight,
        format_name=report["format_name"],
        rows=rows,
        rows_read=report["rows_read"],
        refusals=Refusals(
            counts=Counter(refusals["counts"]),
            examples=[
                DroppedRow(source=RowSource(**row["source"]), problem=RowProblem(**row["problem"]))
                for row in refusals["examples"]
            ],
            too_long=Counter(refusals["too_long"]),
            full_lengths=Counter({int(length): count for length, count in refusals["full_lengths"].items()}),
        ),
        unused_columns=tuple(report["unused_columns"]),
    )


def _listed(names: Iterable[str]) -> str:
    """Columns' names for one line of text, whatever they hold."""
    names = [" ".join(name.split())[:40] for name in names]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


@cache
def _code_digest() -> str:
    """A digest of the code that prepares rows."""
    top = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for place in map(top.joinpath, ROW_CODE):
        for path in [place] if place.is_file() else sorted(place.rglob("*")):
            if path.suffix in (".py", ".jinja"):
                digest.update(path.read_bytes())
    return digest.hexdigest()

"""One source to rows on disk: found in the cache by a digest of everything that decides them, or prepared now."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import tempfile
from collections.abc import Callable
from contextlib import closing
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.common.errors import ConfigError, DataError
from sft.common.outside_files import outside_file
from sft.configuration.data_sections import SKIP
from sft.configuration.schema import DataConfig
from sft.data.cache import content_key, find_or_make
from sft.data.dropped import DroppedRows
from sft.data.prepared import PreparedSource
from sft.data.progress import PreparationProgress
from sft.data.remarks import CountedRemarks
from sft.data.rows import RowPreparer
from sft.data.source_format import SAMPLED_ROWS, find_source_format, list_columns
from sft.data.sources.load import Source
from sft.data.store import RowWriter, StoredRows
from sft.data.workers import prepare_chunks
from sft.processes.environment import num_usable_cores, user_cache_folder
from sft.prompting.control_tokens import ControlTokens
from sft.prompting.formats import RecordFormat, format_named, with_answer_to_unanswerable
from sft.prompting.given_tokens import GivenTokensReader
from sft.prompting.loss_weights import WEIGHT_COLUMN
from sft.prompting.pieces import NO_LIMIT, TooLong
from sft.prompting.quoted_tokens import QuotedTokens
from sft.prompting.rendering import ChatRenderer, known_end_tokens
from sft.prompting.template_kwargs import KWARGS_COLUMN, check_kwargs
from sft.prompting.templates import PLAIN, set_chat_template
from sft.prompting.tokenizing import RowTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("sft.data")
ROW_CODE = (
    "data",
    "prompting",
    "common/data_records.py",
    "common/given_tokens.py",
    "common/weight_records.py",
    "configuration/data_sections.py",
)
"""Packages and modules of `sft/` that decide what a row becomes: a change to their code makes cached rows stale."""


class SourcePreparation:
    """Prepares sources with one tokenizer and one configuration.

    Whatever is expensive to build is built once: the chat renderer (it renders probes to analyze the template) for all
    sources, and one preparer for each source.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: "PreTrainedTokenizerBase",
        on_progress: Callable[[bool], None] | None = None,
    ):
        """
        Args:
            config: The data section of the configuration.
            tokenizer: If it has no chat template and one is needed, it gets the template `plain`.
            on_progress: See `sft.data.progress`.
        """
        self.config = config
        self._on_progress = on_progress
        self.tokenizer = tokenizer
        self._preparers: dict[tuple[Any, ...], RowPreparer] = {}
        self._folder = Path(config.data_cache_dir) if config.data_cache_dir else user_cache_folder() / "sft_data"
        workers = config.preprocessing_num_workers
        self._num_workers = num_usable_cores() if workers == "auto" else workers
        # Take the digest now, in a defined state: using the tokenizer later sets truncation and padding, and
        # preparing a chat may give it a template.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        self._tokenizer_key = {
            "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
            "special_tokens": tokenizer.special_tokens_map,
            "chat_template": tokenizer.chat_template,
        }

    def prepare(self, split: str, source: Source) -> PreparedSource:
        """Prepare all rows of a source, or find them in the cache.

        Args:
            split: Name of the split, for messages.
            source: The source.

        Raises:
            DataError: If the source cannot be read, changes while it is read, or matches no known format.
            ConfigError: If the chat template cannot render a plain exchange.
        """
        key = self._key(source)

        def make(folder: Path) -> None:
            self._write_rows(split, source, folder)
            if self._key(source) != key:
                raise DataError(f"{source.name}: changed while it was being read. Start again when it is complete.")

        folder, is_cached = find_or_make(self._folder, key, make)
        return self._load(source, folder, split, " (prepared before)" if is_cached else "")

    def prepare_sample(self, source: Source) -> PreparedSource:
        """Prepare the first rows of a streamed training source, to check and count them. Nothing is cached.

        Raises:
            DataError, ConfigError: As `prepare`.
        """
        first = dataclasses.replace(source, max_rows=min(source.max_rows or SAMPLED_ROWS, SAMPLED_ROWS))
        with tempfile.TemporaryDirectory(prefix="sft-data-") as folder:
            self._write_rows("train", first, Path(folder))
            return self._load(first, Path(folder), "train", f"; at most the first {SAMPLED_ROWS:,} rows were checked")

    def preparer(self, source: Source, record_format: RecordFormat) -> RowPreparer:
        """The preparer of the rows of a source. Built at the first call."""
        key = (record_format.name, frozenset(source.columns.items()), source.steps, source.chats.key)
        if key not in self._preparers:
            too_long = self._too_long(source, record_format)
            renderer = self._renderer if record_format.is_chat else None
            if renderer is not None:
                check_kwargs(source.chats.template_kwargs, str(self.tokenizer.chat_template), "chat_template_kwargs")
            tokenizer = self._row_tokenizer(record_format, renderer)
            answer = None if self.config.unanswerable == SKIP else self.config.unanswerable
            record_format = with_answer_to_unanswerable(record_format, answer)
            self._preparers[key] = RowPreparer(
                record_format,
                source.columns,
                tokenizer,
                renderer,
                ControlTokens(self.tokenizer, self._quotes),
                too_long,
                source.steps,
                source.chats,
            )
        return self._preparers[key]

    def _too_long(self, source: Source, record_format: RecordFormat) -> TooLong:
        """What becomes of rows that are too long, where they are neither truncated nor dropped.

        Raises:
            ConfigError: If that is not defined for the format of the source.
        """
        config = self.config
        chosen, rows = config.on_too_long, f"the {record_format.name} rows of {source.files[0]}"
        if chosen == "split" and record_format.is_chat:
            raise ConfigError(
                f"on_too_long: split cannot be used with {rows}: a piece of a chat has no prompt. Set keep_last_turns, "
                "which keeps the latest turns that fit, truncate or drop."
            )
        if chosen == "keep_last_turns" and not record_format.is_chat:
            raise ConfigError(
                f"on_too_long: keep_last_turns cannot be used with {rows}, which have no turns. Set split, truncate or "
                "drop."
            )
        return TooLong(
            shortens=config.on_too_long == "keep_last_turns",
            piece_length=config.max_seq_length if config.on_too_long == "split" else None,
            overlap=config.split_overlap,
        )

    def _row_tokenizer(self, record_format: RecordFormat, renderer: ChatRenderer | None) -> RowTokenizer:
        """Tokenizes the rows of a format, or takes their tokens."""
        config = self.config
        limits: dict[str, Any] = {
            "max_seq_length": NO_LIMIT if config.on_too_long == "split" else config.max_seq_length,
            "truncate": config.on_too_long == "truncate",
        }
        if record_format.is_tokenized:
            limits["end_token_ids"] = known_end_tokens(self.tokenizer)
            return GivenTokensReader(self.tokenizer, add_end_token=config.add_end_token, **limits)
        ends = None if renderer is None else renderer.end_token_ids()
        masks = config.boundary_tokens == "mask"
        return RowTokenizer(
            self.tokenizer, is_chat=record_format.is_chat, end_token_ids=ends, masks_boundary=masks, **limits
        )

    @cached_property
    def _quotes(self) -> QuotedTokens | None:
        choice = self.config.control_tokens_in_content
        return None if choice == "special" else QuotedTokens(self.tokenizer, choice)

    @cached_property
    def _renderer(self) -> ChatRenderer:
        """Renders the conversations of all sources."""
        self._ensure_chat_template()
        config = self.config
        return ChatRenderer(
            self.tokenizer,
            only_last_turn=config.train_on == "last",
            add_end_token=config.add_end_token,
            prompt_weight=config.prompt_loss_weight,
            template_kwargs=config.chat_template_kwargs,
            quotes=self._quotes,
        )

    def _ensure_chat_template(self) -> None:
        tokenizer = self.tokenizer
        if tokenizer.chat_template is not None:
            return
        set_chat_template(tokenizer, PLAIN)
        logger.info(
            "The tokenizer has no chat template: using `plain` (User: / Assistant: lines, each answer ends with %s).",
            tokenizer.eos_token,
        )

    def _write_rows(self, split: str, source: Source, folder: Path) -> None:
        """Prepare the rows of a source into an empty folder."""
        record_format, chunks = find_source_format(source)
        preparer = self.preparer(source, record_format)
        dropped, remarks = DroppedRows(), CountedRemarks()
        seen: set[str] = set()
        rows_read = untrained_pieces = 0
        with (
            RowWriter(folder / "rows.arrow") as writer,
            PreparationProgress(f"Preparing {split} rows", self._on_progress) as progress,
            closing(prepare_chunks(preparer, chunks, self._num_workers)) as prepared_chunks,
        ):
            for chunk, prepared in prepared_chunks:
                if len(prepared.lengths):
                    columns = dataclasses.replace(prepared.columns, number=prepared.columns.number + rows_read)
                    writer.write(prepared.input_ids, prepared.labels, prepared.lengths, columns, prepared.weights)
                dropped.update(prepared.dropped)
                remarks.update(prepared.remarks)
                rows_read += prepared.rows_read
                untrained_pieces += prepared.untrained_pieces
                seen |= prepared.seen_columns
                progress.show(rows_read, chunk.share_read)
        own = {WEIGHT_COLUMN, *([KWARGS_COLUMN] if record_format.is_chat else [])}
        renamed = {source.columns.get(name, name) for name in seen}
        report = {
            "format_name": record_format.name,
            "rows_read": rows_read,
            "untrained_pieces": untrained_pieces,
            "unused_columns": sorted(renamed - record_format.columns - record_format.optional - own),
            "dropped": dropped.to_json(),
            "remarks": remarks.to_json(),
        }
        (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")

    def _load(self, source: Source, folder: Path, split: str, remark: str) -> PreparedSource:
        """Load the prepared rows in a folder and log what they are."""
        damaged = f"the prepared rows in {folder} cannot be read (delete the folder to prepare them again)"
        with outside_file(damaged, DataError):
            report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
            rows, dropped = StoredRows(folder / "rows.arrow"), DroppedRows.from_json(report["dropped"])
            record_format, rows_read = format_named(report["format_name"]), int(report["rows_read"])
            untrained_pieces = int(report["untrained_pieces"])
            unused_columns, remarks = tuple(report["unused_columns"]), CountedRemarks.from_json(report["remarks"])
        if record_format.is_chat:
            self._ensure_chat_template()
        more = f" and {len(source.files) - 3} more" if len(source.files) > 3 else ""
        files = ", ".join(source.files[:3]) + more
        logger.info("%s: %s, read as %s%s.", split.capitalize(), files, record_format.description, remark)
        if unused_columns:
            logger.info("%s: unused columns: %s.", split.capitalize(), list_columns(unused_columns))
        return PreparedSource(
            name=source.name,
            files=source.files,
            weight=source.weight,
            probability=source.probability,
            record_format=record_format,
            remarks=remarks,
            rows=rows,
            rows_read=rows_read,
            untrained_pieces=untrained_pieces,
            dropped=dropped,
            unused_columns=unused_columns,
        )

    def _key(self, source: Source) -> str:
        """The name of the cache entry: a digest of everything that the prepared rows of a source depend on."""
        config = self.config
        return content_key(
            {
                "content": source.digest(),
                "files": source.files,
                "format": source.format,
                "columns": source.columns,
                "steps": source.steps.digest,
                "chats": source.chats.key,
                "boundary_tokens": config.boundary_tokens,
                "control_tokens_in_content": config.control_tokens_in_content,
                "max_seq_length": config.max_seq_length,
                "on_too_long": "drop" if config.on_too_long == "error" else config.on_too_long,
                "split_overlap": config.split_overlap,
                "train_on": config.train_on,
                "add_end_token": config.add_end_token,
                "prompt_loss_weight": config.prompt_loss_weight,
                "unanswerable": None if config.unanswerable == SKIP else config.unanswerable,
                **self._tokenizer_key,
                "code": _code_digest(),
                "versions": {name: version(name) for name in ("tokenizers", "transformers", "jinja2")},
            }
        )


@cache
def _code_digest() -> str:
    """Hex digest of the code that prepares rows; see `ROW_CODE`."""
    top = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in map(top.joinpath, ROW_CODE):
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.suffix in (".py", ".jinja"):
                digest.update(file.read_bytes())
    return digest.hexdigest()

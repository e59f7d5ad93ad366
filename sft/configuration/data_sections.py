"""Sections about the data: where rows come from and how they are prepared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from sft.configuration.rules import NonNegativeInt, PathText, PositiveInt, Range, WholeShare

RECORD_FORMATS = (
    "input_ids",
    "messages",
    "conversations",
    "squad",
    "alpaca",
    "prompt_completion",
    "question_answer",
    "input_output",
    "text",
)
"""Allowed values of `format`. The package `prompting`, which this one cannot import, defines what they mean."""

SKIP = "skip"
"""The value of `unanswerable` that is not an answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetSource:
    """An entry of `datasets`: one source of training rows. A plain string is short for its `path`."""

    path: PathText | None = None
    """A file, a folder or a glob. Give either this or `name`."""

    name: str | None = None
    """A dataset on the Hugging Face Hub, or a local dataset folder."""

    config: str | None = None
    """Configuration of the named dataset, if it has several."""

    revision: str | None = None
    """Branch, tag or commit of the named dataset's repository on the Hub. Default: its main branch."""

    split: str | None = None
    """Split to use. Default: train; for a folder, the files whose names mark them as training data."""

    format: str | None = None
    """Record format (messages, conversations, alpaca, ...). Default: detected from the columns."""

    weight: Annotated[float, Range(above=0, maximum=1000)] = 1.0
    """How often each row of this source is used per epoch: 2 uses each row twice, 0.5 uses half of the rows, selected
    by `seed`."""

    probability: Annotated[float, Range(above=0, maximum=1)] | None = None
    """Probability with which the next row is taken from this source, instead of `weight`. If one entry has it, all need
    it, and their sum must be 1."""

    columns: dict[str, str] = field(default_factory=dict)
    """Column mapping: name in this source -> expected name."""

    max_rows: PositiveInt | None = None
    """Read only the first `max_rows` rows."""

    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the chat template for the rows of this source, beside and before those of the run."""

    system_prompt: str | None = None
    """System prompt of the conversations of this source, instead of that of the run."""

    system_prompt_policy: Literal["if_missing", "replace"] | None = None
    """As the key of that name, for this source. Default: as for the run."""

    row_function: PathText | None = None
    """As `row_function` of the run, for this source."""

    row_filter: PathText | None = None
    """As `row_filter` of the run, for this source."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Training and validation data."""

    datasets: list[DatasetSource] = field(default_factory=list)
    """Several sources of training rows, instead of the keys below. Each entry has `path` or `name`, and optionally
    `config`, `revision`, `split`, `format`, `weight` (how often each row is used per epoch), `columns`, `max_rows`,
    `row_function`, `row_filter`."""

    datasets_stop: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"
    """When an epoch ends that takes rows by `probability`. first_exhausted: with the last row of the source that is
    used up first. all_exhausted: with that of the last one; sources that are used up before begin again."""

    dataset_name: str | None = None
    """A dataset on the Hugging Face Hub, or a local dataset folder (made by `save_to_disk`, or holding data files)."""

    dataset_config_name: str | None = None
    """Configuration of that dataset, if it has several (e.g. `main`)."""

    dataset_revision: str | None = None
    """Branch, tag or commit of that dataset's repository on the Hub. Default: its main branch."""

    dataset_path: PathText | None = None
    """A folder (or file) of data. `train_file` and `validation_file` are relative to it. Without `train_file`, all its
    files are used; file names that contain train, valid, dev, eval or test assign them to splits."""

    train_file: PathText | None = None
    """Training data: a file (JSON, JSONL, CSV, TXT, Parquet; optionally .gz or .zst), a glob (*.jsonl), or a folder:
    one written by `save_to_disk`, or one whose files are assigned to splits as for `dataset_path`."""

    validation_file: PathText | dict[str, PathText] | None = None
    """Validation data, in the same forms as `train_file`. Several sets: a mapping of names to files, such as {chats:
    chats.jsonl, code: code.jsonl}; each set has metrics of its own."""

    validation_split: Annotated[float, Range(above=0, below=1)] | None = None
    """Share of the training rows to hold out for validation, selected by `seed`: 0.05 is 5 %. Beside named sets, it is
    the set `held_out`."""

    test_file: PathText | dict[str, PathText] | None = None
    """Test data, a file or a mapping of names to files: evaluated once before and once after training, and never used
    to choose a checkpoint."""

    forgetting_check: PathText | dict[str, PathText] | None = None
    """Data that the base model does well, a file or a mapping of names to files: what fine-tuning cost there. Evaluated
    before and after training; the report has a verdict."""

    answer_rows: NonNegativeInt = 0
    """With `answer_scores`: rows of each validation and test set whose answers are scored, selected by `seed`."""

    max_seq_length: Annotated[int, Range(minimum=2, maximum=1_000_000_000)] = 1024
    """Maximum length of a row, in tokens."""

    on_too_long: Literal["truncate", "drop", "error", "split", "keep_last_turns"] = "truncate"
    """What to do with rows longer than `max_seq_length`. truncate: cut off the end (a row that keeps no supervised
    tokens counts as a bad row, see `on_bad_rows`). drop: skip and count them. error: stop and list the first ten.
    split: train a text, or a row of token ids, in pieces. keep_last_turns: train a conversation from the first user
    turn on from which it fits, after its system turn; drop and count it if not even its last exchange fits."""

    split_overlap: NonNegativeInt = 0
    """With `on_too_long: split`: tokens at the start of each further piece that repeat the end of the one before, as
    context that is not trained. With 0, the first token of such a piece is not predicted."""

    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the chat template, such as {enable_thinking: false}: in training, and where the model answers. A
    column of this name has the arguments of single rows."""

    system_prompt: str | None = None
    """System prompt of conversations: a text, or `file:prompt.txt` for the content of a file."""

    system_prompt_policy: Literal["if_missing", "replace"] = "if_missing"
    """if_missing: conversations without a system prompt get it. replace: those with another one, too."""

    control_tokens_in_content: Literal["special", "text", "error"] = "special"
    """Control tokens (`<|im_end|>`) inside the data. special: the model receives them as tokens, as from
    `apply_chat_template`. text: as ordinary characters. error: the row cannot be used, see `on_bad_rows`."""

    boundary_tokens: Literal["train", "mask"] = "train"
    """Tokens that straddle the edge of the supervised text. train: they are trained. mask: they are not."""

    train_on: Literal["all", "last"] = "all"
    """Which assistant turns of a row are trained: all, or only the last. A message with `"train": false`,
    `"loss": false` or `"weight": 0` is never trained; another `"weight"` scales its share in the loss."""

    prompt_loss_weight: Annotated[float, Range(minimum=0, maximum=1000)] = 0.0
    """Weight in the loss of the tokens outside of the trained answers (system prompts, questions, the template's text);
    those of an answer have 1, times the weight of the message and of the row. 0: they are not trained."""

    add_end_token: bool = False
    """Append the tokenizer's end token to the last answer of a row if the chat template does not end it with one."""

    preprocessing_num_workers: PositiveInt | Literal["auto"] = "auto"
    """Number of processes that read, render and tokenize rows. auto: the number of available CPU cores, or fewer for
    small datasets."""

    data_cache_dir: PathText | None = None
    """Where prepared rows are cached for later runs. Default: `sft_data` in the user's cache folder."""

    streaming: bool = False
    """Prepare training rows on the fly and store nothing. Requires `max_steps`. Validation data is still prepared
    before training."""

    shuffle_block_rows: PositiveInt = 10_000
    """With `streaming`: number of rows (rounded up to a few hundred) that are held in memory and shuffled together. 1:
    keep the order of the source."""

    order: Literal["shuffled", "given", "by_length"] | None = None
    """Order of the training rows. shuffled: by `seed`, anew in each epoch. given: as they are read, in each epoch;
    packs are filled in this order, too. by_length: short rows first, rows of equal length shuffled; not with packs.
    With `streaming`, shuffled or given. Default: shuffled, or what `train_sampling_strategy` says."""

    dataset_columns: dict[str, str] = field(default_factory=dict)
    """Column mapping: name in your data -> expected name, e.g. {query: question, reply: answer}."""

    row_function: PathText | None = None
    """A function of a Python file, `my_rows.py:to_messages`, that turns each row as read (a dict) into a row of a known
    format, a list of such rows, or None to drop it. `dataset_columns` renames the columns of its rows. Also used for
    validation data."""

    row_filter: PathText | None = None
    """A function of a Python file, `my_rows.py:keep`, that receives each row as read, before `row_function`, and
    returns whether to keep it. Also used for validation data."""

    on_bad_rows: Literal["error", "skip"] = "error"
    """What to do with rows that cannot be used (invalid JSON, empty answer, ...). error: stop and list the first ten.
    skip: skip them and count them by reason."""

    unanswerable: str | None = None
    """Questions without an answer in the `squad` format (SQuAD 2.0). skip: skip and count them. Any other text, such as
    "I don't know.", is trained as their answer. Default: they are rows that cannot be used, see `on_bad_rows`."""

    max_bad_row_share: WholeShare = 0.1
    """With `on_bad_rows: skip`: stop if more than this share of the rows of a split is skipped."""

    max_leakage_share: WholeShare = 0.0
    """Stop if more than this share of the validation rows also occurs in the training data."""

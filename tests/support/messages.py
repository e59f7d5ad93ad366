"""The wording that tests assert: one constant per message, the shortest part that identifies it; `{...}` is filled."""

from __future__ import annotations

import re
from string import Formatter


def pattern(message: str, **parts: object) -> str:
    """The message for `match=`: its wording literally, with a regular expression for each `{...}`."""
    pieces = Formatter().parse(message)
    return "".join(re.escape(literal) + ("" if name is None else str(parts[name])) for literal, name, _, _ in pieces)


# checkpointing
CANNOT_RESUME = "cannot be resumed from"
CHANGED_FILE = "does not match its checksum in manifest.json (sha256)"
CHANGED_SINCE = "Changed since {name}: "
CHECKPOINT_NOT_WRITTEN = "output_dir: checkpoint-{step} cannot be written to"
FOLDER_IN_USE = "in use by another run (process {process} on"
FREE_SPACE = "MiB are free there"
NO_CHECKPOINT = "no complete checkpoint"
OTHER_BATCH_SIZE = "was trained with {before} rows a step, and this run has {after}"
OTHER_ROWS = "trained on other rows: {before} then, {after} now"
OTHER_SETTING = "{key}: {name} was trained with {before}"
OTHER_WORLD_SIZE = "{name} was saved by {before} processes and this run has {after}: the order of rows is the same"
RESUMING_FROM = "Resuming from {path}"
FILE_MISSING = "{name} is missing"
WRITE_AUTO = "Write auto"
NOTHING_LEFT = "nothing is left to train"
IS_A_FILE = "{path} is a file; choose a folder"
ONLY_WEIGHTS = "only weights"
SAVED_AT_STEP = "it was saved at step {step}"
LINK_TO_NOWHERE = "is a link to {target}, which does not exist"
REMOVE_OR_RENAME = "Remove or rename it"
RENAMED_TO = "renamed to {path}"
FILE_NOT_WRITTEN = "a file could not be written"

# common
MISSING_PACKAGE = "requires the package {name}: pip install {name}"
LINK = "nothing is written through links"
CANNOT_BE_READ = "cannot be read: "
CANNOT_BE_WRITTEN = "cannot be written"
WRITE_NAME = "write {name}."
NO_FILE_OR_FOLDER = "no file or folder '{path}'."
EXPECTED_TEXT = "expected a text"
NOT_REGULAR = "is {kind}, not a regular file"
NOT_UTF8 = "cannot be read as UTF-8 text"
NOT_JSON = "is not valid JSON: "

# data
EMPTY_ANSWER = "'answer' is empty (empty_answer)"
END_NEVER_TRAINED_TEMPLATE = "the end token is never trained: the chat template writes no known end token"
END_NEVER_TRAINED_TRUNCATED = "the end token is never trained: max_seq_length truncates it in all {rows} train rows"
FIX_OR_SKIP = "or set on_bad_rows to skip, which drops and counts them."
NO_ROWS = "no rows found."
TRUNCATED_ARCHIVE = "cannot be read: the compressed file is truncated."
UNPAIRED_SURROGATE = "contains an unpaired surrogate, which is not a character (not_unicode)"

# processes
ENDED_BY = "Ended by {signal}"
ENDED_BY_SECOND_SIGNAL = "Ended at once by a second signal"
CHECKPOINTS_COMPLETE = "Checkpoints saved before are complete."
STACKS = "Stacks: {path}."
RANK_KILLED = "The process of rank {rank} was killed by {signal}"
RANK_LOG = "Its log: {path}"

# modeling
ENCODER_DECODER = "is an encoder-decoder model"
DOCUMENTS_NOT_ISOLATED = "the model lets one document influence another"
HUB_LOOKUP = "{name} is not a local folder: looking in the Hugging Face cache"
LINEAR_LAYERS = "Its linear layers: {names}"
LOSS_LEFT_OUT = "It is left out: the loss of this run is the cross-entropy"
NO_CONFIG = "no config.json in"
NOT_CAUSAL = "is not causal"
PACKED_ROW_FAILS = "the model fails with several documents in one row"
TEXT_DOES_NOT_REACH = "Text does not reach"

# reporting
PREFLIGHT_OK = "OK: training would start."
PREFLIGHT_NOT_OK = "NOT OK: training would not start."
TRACKER_FAILED = "{name} failed at step "
RUN_CONTINUES = "The run continues without it"

# training
BAD_STEP = "Step {step}: the loss or gradient is NaN or inf"
NOT_PUSHED = "was not pushed to the Hub ("
CANNOT_PUSH = "push_to_hub: cannot push to the Hub"
NOT_DRAWN = "{path} was not drawn: this"
OUT_OF_MEMORY_AT_STEP = "Out of memory at step {step}"
OUT_OF_MEMORY_IN_EVALUATION = "during evaluation, with a single row"
PADDED = "Rows are padded to the longest row of their batch"
PADDING_FREE = "Padding-free batches: rows are concatenated"
PADDING_FREE_NOT_POSSIBLE = "{key}: padding-free batches are not possible: "
PUSH_REJECTED = "hub_model_id: the Hub rejected {name} ({status}): for a token with write access"
TOO_MANY_BAD_STEPS = (
    "max_bad_steps: the loss or gradient was NaN or inf in {count} consecutive steps, up to step {step}"
)

# configuration
CONFLICTS_WITH = "conflicts with {key}"
SURROGATE = "contains an unpaired surrogate (\\ud800 to \\udfff), which is not text"
NO_GPU = "this machine has none that torch can use"
USE_CPU = "use_cpu is true"
CORES_SHARED = "{processes} processes share {cores} CPU cores"
NO_BFLOAT16 = "bf16: true, but this GPU has no bfloat16"
REQUIRES = "{name} requires {key}"
MUST_BE = "{key}: must be {value}"
UNKNOWN_KEY = "unknown key '{key}'"
PACKS_NOT_FULL = "only {share} full"
TOO_FEW_PACKS = "a step is to train on {wanted} packs, and there are only {found}"
BEST_CHOSEN = "the best checkpoint is chosen by them"
NESTED_TOO_DEEPLY = "nested too deeply"
NO_LONGER_NEEDED = "{key} is no longer needed: "
IS_REQUIRED = "{key}: is required"
SECRET_MASKED = "contains ***, which stands for a secret"
ONE_ARGUMENT = "{option}: expected one argument, as in {example}"
NOT_WITH_INIT = "{option} cannot be combined with --init, which takes --model"

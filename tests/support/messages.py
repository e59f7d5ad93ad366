"""The wording that tests assert: one constant per message, the shortest part that identifies it; `{...}` is filled."""

# checkpointing
CANNOT_RESUME = "cannot be resumed from"
CHANGED_FILE = "is not what was written"
OTHER_WORLD_SIZE = "{name} was saved by {before} processes and this run has {after}: the order of rows is the same"
RESUMING_FROM = "Resuming from {path}"

# reporting
TRACKER_FAILED = "{name} failed at step "
RUN_CONTINUES = "The run continues without it"

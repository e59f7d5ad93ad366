"""Checks of settings against the rows: batches that the data does not fill, rows longer than the model's positions."""

from __future__ import annotations

from collections.abc import Iterator

from sft.common.data_records import FEW_VALIDATION_ROWS, DataReport
from sft.common.run_records import BatchPlan
from sft.common.text import counted
from sft.configuration.checks.finding import Finding
from sft.configuration.schema import SFTConfig, TrainingConfig

SMALL_LAST_STEP = 0.5
"""Share of the rows of a step: a last step of an epoch with no more rows is reported."""
LOW_FILL = 0.5
"""Share of the capacity of packs; emptier ones are reported."""


def check_rows(
    config: SFTConfig, report: DataReport, plan: BatchPlan, num_rows: int | None, *, positions: int | None
) -> Iterator[Finding]:
    """Yield what does not fit the rows.

    Args:
        config: the whole configuration.
        report: the counts of the data.
        plan: the batch plan.
        num_rows: rows per epoch; None for a stream.
        positions: of the model, as its configuration states; None if it states none.
    """
    if num_rows is not None:
        yield from _check_batches(config, plan, plan.packs.num_packs if plan.packs is not None else num_rows)
    validation = report.validation
    if validation is not None and validation.is_too_small_to_judge:
        key = "validation_split" if config.data.validation_split else "validation_file"
        best = ", and the best checkpoint is chosen by them" if config.training.load_best_model_at_end else ""
        yield Finding(
            key=key,
            message=f"only {counted(validation.rows_used, 'validation row')}: loss and accuracy depend on single rows"
            f"{best}. Use {FEW_VALIDATION_ROWS} or more.",
        )
    metric = str(config.training.passed_through.metric_for_best_model)
    if validation is not None and validation.weights is None and metric.endswith("loss_unweighted"):
        yield Finding(
            key="metric_for_best_model",
            message=f"no validation row has a weight in the loss, so there is no {metric}. Write eval_loss, which is "
            "the same without weights.",
            stops=True,
        )
    yield from _check_lengths(config, report, positions)


def batch_size_key(config: TrainingConfig) -> str:
    """The setting that decides how many rows a step has."""
    keys = ("global_batch_size", "tokens_per_batch")
    return next((key for key in keys if getattr(config, key)), "per_device_train_batch_size")


def _check_batches(config: SFTConfig, plan: BatchPlan, num_rows: int) -> Iterator[Finding]:
    """Check how the rows (packs) of an epoch fill its steps."""
    size, unit = plan.global_batch_size, plan.unit
    together = plan.per_device_train_batch_size * plan.world_size
    key = batch_size_key(config.training)
    if config.training.passed_through.dataloader_drop_last:
        dropped = num_rows % together
        if dropped == num_rows:
            yield Finding(
                key="dataloader_drop_last",
                message=f"{num_rows:,} {unit} do not fill one micro-batch of {together:,}, so nothing would be "
                f"trained. Omit it, or lower {key}.",
                stops=True,
            )
            return
        if dropped:
            yield Finding(
                key="dataloader_drop_last", message=f"{dropped:,} of {num_rows:,} {unit} are dropped in each epoch."
            )
        num_rows -= dropped
    if plan.packs is not None and plan.packs.fill < LOW_FILL:
        yield Finding(
            key="packing" if config.training.packing else "tokens_per_batch",
            message=f"the packs of up to {plan.packs.capacity:,} tokens are only {plan.packs.fill:.0%} full.",
        )
    epochs, rest = plan.total_steps / plan.steps_per_epoch, counted(num_rows % size, unit.removesuffix("s"))
    if num_rows < size:
        yield Finding(
            key=key,
            message=f"a step is to train on {size:,} {unit}, and there are only {num_rows:,}: each step trains on "
            "all of them.",
        )
    elif epochs < 1:
        used = plan.total_steps * size
        yield Finding(
            key="max_steps" if config.training.max_steps > 0 else "num_train_epochs",
            message=f"{counted(plan.total_steps, 'step')} train on {used:,} of {num_rows:,} {unit} "
            f"({epochs:.2f} epochs).",
        )
    elif 0 < num_rows % size <= SMALL_LAST_STEP * size:
        yield Finding(
            key=key,
            message=f"the last step of each epoch trains on {rest} instead of {size:,}, with the same learning rate.",
        )


def _check_lengths(config: SFTConfig, report: DataReport, positions: int | None) -> Iterator[Finding]:
    """Check `max_seq_length` against the rows and the model's positions."""
    train, limit = report.train, config.data.max_seq_length
    is_set = "max_seq_length" in config.origins
    num_long = train.rows_too_long + train.rows_split + train.rows_shortened
    # Of a stream only the first rows were read.
    longest = max((split.longest_row for split in report.splits.values()), default=0) if report.is_complete else limit
    if positions is not None and longest > positions:
        found = f"rows have up to {longest:,} tokens, more than the model's {positions:,} positions"
        yield Finding(
            key="max_seq_length",
            message=f"{found}. Write max_seq_length: {positions}, or {longest} to train beyond them."
            if not is_set
            else f"{found}, so it is trained beyond them.",
            stops=not is_set,
        )
    elif not is_set and num_long and train.lengths is not None and config.data.on_too_long != "error":
        what = {"truncate": "truncated", "drop": "dropped", "split": "split"}.get(config.data.on_too_long, "shortened")
        of_model = f" The model has {positions:,} positions." if positions is not None else ""
        yield Finding(
            key="max_seq_length",
            message=f"not set, and {num_long:,} of {train.rows_read:,} training rows are {what} at its "
            f"default of {limit:,} tokens. The longest has {train.lengths.longest:,}.{of_model}",
        )

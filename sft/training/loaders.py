"""Samplers and data loaders: from rows to the micro-batches of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

from torch.utils.data import DataLoader
from transformers import TrainingArguments

from sft.batching.layout import SupervisedRows
from sft.batching.order import PackedBatchSampler, RankBatchSampler
from sft.batching.packing import PackPlan
from sft.batching.stream import MicroBatchStream
from sft.common.run_records import DistributedContext
from sft.common.training_data import RowDataset
from sft.processes.environment import tokenize_in_one_thread
from sft.training.run_setup import RunSetup


def training_sampler(setup: RunSetup, arguments: TrainingArguments, context: DistributedContext) -> RankBatchSampler:
    """The order of training: batches of rows, or of packs."""
    rows, plan, strategy = setup.data.train, setup.plan, setup.config.sampling_strategy
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    if plan.packs is not None:
        return PackedBatchSampler(
            cast(PackPlan, plan.packs),  # `common`, where the plan is declared, only has a protocol
            plan.per_device_train_batch_size,
            rank=context.rank,
            world_size=context.world_size,
            seed=seed,
            strategy=strategy,
            drop_last=arguments.dataloader_drop_last,
        )
    return RankBatchSampler(
        len(rows),
        plan.per_device_train_batch_size,
        rank=context.rank,
        world_size=context.world_size,
        seed=seed,
        strategy=strategy,
        lengths=rows.lengths if strategy in ("by_length", "group_by_length") else None,
        drop_last=arguments.dataloader_drop_last,
    )


def evaluation_sampler(rows: RowDataset, batch_size: int, context: DistributedContext) -> RankBatchSampler:
    """This process's share of the evaluation rows. Over all processes, each row comes exactly once."""
    return RankBatchSampler(
        len(rows), batch_size, rank=context.rank, world_size=context.world_size, strategy="sequential"
    )


class SetLoader:
    """Batches of one evaluation set after the other, each with the name of its set."""

    def __init__(self, loaders: Mapping[str, DataLoader[Any]]):
        self.loaders = loaders

    def __len__(self) -> int:
        return sum(map(len, self.loaders.values()))

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        for name, loader in self.loaders.items():
            for batch in loader:
                yield name, batch


def rows_loader(
    rows: RowDataset, sampler: RankBatchSampler, collator: Callable[..., dict[str, Any]], arguments: TrainingArguments
) -> DataLoader[Any]:
    """Collates the sampler's micro-batches."""
    batches = cast(Iterable[list[Any]], sampler)
    return DataLoader(SupervisedRows(rows), batch_sampler=batches, collate_fn=collator, **_loader_options(arguments))


def stream_loader(stream: MicroBatchStream, arguments: TrainingArguments) -> DataLoader[Any]:
    """The micro-batches of a stream, which the stream collates itself."""
    return DataLoader(
        stream,
        batch_size=None,
        collate_fn=_identity,
        worker_init_fn=_start_tokenizing_worker,
        **_loader_options(arguments),
    )


def _loader_options(arguments: TrainingArguments) -> dict[str, Any]:
    workers = arguments.dataloader_num_workers
    return {
        "num_workers": workers,
        "pin_memory": arguments.dataloader_pin_memory,
        "persistent_workers": workers > 0 and arguments.dataloader_persistent_workers,
        "prefetch_factor": arguments.dataloader_prefetch_factor if workers else None,
        "multiprocessing_context": getattr(arguments, "dataloader_multiprocessing_context", None) if workers else None,
        "in_order": getattr(arguments, "dataloader_in_order", True),
    }


def _identity(batch: Any) -> Any:
    return batch


def _start_tokenizing_worker(worker: int) -> None:
    """Uses one thread: the tokenizer's thread pool does not survive the fork of a worker process."""
    tokenize_in_one_thread()

"""Worker processes that prepare chunks of rows in parallel."""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import active_children, connection, get_context, parent_process
from threading import Thread

from sft.common.errors import DataError
from sft.data.rows import PreparedChunk, RowPreparer
from sft.data.sources.load import Chunk
from sft.processes.environment import tokenize_in_one_thread

CHUNKS_WITHOUT_WORKERS = 4
"""Data of at most this many chunks is prepared in this process: it is done before workers have started."""


def prepare_chunks(
    preparer: RowPreparer, chunks: Iterable[Chunk], num_workers: int
) -> Generator[tuple[Chunk, PreparedChunk], None, None]:
    """Prepare chunks, in worker processes if there are more than a few. Yields each chunk with its rows, in order.

    Only a few chunks per worker are in memory at a time. Closing the iterator early stops the workers.

    Args:
        preparer: Prepares the rows of a chunk.
        chunks: The chunks of one source.
        num_workers: Number of worker processes; 1 uses none.

    Raises:
        DataError: If a worker is killed or cannot be started.
    """
    iterator = iter(chunks)
    first = list(islice(iterator, CHUNKS_WITHOUT_WORKERS + 1 if num_workers > 1 else 0))
    if len(first) <= CHUNKS_WITHOUT_WORKERS:
        for chunk in chain(first, iterator):
            yield chunk, preparer(chunk)
        return
    # A forked process starts at once and shares what is loaded. On other systems, forking with threads is not safe.
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(preparer,))
    try:
        yield from _prepare_in_order(pool, chain(first, iterator), 2 * num_workers)
    except BrokenProcessPool:
        raise DataError(
            f"preprocessing_num_workers: one of {num_workers} worker processes was killed while it prepared rows (out "
            "of memory?). Set a smaller number or free memory."
        ) from None
    finally:
        # Waits for the chunks in work, a moment each. Terminating a process while it sends its result would leave half
        # of the result in the pipe, and the reader would wait for the rest forever.
        pool.shutdown(cancel_futures=True)


def _prepare_in_order(
    pool: ProcessPoolExecutor, chunks: Iterable[Chunk], num_ahead: int
) -> Iterator[tuple[Chunk, PreparedChunk]]:
    """Submit chunks, at most `num_ahead` in advance, and yield the results in the order of the chunks."""
    waiting: deque[tuple[Chunk, Future]] = deque()
    other_processes = set(active_children())
    for chunk in chunks:
        try:
            waiting.append((chunk, pool.submit(_prepare_in_worker, chunk)))
        except OSError as error:
            # Workers that did start have no work yet, and the pool would not stop them.
            for process in set(active_children()) - other_processes:
                process.terminate()
            raise DataError(
                f"preprocessing_num_workers: cannot start that many worker processes here: {error.strerror}. Set a "
                "smaller number."
            ) from None
        if len(waiting) > num_ahead:
            chunk, future = waiting.popleft()
            yield chunk, future.result()
    while waiting:
        chunk, future = waiting.popleft()
        yield chunk, future.result()


_preparer_of_worker: RowPreparer | None = None
"""Set once in each worker process: sending it with every chunk would cost more than the chunk itself."""


def _start_worker(preparer: RowPreparer) -> None:
    global _preparer_of_worker
    _preparer_of_worker = preparer
    # Ctrl-C reaches every process of a terminal. The parent handles it and stops the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Thread(target=_exit_with_parent, daemon=True).start()
    # The tokenizer's threads do not survive the fork, and each worker has one core.
    tokenize_in_one_thread()


def _exit_with_parent() -> None:
    """End the worker when its parent is gone: it would wait for work forever and keep inherited locks and memory."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _prepare_in_worker(chunk: Chunk) -> PreparedChunk:
    assert _preparer_of_worker is not None
    return _preparer_of_worker(chunk)

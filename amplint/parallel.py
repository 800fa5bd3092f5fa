"""Many files in several processes; a file that takes its process down takes nothing else with it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from amplint import checks, engine
from amplint.files import File

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

PATIENCE = 1.0  # seconds before a run is long
ENOUGH = 64  # files: below that a pool costs more than it saves


def check_all(found: list[File], job: engine.Job) -> list[engine.Outcome]:
    """One outcome a file, in order."""
    workers = min(_processors(), len(found) // 16)
    if len(found) < ENOUGH or workers < 2:
        return _one_by_one(found, job)
    checks.prepare()  # once, before the processes part
    size = max(1, min(32, len(found) // (workers * 4)))
    return _check_chunks([found[start : start + size] for start in range(0, len(found), size)], job, workers)


def _one_by_one(found: list[File], job: engine.Job) -> list[engine.Outcome]:
    outcomes: list[engine.Outcome] = []
    with _progress(job, len(found)) as tell:
        for file in found:
            outcomes.append(engine.check_file(file, job))
            tell(len(outcomes))
    return outcomes


@contextlib.contextmanager
def _progress(job: engine.Job, total: int) -> Iterator[Callable[[int], None]]:
    """Says on a terminal how far a long run is, in one line that goes when it is done."""
    begun, said = time.monotonic(), False

    def tell(done: int) -> None:
        nonlocal said
        if job.progress and time.monotonic() - begun > PATIENCE:
            said = True
            print(f"\r\x1b[K{done} of {total} files checked", end="", file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        if said:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _check_chunks(chunks: list[list[File]], job: engine.Job, workers: int) -> list[engine.Outcome]:
    outcomes: list[engine.Outcome] = []
    with _progress(job, sum(map(len, chunks))) as tell:
        _work_off(chunks, job, workers, outcomes, tell)
    return outcomes


def _work_off(
    chunks: list[list[File]],
    job: engine.Job,
    workers: int,
    outcomes: list[engine.Outcome],
    tell: Callable[[int], None],
) -> None:
    import multiprocessing
    from concurrent.futures.process import BrokenProcessPool

    while chunks:
        done = 0
        with _pool(workers) as pool:
            futures = [pool.submit(check_chunk, chunk, job) for chunk in chunks]
            try:
                for future in futures:
                    outcomes += future.result()
                    done += 1
                    tell(len(outcomes))
            except BrokenProcessPool:
                pass
            except BaseException:  # Ctrl-C: wait for nobody
                for worker in multiprocessing.active_children():
                    worker.terminate()
                raise
        chunks = chunks[done:]
        if chunks:  # one of the files in work killed its process: the first chunk goes file by file, the rest again
            outcomes += [_check_apart(file, job) for file in chunks.pop(0)]


def check_chunk(chunk: list[File], job: engine.Job) -> list[engine.Outcome]:
    """What a worker does."""
    return [engine.check_file(file, job) for file in chunk]


def _check_apart(file: File, job: engine.Job) -> engine.Outcome:
    from concurrent.futures.process import BrokenProcessPool

    try:
        with _pool(1) as pool:
            return pool.submit(engine.check_file, file, job).result()
    except BrokenProcessPool:
        return engine.failure(file.path, "amplint crashed on this file: please report, and exclude it")


def _pool(workers: int) -> ProcessPoolExecutor:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # fork starts in no time; elsewhere than on Linux it is not safe, and the default is used
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare)


def _prepare() -> None:
    """Make a worker quiet: it dies of a signal without a traceback, and when the main process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    from multiprocessing import connection, parent_process

    if parent := parent_process():
        connection.wait([parent.sentinel])
        os._exit(1)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

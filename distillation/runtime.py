"""Where the work on blocks is done: in this process, in worker processes, or on a Ray cluster. Order and result agree.

Work is a top-level function of a plan (the same for all blocks) and a task (one block's part).
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from types import TracebackType
from typing import Any, Protocol, TypeVar

from .sources import Block, Log, blocks

Plan = TypeVar("Plan")
Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass
class Clock:
    """CPU seconds by step, added up over blocks and processes."""

    seconds: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.process_time()
        try:
            yield
        finally:
            self.seconds[name] += time.process_time() - start  # type: ignore[assignment]


class Runtime(Protocol):
    """Maps work over tasks; results come in the order of the tasks."""

    def __enter__(self) -> Runtime: ...

    def __exit__(self, *exception: Any) -> None: ...

    def map(self, work: Callable[[Plan, Task], Result], plan: Plan, tasks: Iterable[Task]) -> Iterator[Result]: ...

    def map_blocks(
        self, work: Callable[[Plan, tuple[int, Block]], Result], plan: Plan, logs: Sequence[Log]
    ) -> Iterator[Result]: ...


class LocalRuntime:
    """Worker processes on this machine, one a core; a single task is done here, where no process need be started."""

    def __init__(self, workers: int | None = None) -> None:
        self._workers = workers or len(os.sched_getaffinity(0))
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> LocalRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def map(self, work: Callable[[Plan, Task], Result], plan: Plan, tasks: Iterable[Task]) -> Iterator[Result]:
        source = iter(tasks)
        first = list(islice(source, 2))
        if len(first) < 2 or self._workers == 1:
            for task in chain(first, source):
                yield work(plan, task)
            return
        if self._pool is None:
            # Not forked: Arrow and BLAS have threads by now, and a forked child may wait for one for ever.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["pyarrow.compute", "numpy", "orjson", "rensa", work.__module__])
            self._pool = ProcessPoolExecutor(self._workers, mp_context=context, initializer=_one_thread)
        waiting: deque[Future[Result]] = deque()
        for task in chain(first, source):
            waiting.append(self._pool.submit(work, plan, task))
            if len(waiting) > 2 * self._workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def map_blocks(
        self, work: Callable[[Plan, tuple[int, Block]], Result], plan: Plan, logs: Sequence[Log]
    ) -> Iterator[Result]:
        return self.map(work, plan, blocks(logs))


def _one_thread() -> None:
    """Keep a worker to its core (every core has a worker already), and to the life of the process that wants its work.

    A worker whose parent was killed would wait for its next task for ever: each holds the queue open for the others.
    """
    import pyarrow as pa

    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["RAYON_NUM_THREADS"] = "1"
    gc.disable()  # a block makes a million objects and no cycles: looking for them costs a fifth of the time
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def runtime_of(kind: str, workers: int | None = None) -> Runtime:
    """The runtime that a recipe names; raises RecipeError for ray when it is not installed."""
    if kind == "ray":
        from .runtime_ray import RayRuntime

        return RayRuntime()
    return LocalRuntime(workers)

"""The same work on a Ray cluster, by Ray Data: files are read in parallel, results come in the order of the tasks.

The working folder must be on storage that every node sees (the spool is written there, redacted already). An address is
taken from RAY_ADDRESS; without one a cluster of this machine is begun and ended.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from potstill.errors import RecipeError

from .sources import Block, Log, blocks_of

Plan = TypeVar("Plan")
Task = TypeVar("Task")
Result = TypeVar("Result")


class RayRuntime:
    """Maps work over tasks by Ray Data, one task a core."""

    def __init__(self) -> None:
        if importlib.util.find_spec("ray") is None:
            raise RecipeError(["distill.runtime: ray is not installed; `pip install potstill[ray]`"])
        self._begun = False

    def __enter__(self) -> RayRuntime:
        import ray.data

        if not ray.is_initialized():
            # Workers must find the stages as this process does, wherever it was started.
            environment = {"PYTHONPATH": os.pathsep.join(each for each in sys.path if each), "RAYON_NUM_THREADS": "1"}
            begin: Any = ray.init
            address = os.environ.get("RAY_ADDRESS")
            options = {"address": address} if address else {"include_dashboard": False}
            begin(runtime_env={"env_vars": environment}, logging_level="ERROR", log_to_driver=False, **options)
            self._begun = True
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        return self

    def __exit__(self, *exception: Any) -> None:
        import ray

        if self._begun:
            ray.shutdown()

    def map(self, work: Callable[[Plan, Task], Result], plan: Plan, tasks: Iterable[Task]) -> Iterator[Result]:
        import ray.data

        items = [{"task": pickle.dumps(each)} for each in tasks]
        if items:
            yield from self._run(ray.data.from_items(items, override_num_blocks=len(items)), work, plan)

    def map_blocks(
        self, work: Callable[[Plan, tuple[int, Block]], Result], plan: Plan, logs: Sequence[Log]
    ) -> Iterator[Result]:
        import ray.data

        yield from self._run(ray.data.read_datasource(_source(logs), override_num_blocks=len(logs)), work, plan)

    def _run(self, tasks: Any, work: Callable[[Plan, Any], Result], plan: Plan) -> Iterator[Result]:
        call = {"work": f"{work.__module__}:{work.__qualname__}", "plan": pickle.dumps(plan)}
        for row in tasks.map_batches(_worked, batch_size=1, batch_format="pyarrow", fn_kwargs=call).iter_rows():
            yield pickle.loads(row["result"])


def _worked(batch: Any, work: str, plan: bytes) -> Any:
    """One task of a batch of one, done where Ray put it."""
    from importlib import import_module

    import pyarrow as pa

    module, _, name = work.partition(":")
    function = getattr(import_module(module), name)
    results = [pickle.dumps(function(_plan(plan), pickle.loads(each))) for each in batch.column("task").to_pylist()]
    return pa.table({"result": pa.array(results, pa.large_binary())})


_PLANS: dict[int, Any] = {}


def _plan(plan: bytes) -> Any:
    """The plan, unpickled once a worker."""
    key = hash(plan)
    if key not in _PLANS:
        _PLANS.clear()
        _PLANS[key] = pickle.loads(plan)
    return _PLANS[key]


def _source(logs: Sequence[Log]) -> Any:
    """A Ray datasource with one read task a file; its rows are pickled (number, Block) pairs."""
    import pyarrow as pa
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    def reading(at: int, log: Log) -> Callable[[], Iterator[Any]]:
        def read() -> Iterator[Any]:
            for pair in blocks_of(at, log):
                yield pa.table({"task": pa.array([pickle.dumps(pair)], pa.large_binary())})

        return read

    class Logs(Datasource):
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(reading(at, log), metadata) for at, log in enumerate(logs)]

    made: Any = Logs
    return made()

"""What the workers of a server have counted, added up: each leaves its numbers in a shared folder, any gives the sum.

A scrape writes its own worker's numbers down before it adds the others' up, so that no later scrape, by whichever
worker, sees a counter go back (which Prometheus would take for a restart and count twice). The counters of a worker
that died stay in the sum, its gauges leave it: what a kill loses is at most EVERY_S of counting.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

EVERY_S = 1.0
LIVING_S = 10.0  # without a sign of life a worker's gauges count no more
GONE_S = 120.0  # and its counters are kept with those of all that are gone
_PAST = "past.json"

Labels = tuple[tuple[str, str], ...]


@dataclass
class Family:
    """A metric with its samples by name and labels. `mode` says how gauges of several workers become one."""

    name: str
    kind: str
    what: str
    mode: str = "sum"
    samples: dict[tuple[str, Labels], float] = field(default_factory=dict)


def families_of(registry: CollectorRegistry) -> list[Family]:
    """Everything registered, as it stands now. A gauge says by its `multiprocess_mode` how it is added up."""
    modes = {
        name: str(getattr(each, "_multiprocess_mode", "max")).replace("live", "").replace("all", "max")
        for name, each in tuple(registry._names_to_collectors.items())
        if isinstance(each, Gauge)
    }
    found = []
    for metric in registry.collect():
        family = Family(metric.name, metric.type, metric.documentation, modes.get(metric.name, "sum"))
        for each in metric.samples:
            if not each.name.endswith("_created"):
                family.samples[each.name, tuple(each.labels.items())] = each.value
        found.append(family)
    return found


class _Given(Collector):
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            metric = Metric(family.name, family.what, family.kind)
            for (name, labels), value in family.samples.items():
                metric.add_sample(name, dict(labels), value)
            yield metric


def exposition(families: Iterable[Family]) -> bytes:
    """Prometheus' text format."""
    return generate_latest(_Given(families))


class Shared:
    """The numbers of one worker in the folder of all."""

    def __init__(self, folder: Path, worker: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._name = folder, f"worker-{worker}-{os.getpid()}-{uuid4().hex[:6]}.json"
        self._fold()

    def leave(self, families: list[Family]) -> None:
        """Put this worker's numbers into the folder; readers see the old ones or these."""
        _write(self._folder / self._name, families)

    def together(self, families: list[Family]) -> list[Family]:
        """The numbers of all workers, these being our own."""
        self.leave(families)
        past = _read(self._folder / _PAST)
        total = {family.name: family for family in families}
        folded = set(past["folded"])
        _add(total, past["families"], living=False)
        for path, age in self._others():
            if path.name not in folded:
                _add(total, _read(path)["families"], living=age < LIVING_S)
        return list(total.values())

    def _others(self) -> list[tuple[Path, float]]:
        found, now = [], time.time()
        for path in sorted(self._folder.glob("worker-*.json")):
            if path.name != self._name:
                with suppress(FileNotFoundError):
                    found.append((path, now - path.stat().st_mtime))
        return found

    def _fold(self) -> None:
        """Add the counters of workers that are gone to the past. A kill between its two steps counts nothing twice:
        the past names whom it holds.
        """
        with (self._folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            past = _read(self._folder / _PAST)
            gone = [path for path, age in self._others() if age > GONE_S]
            fresh = [path for path in gone if path.name not in past["folded"]]
            if fresh:
                total = {each.name: each for each in past["families"]}
                for path in fresh:
                    _add(total, _read(path)["families"], living=False)
                _write(self._folder / _PAST, list(total.values()), [*past["folded"], *(each.name for each in fresh)])
            for path in gone:
                path.unlink(missing_ok=True)


def _add(total: dict[str, Family], more: list[Family], living: bool) -> None:
    for family in more:
        if family.kind == "gauge" and not living:
            continue
        here = total.get(family.name)
        if here is None:
            total[family.name] = family
            continue
        for key, value in family.samples.items():
            before = here.samples.get(key)
            if before is None:
                here.samples[key] = value
            elif family.kind == "gauge" and family.mode in ("min", "max"):
                here.samples[key] = min(before, value) if family.mode == "min" else max(before, value)
            else:
                here.samples[key] = before + value


def _write(path: Path, families: list[Family], folded: Iterable[str] = ()) -> None:
    rows: list[Any] = [
        [each.name, each.kind, each.what, each.mode, [[*key, value] for key, value in each.samples.items()]]
        for each in families
    ]
    partial = path.with_name(f"{path.name}.{uuid4().hex[:6]}.partial")
    partial.write_bytes(orjson.dumps({"families": rows, "folded": list(folded)}))
    os.replace(partial, path)


def _read(path: Path) -> dict[str, Any]:
    """`families` and `folded` of a file; nothing where there is none, or one that a power cut spoiled."""
    try:
        data = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {"families": [], "folded": []}
    families = []
    for name, kind, what, mode, samples in data["families"]:
        family = Family(name, kind, what, mode)
        for sample, labels, value in samples:
            family.samples[sample, tuple((key, each) for key, each in labels)] = value
        families.append(family)
    return {"families": families, "folded": data["folded"]}

"""The semantic cache on Banking77: how many requests it answers, how many of those wrongly, against the promised bound.

    python -m benchmarks.semantic_cache --data BANKING77_FOLDER [--orders 5] [--quick] [--json] [--keep]

The folder (or POTSTILL_BANKING77) holds `train.csv` and `test.csv` of the data set: 13,083 questions of bank customers
with 77 intents; questions of one intent are paraphrases of one another. They come once each in a random order; the
engine answers with the human label, so whatever the cache gives that is not the label is a false hit. Some labels are
wrong themselves, which counts against every cache here alike.

Beside it: the rule of the vCache paper by itself (one logistic model an entry, no pooling, similarity alone, entries
only where the nearest one was wrong; its bound is on all answers), and a fixed threshold, also at the threshold with
which it has the same false-hit rate (found afterwards, with the answers in hand: better than anybody could set it).
Intervals are Wilson's at 95 % over all orders.
"""

from __future__ import annotations

import asyncio
import csv
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import Record, arguments, columns
from potstill.intervals import wilson
from potstill.serving.caches.embedding import DIMENSIONS, Embedder
from potstill.serving.caches.kept import Kept
from potstill.serving.caches.nearest import Points, search
from potstill.serving.caches.verified import Beliefs, features, refit, share_given

VARIABLE = "POTSTILL_BANKING77"
DELTAS = (0.01, 0.02, 0.05)
THRESHOLDS = (0.8, 0.9, 0.95)
Array = np.ndarray[Any, Any]
Stream = tuple[Array, Array]  # vectors (requests, DIMENSIONS) and labels as numbers, in the order in which they come


@dataclass
class Tally:
    """What came of some orders of the stream."""

    requests: int = 0
    hits: int = 0
    wrong: int = 0
    rates: list[tuple[float, float]] = field(default_factory=list)

    def add(self, requests: int, hits: int, wrong: int) -> None:
        self.requests, self.hits, self.wrong = self.requests + requests, self.hits + hits, self.wrong + wrong
        self.rates.append((hits / requests, wrong / max(1, hits)))

    @property
    def per_hit(self) -> float:
        return self.wrong / max(1, self.hits)

    @property
    def per_answer(self) -> float:
        return self.wrong / max(1, self.requests)

    def row(self, name: str) -> tuple[str, ...]:
        low, high = wilson(self.wrong, self.hits) if self.hits else (0.0, 1.0)
        per_hit = f"{self.per_hit:.2%} [{low:.2%}, {high:.2%}]"
        return name, f"{self.hits / max(1, self.requests):.1%}", per_hit, f"{self.per_answer:.2%}"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get(VARIABLE), help=f"folder of the data ({VARIABLE})")
    parser.add_argument("--orders", type=int, default=3)
    args = parser.parse_args()
    if not args.data:
        parser.error(f"give --data or {VARIABLE}")
    record = Record("semantic_cache", quick=args.quick, packages=("numpy", "wordllama", "tokenizers"))
    stream = embedded(Path(args.data), record)
    orders = 2 if args.quick else args.orders
    rows = measure_policies(record, stream, orders)
    measure_speed(record, stream)
    record.note(columns([("cache", "answered", "false of the given", "false of all"), *rows]))
    raise SystemExit(record.finish(as_json=args.json, keep=args.keep))


def embedded(folder: Path, record: Record) -> Stream:
    """Vectors (rows, DIMENSIONS) and labels as numbers."""
    rows = [row for name in ("train", "test") for row in csv.DictReader((folder / f"{name}.csv").open(newline=""))]
    embedder = Embedder()
    start = time.thread_time()
    vectors = [embedder.vector(row["text"]) for row in rows]
    record.figure("embedding a question, processor time", (time.thread_time() - start) / len(rows) * 1e6, "us")
    number: dict[str, int] = {}
    kept = [at for at, each in enumerate(vectors) if each is not None]
    labels = [number.setdefault(rows[at]["category"], len(number)) for at in kept]
    return np.stack([each for each in vectors if each is not None]), np.array(labels)


def measure_policies(record: Record, stream: Stream, orders: int) -> list[tuple[str, ...]]:
    """Every policy over the same orders; checks the bounds."""
    rows = []
    fixed = fixed_curve(stream, orders)
    for threshold in THRESHOLDS:
        rows.append(fixed[threshold].row(f"fixed threshold {threshold}"))
    for delta in DELTAS:
        papers = over_orders(stream, orders, lambda s, o, d=delta: run_paper(s, o, d))
        rows.append(papers.row(f"vCache's rule an entry, delta {delta}"))
        for bound in ("answers", "hits"):
            ours = over_orders(stream, orders, lambda s, o, d=delta, b=bound: run_ours(s, o, d, b))
            rows.append(ours.row(f"ours, delta {delta} of {bound}"))
            judged(record, ours, delta, bound)
            if bound == "hits":
                beside(record, ours, papers, fixed, delta, rows)
    return rows


def judged(record: Record, ours: Tally, delta: float, bound: str) -> None:
    of, rate = (ours.hits, ours.per_hit) if bound == "hits" else (ours.requests, ours.per_answer)
    name = f"delta {delta} of {bound}"
    record.figure(f"{name}: answered", [hits for hits, _ in ours.rates], "of all")
    record.figure(f"{name}: false of the given", [wrong for _, wrong in ours.rates], "of hits")
    low, high = wilson(ours.wrong, of)
    record.figure(f"{name}: false, all orders, interval", [low, rate, high], f"of {bound}")
    record.check(f"{name}: false, all orders", rate, at_most=delta)


def beside(
    record: Record, ours: Tally, papers: Tally, fixed: dict[float, Tally], delta: float, rows: list[tuple[str, ...]]
) -> None:
    """A fixed threshold with the same false-hit rate, and the paper's hit rate."""
    share = ours.hits / ours.requests
    as_safe = [each for each in fixed.values() if each.per_hit <= max(ours.per_hit, 1e-9)]
    best = max((each.hits / each.requests for each in as_safe), default=0.0)
    at = next((t for t, each in fixed.items() if each in as_safe and each.hits / each.requests == best), None)
    rows.append(("  fixed at the same false-hit rate", f"{best:.1%}", f"threshold {at}", ""))
    record.figure(f"delta {delta}: answered by a fixed threshold as safe", best, "of all")
    record.check(f"delta {delta}: answered, beside a fixed threshold as safe", share / max(best, 1e-3), at_least=1.5)
    record.check(
        f"delta {delta}: answered, beside vCache's rule an entry", share / max(papers.hits / papers.requests, 1e-3),
        at_least=1.5,
    )  # fmt: skip


def over_orders(stream: Stream, orders: int, run: Callable[[Stream, int], tuple[int, int]]) -> Tally:
    """`run(stream in its order, seed)` gives hits and wrong ones."""
    tally = Tally()
    for seed in range(orders):
        tally.add(len(stream[0]), *run(shuffled(stream, seed), seed))
    return tally


def shuffled(stream: Stream, seed: int) -> Stream:
    order = list(range(len(stream[0])))
    random.Random(seed).shuffle(order)
    return stream[0][order], stream[1][order]


def run_ours(stream: Stream, seed: int, delta: float, bound: str) -> tuple[int, int]:
    """The product's own search and beliefs, fits in line."""
    vectors, labels = stream
    held, answers, count = np.empty_like(vectors), np.empty_like(labels), 0
    beliefs, draw, hits, wrong = Beliefs(), random.Random(seed), 0, 0
    for vector, label in zip(vectors, labels, strict=True):
        if count:
            row, similarity, other = search(held[:count], answers[:count], vector)
            if row >= 0:
                x = features(similarity, other)
                alpha, right = beliefs.sure(row, x), bool(answers[row] == label)
                if draw.random() < share_given(alpha, delta, bound):
                    hits, wrong = hits + 1, wrong + (not right)
                    continue
                beliefs.observe(row, x, right, 1 - alpha if alpha >= 1 - delta else None)
                if beliefs.due:
                    beliefs.fit = refit(*beliefs.material())
        held[count], answers[count] = vector, label
        count += 1
    return hits, wrong


def fixed_curve(stream: Stream, orders: int) -> dict[float, Tally]:
    """A fixed threshold that keeps every answer that it did not give, at many thresholds."""
    thresholds = sorted({*THRESHOLDS, 0.85, 0.93, 0.96, 0.97, 0.98, 0.99})
    return {each: over_orders(stream, orders, lambda s, o, t=each: run_fixed(s, t)) for each in thresholds}


def run_fixed(stream: Stream, threshold: float) -> tuple[int, int]:
    vectors, labels = stream
    held, answers, count = np.empty_like(vectors), np.empty_like(labels), 0
    hits = wrong = 0
    for vector, label in zip(vectors, labels, strict=True):
        if count:
            cosines = held[:count] @ vector
            row = int(cosines.argmax())
            if cosines[row] >= threshold:
                hits, wrong = hits + 1, wrong + int(answers[row] != label)
                continue
        held[count], answers[count] = vector, label
        count += 1
    return hits, wrong


def run_paper(stream: Stream, seed: int, delta: float) -> tuple[int, int]:
    """vCache's rule by itself: an entry's own observations alone, six at least (two of them given: wrong at
    similarity 0, right at 1), an entry only where the nearest one was wrong, delta over all answers."""
    vectors, labels = stream
    held, answers, count = np.empty_like(vectors), np.empty_like(labels), 0
    observed: dict[int, list[tuple[float, bool]]] = {}
    fits: dict[int, tuple[float, float, float]] = {}
    draw, hits, wrong = random.Random(seed), 0, 0
    for vector, label in zip(vectors, labels, strict=True):
        if count:
            cosines = held[:count] @ vector
            row = int(cosines.argmax())
            similarity, right = float(cosines[row]), bool(answers[row] == label)
            own = observed.setdefault(row, [(0.0, False), (1.0, True)])
            if len(own) >= 6:
                known = fits.get(row) or fits.setdefault(row, own_threshold(own))
                if draw.random() > explored(similarity, delta, *known):
                    hits, wrong = hits + 1, wrong + (not right)
                    continue
            own.append((similarity, right))
            fits.pop(row, None)
            if right:
                continue
        held[count], answers[count] = vector, label
        count += 1
    return hits, wrong


EPSILON = np.linspace(1e-6, 1 - 1e-6, 50)
QUANTILES = np.array([statistics.NormalDist().inv_cdf(1 - each) for each in EPSILON])


def explored(similarity: float, delta: float, threshold: float, slope: float, variance: float) -> float:
    """The share of requests that is asked: the least over the grid of confidence levels."""
    edges = np.clip(threshold + QUANTILES * math.sqrt(variance), 0, 1)
    right = 1 / (1 + np.exp(-np.clip(slope * (similarity - edges), -60, 60)))
    return float((1 - delta / np.maximum(1e-12, 1 - (1 - EPSILON) * right)).min())


def own_threshold(observed: Sequence[tuple[float, bool]]) -> tuple[float, float, float]:
    """Threshold, slope and the threshold's variance (delta method) of one entry's logistic regression, unpenalised.

    Where right and wrong are separated, as they mostly are with so few, the slope grows until the steps end; the
    authors take the variance from a table then, which is not used here.
    """
    x = np.array([[1.0, similarity] for similarity, _ in observed])
    y = np.array([float(right) for _, right in observed])
    middle = x[:, 1].mean()
    x[:, 1] -= middle
    beta, cov = np.zeros(2), np.eye(2)
    for _ in range(30):
        p = 1 / (1 + np.exp(-np.clip(x @ beta, -60, 60)))
        cov = np.linalg.inv((x * (p * (1 - p))[:, None]).T @ x + 1e-9 * np.eye(2))
        step = cov @ (x.T @ (y - p))
        largest = max(abs(float(step[0])), 0.1 * abs(float(step[1])))
        beta = beta + step * min(1.0, 3.0 / max(1e-9, largest))
        if largest < 1e-5:
            break
    slope = max(float(beta[1]), 1e-6)
    gradient = np.array([-1 / slope, float(beta[0]) / slope**2])
    threshold = min(1.0, max(0.0, middle - float(beta[0]) / slope))
    return threshold, slope, max(0.0, float(gradient @ cov @ gradient))


def measure_speed(record: Record, stream: Stream) -> None:
    """Microseconds of a look-up among so many entries, and as the server does it in a thread; and of one decision."""
    vectors, labels = stream
    draw = np.random.default_rng(0)
    for rows in (1_000, 10_000, 100_000):
        found = draw.standard_normal((rows, DIMENSIONS), dtype=np.float32)
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        codes = draw.integers(0, 77, rows)
        record.figure(
            f"search among {rows:,}, processor time", timed(lambda f=found, c=codes: search(f, c, vectors[0]), 50), "us"
        )
    beliefs = Beliefs()
    for at in range(400):
        beliefs.observe(at % 80, features(draw.uniform(0.5, 1), 0.5), bool(draw.random() < 0.8))
    beliefs.fit = refit(*beliefs.material())
    record.figure("one decision, processor time", timed(lambda: beliefs.sure(3, features(0.9, 0.7)), 2000), "us")
    asyncio.run(look_up(record, vectors, labels))


async def look_up(record: Record, vectors: Array, labels: Array) -> None:
    points = Points(20_000)
    for vector, label in zip(vectors, labels, strict=True):
        points.add(b"", vector, int(label), Kept(b"{}", time.time()))
    start = time.perf_counter()
    for vector in vectors[:500]:
        await points.nearest(vector, 3600)
    record.figure(
        f"look-up among {len(points):,}, in a thread, wall clock", (time.perf_counter() - start) / 500 * 1e6, "us"
    )


def timed(call: Callable[[], object], times: int) -> list[float]:
    """Microseconds of processor time a call, in five runs."""
    found = []
    for _ in range(5):
        start = time.thread_time()
        for _ in range(times):
            call()
        found.append((time.thread_time() - start) / times * 1e6)
    return found


if __name__ == "__main__":
    main()

"""How often drift is called where there is none, and how soon where it was planted: Banking77 through the real monitor.

    python -m benchmarks.drift [--quick] [--streams 200] [--json] [--keep]

No drift: the log's rows are shuffled; one half makes the training profile, streams are drawn from the other. A stream
is looked at every 200 exchanges, and any alarm of any feature at any look counts against it. The promise is `alpha` a
stream, at 0.05 and at the default 0.01, with the default tolerances and with none. New halves are drawn for every tenth
of the streams, since the chance that a profile is unlucky is part of the promise.

Planted: after 1,000 exchanges a share of the stream becomes something else: questions of another domain (restaurant
bookings), three times as long, answered with one new answer that is none, all answered with one label, or with half of
the labels three times as frequent. Delay is in exchanges after the change, to the next look (every 50).
"""

from __future__ import annotations

import gzip
import json
import os
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.record import Record, arguments
from potstill.records import Example, Message
from potstill.tasks import Task, task_from
from potstill.watching.features import answer_category, seen_of
from potstill.watching.monitor import Monitor
from potstill.watching.profile import Profile, make_profile
from potstill.watching.settings import MonitorSettings

ROOT = Path(__file__).resolve().parents[1]
LENGTH, LOOKS = 2_000, 200
BEFORE, AFTER, LOOKS_AFTER = 1_000, 2_000, 50
SHARES = (0.1, 0.3, 1.0)
DRIFTS = ("domain", "length", "new answer", "one label", "label mix")
Row = tuple[str, str]
Places = dict[str, int]


@dataclass(frozen=True)
class World:
    """A profile of one half of the rows, and what is counted of each row of the other."""

    task: Task
    profile: Profile
    rows: list[Row]

    def places(self, row: Row) -> Places:
        text, answer = row
        found = self.profile.places(seen_of([{"role": "user", "content": text}]))
        category = answer_category(self.task, self.task.parse(answer), answer)
        return {**found, "answer": self.profile.references["answer"].place(category)}


def log(name: str) -> list[Row]:
    """(newest user text, answer) of each exchange."""
    folder = Path(os.environ.get("POTSTILL_TRAFFIC") or ROOT.parent / "shared" / "traffic")
    found = []
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            answer = row["response"]["choices"][0]["message"].get("content") or ""
            found.append((str(row["request"]["messages"][-1]["content"]), str(answer)))
    return found


def world(rows: Sequence[Row], task: Task, seed: int) -> World:
    order = list(rows)
    random.Random(seed).shuffle(order)
    half = len(order) // 2
    examples = [_example(at, *row) for at, row in enumerate(order[:half])]
    return World(task, make_profile(examples, task), order[half:])


def _example(at: int, text: str, answer: str) -> Example:
    messages: list[Message] = [{"role": "user", "content": text}]
    return Example(str(at), str(at), messages, messages, answer, answer, answer)


def first_alarm(monitor: Monitor, stream: Iterator[Places], every: int) -> tuple[int, list[str]] | None:
    """The exchanges counted until the first alarm and the features that gave it; None without any."""
    for at, places in enumerate(stream, 1):
        for name, place in places.items():
            monitor.features[name].stream.add(place)  # type: ignore[union-attr]
        if at % every == 0:
            alarmed = [each["feature"] for each in monitor.look() if each["alarm"]]
            if alarmed:
                return at, alarmed
    return None


def false_alarms(worlds: Sequence[World], streams: int, settings: MonitorSettings) -> int:
    """How many of the streams without drift had any alarm."""
    count = 0
    for place in worlds:
        counted = [place.places(row) for row in place.rows]
        for seed in range(streams // len(worlds)):
            drawn = random.Random(seed).sample(counted, LENGTH)
            monitor = Monitor(place.profile, place.task, settings)
            count += first_alarm(monitor, iter(drawn), LOOKS) is not None
    return count


def planted(place: World, kind: str, share: float, other: Sequence[Row], seed: int) -> Iterator[Places]:
    """A stream that changes after BEFORE exchanges."""
    draw = random.Random(seed)
    changed = _changed(kind, place, other, draw)
    for at in range(BEFORE + AFTER):
        row = draw.choice(place.rows)
        yield place.places(changed(row) if at >= BEFORE and draw.random() < share else row)


def _changed(kind: str, place: World, other: Sequence[Row], draw: random.Random) -> Callable[[Row], Row]:
    labels = sorted({answer for _, answer in place.rows})
    more = set(labels[::2])
    frequent = [row for row in place.rows if row[1] in more]
    return {
        "domain": lambda row: (draw.choice(other)[0], row[1]),
        "length": lambda row: (row[0] * 3, row[1]),
        "new answer": lambda row: (row[0], "something_new"),
        "one label": lambda row: (row[0], labels[0]),
        "label mix": lambda row: draw.choice(frequent) if draw.random() < 0.5 else row,
    }[kind]


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--streams", type=int, default=None, help="without drift (default: 400, quick 200)")
    args = parser.parse_args()
    streams = args.streams or (200 if args.quick else 400)
    repeats = 5 if args.quick else 20
    rows, other = log("banking77"), log("restaurants8k")
    names = [line.strip() for line in (ROOT / "configs/banking77/labels.txt").read_text().splitlines() if line.strip()]
    task = task_from({"kind": "classification", "labels": names})
    record = Record("drift", quick=args.quick, packages=("numpy", "scipy"))
    worlds = [world(rows, task, seed) for seed in range(10)]
    for alpha, tolerance in ((0.05, None), (0.05, 0.0), (0.01, None)):
        given = {} if tolerance is None else {"tolerance": tolerance, "answer_tolerance": tolerance}
        settings = MonitorSettings.model_validate({"alpha": alpha, **given})
        found = false_alarms(worlds, streams, settings)
        kind = "default tolerance" if tolerance is None else "no tolerance"
        record.check(f"false alarms at {alpha:g}, {kind}, {streams} streams", found / streams, at_most=alpha)
    for kind in DRIFTS:
        for share in SHARES:
            found_at, features = [], set()
            for seed in range(repeats):
                place = worlds[seed % len(worlds)]
                monitor = Monitor(place.profile, place.task, MonitorSettings())
                alarm = first_alarm(monitor, planted(place, kind, share, other, seed), LOOKS_AFTER)
                if alarm is not None and alarm[0] > BEFORE:
                    found_at.append(float(alarm[0] - BEFORE))
                    features.update(alarm[1])
            record.figure(f"{kind}, {share:.0%}: detected", len(found_at) / repeats, "share")
            record.figure(f"{kind}, {share:.0%}: delay", found_at, "exchanges")
            if share == 1.0 and kind != "label mix":
                record.check(f"{kind}, all: median delay", _median(found_at, repeats), at_most=200, unit="exchanges")
            record.note(f"{kind}, {share:.0%}: alarmed by {', '.join(sorted(features)) or 'nothing'}")
    return int(record.finish(as_json=args.json, keep=args.keep))


def _median(found: Sequence[float], of: int) -> float | None:
    """The median delay, where more than half were seen."""
    return statistics.median(found) if len(found) > of / 2 else None


if __name__ == "__main__":
    raise SystemExit(main())

"""How far live traffic has moved from what the model was trained on: counted on the way, looked at aside.

On the way of a request stands one append of a few words cut from it. A task of the event loop counts them in small
slices (at most `most_per_s` exchanges a second: some thousand decide, not all), and every `every_s` a thread weighs the
evidence, sets the gauges and sends what alarms to the webhooks.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakKeyDictionary

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge

from potstill.errors import DamagedLine
from potstill.feedback_join import FEEDBACK, read_feedback_line
from potstill.progress import say
from potstill.records import Json
from potstill.serving.call import Call
from potstill.serving.engine_step import Question
from potstill.serving.errors import RequestRefused
from potstill.serving.steps import Step
from potstill.watching.features import Seen, seen_of
from potstill.watching.monitor import Monitor
from potstill.watching.offline import confidence_of
from potstill.watching.opinions import canonical_of, right_of
from potstill.watching.profile import Profile
from potstill.watching.settings import CheckSettings, DriftSettings
from potstill.watching.webhooks import check_secrets, send_all

if TYPE_CHECKING:
    from potstill.serving.fleet import Deployment
    from potstill.serving.server import Server

SLICE = 10  # exchanges counted before other work gets its turn: some 0.3 ms
REMEMBERED = 20_000  # answers whose feedback can still be judged
WAITING = 2_000


@dataclass(frozen=True, slots=True)
class _Note:
    """What one answered call leaves to be counted."""

    deployment: Deployment
    seen: Seen
    text: str
    tools: list[Json]
    confidence: float | None


class Gauges:
    """The figures in one registry; made once for it, since a reload makes the step anew."""

    _known: ClassVar[WeakKeyDictionary[CollectorRegistry, Gauges]] = WeakKeyDictionary()

    def __init__(self, registry: CollectorRegistry) -> None:
        of = ["feature", "artifact"]
        self.alarm = Gauge("potstill_drift_alarm", "1 once a feature has drifted", of, registry=registry)
        self.evidence = Gauge(
            "potstill_drift_evidence_log10", "Evidence against no drift; 1/alpha alarms", of, registry=registry
        )
        self.psi = Gauge("potstill_drift_psi", "Population stability index, recent against training", of,
                         registry=registry)  # fmt: skip
        self.counted = Counter("potstill_drift_counted", "Exchanges counted", registry=registry)
        self.passed_over = Counter("potstill_drift_passed_over", "Exchanges beyond most_per_s", registry=registry)
        self.alarms = Counter("potstill_drift_alarms", "Alarms given", ["feature"], registry=registry)
        self.checks = Counter("potstill_drift_checks", "Answers held against the large model's", ["outcome"],
                              registry=registry)  # fmt: skip

    @classmethod
    def of(cls, registry: CollectorRegistry) -> Gauges:
        if registry not in cls._known:
            cls._known[registry] = cls(registry)
        return cls._known[registry]


class Drift(Step):
    """`monitors` by artifact; None for one without a training profile."""

    every_answer = True

    def __init__(self, server: Server, settings: DriftSettings) -> None:
        self._server, self._settings = server, settings
        self._gauges = Gauges.of(server.meter.registry)
        self.monitors: dict[str, Monitor | None] = {}
        self._notes: deque[_Note] = deque()
        self._answers: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self._allowance, self._topped_up = settings.most_per_s, time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []
        self._read_to: dict[Path, int] = {}
        self._checks = _Checks(settings.check) if settings.check and server.large else None

    async def after(self, call: Call) -> None:
        """Leave a note to be counted; over the allowance nothing but a count."""
        now = time.monotonic()
        rate = self._settings.most_per_s
        self._allowance = min(max(rate, 1.0), self._allowance + (now - self._topped_up) * rate)
        self._topped_up = now
        if self._allowance < 1 or len(self._notes) >= WAITING:
            self._gauges.passed_over.inc()
            return
        self._allowance -= 1
        model = call.model
        messages = call.upstream.get("messages") or model.served.rule.apply(call.body["messages"])
        text = model.served.task.text_of(call.response["choices"][0]["message"])
        confidence = call.marks.get("confidence")
        probability = confidence if isinstance(confidence, float) else confidence_of(call.response)
        self._notes.append(_Note(model, seen_of(messages), text, call.body.get("tools") or [], probability))
        self._answers[call.id] = (model.artifact, text)
        if len(self._answers) > REMEMBERED:
            self._answers.popitem(last=False)
        if self._checks is not None and call.answered_by == "engine" and self._checks.wants():
            self._checks.take(call.body, model, text)

    async def start(self) -> None:
        self._pass_over_old_feedback()
        for deployment in self._server.fleet:
            self._monitor(deployment)  # says now which version cannot be watched
        self._tasks = [asyncio.create_task(self._count_all()), asyncio.create_task(self._look_on())]
        if self._checks is not None:
            self._tasks.append(asyncio.create_task(self._check_all(self._checks)))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _count_all(self) -> None:
        while True:
            await asyncio.sleep(0.02 if self._notes else 0.2)
            for _ in range(min(SLICE, len(self._notes))):
                self.count(self._notes.popleft())

    def count(self, note: _Note) -> None:
        monitor = self._monitor(note.deployment)
        if monitor is None:
            return
        monitor.count_input(note.seen)
        monitor.count_answer(note.text, note.tools)
        if note.confidence is not None:
            monitor.count_confidence(note.confidence)
        self._gauges.counted.inc()

    def _monitor(self, deployment: Deployment) -> Monitor | None:
        artifact = deployment.artifact
        if artifact not in self.monitors:
            profile = Profile.read(deployment.served.folder)
            if profile is None:
                say(f"serve: drift: artifact {artifact} has no training profile; export it again to have it watched")
            wanted, task = self._settings, deployment.served.task
            least = wanted.check.least if wanted.check is not None else None
            self.monitors[artifact] = Monitor(profile, task, wanted, least) if profile is not None else None
        return self.monitors[artifact]

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(self._settings.every_s)
            try:
                await asyncio.to_thread(self.look)
            except Exception as fault:  # a full disk, a damaged line: watching must go on
                say(f"serve: drift: {type(fault).__name__}: {fault}")

    def look(self) -> list[Json]:
        """Weigh what was counted, set the gauges, send new alarms; returns the figures of all versions."""
        self._count_feedback()
        told: list[Json] = []
        for artifact, monitor in list(self.monitors.items()):
            if monitor is None:
                continue
            known = {name for name, each in monitor.features.items() if each.alarmed}
            for each in monitor.look():
                told.append(each | {"artifact": artifact})
                self._show(each, artifact)
                if each["alarm"] and each["feature"] not in known:
                    self._alarm(each, artifact)
        return told

    def _show(self, each: Json, artifact: str) -> None:
        of = (each["feature"], artifact)
        self._gauges.alarm.labels(*of).set(1 if each["alarm"] else 0)
        if "evidence_log10" in each:
            self._gauges.evidence.labels(*of).set(each["evidence_log10"])
        if each.get("psi") is not None:
            self._gauges.psi.labels(*of).set(each["psi"])

    def _alarm(self, each: Json, artifact: str) -> None:
        alarm = each["alarm"]
        grown = f"{alarm['what']} was {alarm['share_before']:.1%}, is {alarm['share']:.1%}"
        say(f"serve: drift: {each['feature']}: {grown}")
        self._gauges.alarms.labels(each["feature"]).inc()
        told = {"artifact": artifact, **each}
        sending = threading.Thread(target=send_all, args=(self._settings.webhooks, "drift", told), daemon=True)
        sending.start()  # a webhook that is away is tried for a minute: the next look must not wait for it

    # Feedback comes by another way than answers, and to any of several workers: it is read where it is written down.

    def _pass_over_old_feedback(self) -> None:
        if self._server.log is not None:
            for path in self._server.log.folder.glob(FEEDBACK):
                self._read_to[path] = path.stat().st_size

    def _count_feedback(self) -> None:
        for line in self._new_feedback():
            try:
                identity, opinion = read_feedback_line(orjson.loads(line))
            except (orjson.JSONDecodeError, DamagedLine):
                continue  # the reader of the traffic reports damaged lines
            artifact, answer = self._answers.get(identity, ("", ""))
            monitor = self.monitors.get(artifact)
            if monitor is not None:
                right = right_of(opinion, answer, monitor.task)
                if right is not None:
                    monitor.count_opinion(badly=not right)

    def _new_feedback(self) -> Iterator[bytes]:
        if self._server.log is None:
            return
        for path in sorted(self._server.log.folder.glob(FEEDBACK)):
            with path.open("rb") as stream:
                stream.seek(self._read_to.get(path, 0))
                for line in stream:
                    if not line.endswith(b"\n"):
                        break  # being written
                    self._read_to[path] = self._read_to.get(path, 0) + len(line)
                    yield line

    async def _check_all(self, checks: _Checks) -> None:
        """Ask the large model what it would have said, one question at a time."""
        large = self._server.settings.large
        assert large is not None
        assert self._server.large is not None
        while True:
            body, deployment, text = await checks.waiting.get()
            deadline = time.monotonic() + large.timeout_s
            try:
                answer = await Question(self._server.large, body, deadline, large.timeout_s).whole()
            except RequestRefused:
                self._gauges.checks.labels("failed").inc()
                continue
            task = deployment.served.task
            differs = canonical_of(task.text_of(answer["choices"][0]["message"]), task) != canonical_of(text, task)
            self._gauges.checks.labels("differs" if differs else "agrees").inc()
            monitor = self._monitor(deployment)
            if monitor is not None:
                monitor.count_check(differs)


class _Checks:
    """Which answers the large model is asked about: a share at random, at most so many a day, few waiting."""

    def __init__(self, settings: CheckSettings) -> None:
        self._settings = settings
        self._today, self._day = 0, -1
        self.waiting: asyncio.Queue[tuple[Json, Deployment, str]] = asyncio.Queue(20)

    def wants(self) -> bool:
        day = int(time.time() // 86_400)
        if day != self._day:
            self._day, self._today = day, 0
        # drawn, not every n-th: traffic that comes in rounds would be seen at one place of the round alone
        if random.random() >= self._settings.share or self._today >= self._settings.most_per_day or self.waiting.full():
            return False
        self._today += 1
        return True

    def take(self, body: Json, deployment: Deployment, text: str) -> None:
        asked = {key: body[key] for key in ("messages", "tools", "tool_choice", "response_format") if key in body}
        self.waiting.put_nowait((asked | {"temperature": 0}, deployment, text))


def make(server: Server) -> Step | None:
    settings = server.settings.drift
    if settings is None:
        return None
    check_secrets(settings.webhooks)
    return Drift(server, settings)

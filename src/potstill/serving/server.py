"""What all calls of a server share, and the way to change it while it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.errors import RecipeError
from potstill.serving.authenticate import Keys
from potstill.serving.capture import CaptureLog
from potstill.serving.fleet import Deployment, Fleet
from potstill.serving.meter import Meter
from potstill.serving.settings import ServeSettings
from potstill.serving.start import refuse_open_door
from potstill.serving.steps import Plan, Step
from potstill.serving.telemetry import timed

if TYPE_CHECKING:
    from potstill.serving.call import Call
    from potstill.serving.control import Control

Make = Callable[["Server"], Step | None]


@dataclass(frozen=True, slots=True)
class Place:
    """Which of the processes that answer this one is; `folder` is theirs together, for what they count in common."""

    index: int = 0
    workers: int = 1
    folder: Path | None = None


class Server:
    """`log` None captures nothing. `plan` is what new calls go through; calls in flight keep theirs."""

    def __init__(
        self,
        fleet: Fleet,
        settings: ServeSettings,
        order: Sequence[Make],
        *,
        keys: Keys | None = None,
        meter: Meter | None = None,
        log: CaptureLog | None = None,
        state_dir: Path | None = None,
        worker: Place | None = None,
    ) -> None:
        self.fleet, self.settings, self.log, self._state_dir = fleet, settings, log, state_dir
        self.keys, self.meter, self.worker = keys or Keys(), meter or Meter(), worker or Place()
        self.control: Control | None = None
        self.open_log: Callable[[ServeSettings], CaptureLog | None] | None = None
        self._order = tuple(order)
        self._closing: set[asyncio.Task[None]] = set()
        self.plan = self._planned()

    def _planned(self) -> Plan:
        self.large = self.settings.large.address() if self.settings.large else None
        steps = [step for make in self._order if (step := make(self)) is not None]
        return timed(Plan.of([InFlight(), *steps]), self.settings, self.meter)

    @property
    def state_dir(self) -> Path:
        """The folder of what outlives a request, shared by the workers of a server; made when it is first needed."""
        if self._state_dir is None:
            raise RecipeError(["serve.state.dir: missing; what was asked for needs a folder to keep its state in"])
        self._state_dir.mkdir(parents=True, exist_ok=True)
        return self._state_dir

    @property
    def current(self) -> Deployment:
        """The version that answers when there is only one model."""
        return self.fleet.first

    async def start(self) -> None:
        await self.fleet.start()
        for step in self.plan.steps:
            await step.start()
        if self.control is not None:
            await self.control.start()

    async def close(self) -> None:
        if self.control is not None:
            await self.control.close()
        await asyncio.gather(*self._closing)
        for step in reversed(self.plan.steps):
            await step.close()
        await self.fleet.close()

    async def reload(self, settings: ServeSettings) -> None:
        """Take new settings for the calls that come from now on; raises as at start, and then the old ones stay."""
        (await self.prepare(settings)).take()

    async def prepare(self, settings: ServeSettings) -> Prepared:
        """New settings, ready to be taken or dropped; raises as at start, and then the old ones stay.

        The steps are made with the server as it will be; calls go on through the old ones until `take`.
        """
        before, old = {name: vars(self)[name] for name in ("settings", "large", "log")}, self.plan
        self.settings = settings
        prepared = Prepared(self, old, old, before)
        try:
            if self.open_log is not None and settings.capture != before["settings"].capture:
                self.log = self.open_log(settings)
            prepared.fresh = self._planned()
            for step in prepared.fresh.steps:
                await step.start()
            refuse_open_door(settings.host, self.keys)
        except BaseException:
            prepared.drop()
            raise
        return prepared

    def close_later(self, plan: Plan, log: CaptureLog | None) -> None:
        """Close a plan's steps, and the log that they wrote to, when its last call has ended."""
        task = asyncio.get_running_loop().create_task(_close(plan, log))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


@dataclass
class Prepared:
    """New settings of a server, started beside the old ones."""

    server: Server
    old: Plan
    fresh: Plan
    before: dict[str, Any]

    def take(self) -> None:
        self.server.plan = self.fresh
        replaced = self.before["log"]
        self.server.close_later(self.old, replaced if replaced is not self.server.log else None)

    def drop(self) -> None:
        opened = self.server.log if self.server.log is not self.before["log"] else None
        vars(self.server).update(self.before)
        if self.fresh is not self.old:
            self.server.close_later(self.fresh, opened)
        elif opened is not None:
            opened.close()


class InFlight(Step):
    """Counts the calls of a plan, so that what they use is not closed under them. The first in, the last out."""

    def __init__(self) -> None:
        self._calls = 0
        self._none: asyncio.Event | None = None

    async def before(self, call: Call) -> None:
        self._calls += 1
        call.marks["in_flight"] = True

    async def end(self, call: Call) -> None:
        if call.marks.pop("in_flight", False):
            self._calls -= 1
            if not self._calls and self._none is not None:
                self._none.set()

    async def none(self) -> None:
        """Return when no call is in flight; none may be begun any more."""
        if self._calls:
            self._none = asyncio.Event()
            await self._none.wait()


async def _close(plan: Plan, log: CaptureLog | None) -> None:
    for step in plan.steps:
        if isinstance(step, InFlight):
            await step.none()
    for step in reversed(plan.steps):
        await step.close()
    if log is not None:
        await asyncio.to_thread(log.close)

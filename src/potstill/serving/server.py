"""What all calls of a server share, and the way to change it while it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from potstill.errors import RecipeError
from potstill.serving.authenticate import Keys
from potstill.serving.capture import CaptureLog
from potstill.serving.fleet import Deployment, Fleet
from potstill.serving.meter import Meter
from potstill.serving.settings import ServeSettings
from potstill.serving.steps import Plan, Step
from potstill.serving.telemetry import timed

Make = Callable[["Server"], Step | None]


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
    ) -> None:
        self.fleet, self.settings, self.log, self._state_dir = fleet, settings, log, state_dir
        self.keys, self.meter = keys or Keys(), meter or Meter()
        self._order = tuple(order)
        self.plan = self._planned()

    def _planned(self) -> Plan:
        self.large = self.settings.large.address() if self.settings.large else None
        plan = Plan.of([step for make in self._order if (step := make(self)) is not None])
        return timed(plan, self.settings, self.meter)

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

    async def close(self) -> None:
        for step in reversed(self.plan.steps):
            await step.close()
        await self.fleet.close()

    async def reload(self, settings: ServeSettings) -> None:
        """Take new settings for the calls that come from now on; raises as at start, and then the old ones stay."""
        before, self.settings = self.settings, settings
        old = self.plan
        try:
            fresh = self._planned()
            for step in fresh.steps:
                await step.start()
        except BaseException:
            self.settings = before
            raise
        self.plan = fresh
        for step in reversed(old.steps):
            await step.close()

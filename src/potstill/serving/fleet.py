"""The versions that a server answers with, by model name, and how one takes another's place without anybody noticing.

A call holds the version that it began with until it ends; a swap makes the new one current for the calls that come
after it, waits until the old one is held by nobody, and only then ends its engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from potstill.progress import say
from potstill.serving.backends import Backend
from potstill.serving.errors import RequestRefused
from potstill.serving.start import Served


@dataclass(slots=True, eq=False)
class Deployment:
    """One version behind one engine. `name` is what answers call the model; `held` counts calls in flight."""

    name: str
    served: Served
    engine: Backend
    held: int = 0
    _free: asyncio.Event | None = field(default=None, repr=False)

    @property
    def artifact(self) -> str:
        return self.served.digest[:12]

    def hold(self) -> None:
        self.held += 1

    def release(self) -> None:
        self.held -= 1
        if self.held == 0 and self._free is not None:
            self._free.set()

    async def free(self) -> None:
        """Return when no call holds this version; none must be given it any more."""
        if self.held:
            self._free = asyncio.Event()
            await self._free.wait()


class Fleet:
    """The current versions. With one model alone every name means it; with several the name must be one of theirs."""

    def __init__(self, *deployments: Deployment) -> None:
        self._current = {key_of(each.name): each for each in deployments}
        if len(self._current) != len(deployments):
            raise ValueError(f"models of the same name: {', '.join(each.name for each in deployments)}")
        self._canaries: dict[str, Deployment] = {}
        self._draining: list[Deployment] = []
        self._watches: dict[Deployment, asyncio.Task[None]] = {}

    def __iter__(self) -> Iterator[Deployment]:
        return iter(tuple(self._current.values()))

    @property
    def draining(self) -> tuple[Deployment, ...]:
        return tuple(self._draining)

    @property
    def first(self) -> Deployment:
        return next(iter(self._current.values()))

    def of(self, model: str) -> Deployment:
        """The version that a request for `model` is answered by; raises RequestRefused 404 for an unknown one."""
        if len(self._current) == 1:
            return self.first
        found = self._current.get(key_of(model))
        if found is None:
            names = ", ".join(each.name for each in self)
            raise RequestRefused(
                404, f"model: found {model[:100]!r}, served here: {names}", param="model", code="model_not_found"
            )
        return found

    def canary_of(self, model: str) -> Deployment | None:
        """The version on trial beside the current one of a model."""
        return self._canaries.get(key_of(model)) if self._canaries else None

    async def try_canary(self, fresh: Deployment) -> None:
        """Put `fresh` (checked and warm) on trial beside the current version of its model, in place of any other."""
        self.of(fresh.name)  # refuses a model that is not served
        await self.end_canary(fresh.name)
        self._canaries[key_of(fresh.name)] = fresh
        self._watch(fresh)

    async def end_canary(self, model: str) -> None:
        """Take the trial away from the calls that come from now on; ends its engine when it is free."""
        canary = self._canaries.pop(key_of(model), None)
        if canary is not None:
            await self._drain(canary)

    async def promote_canary(self, model: str) -> None:
        """Make the version on trial the current one; ends the old one when it is free."""
        canary = self._canaries.pop(key_of(model), None)
        if canary is not None:
            await self.swap(canary)

    async def swap(self, fresh: Deployment) -> None:
        """Make `fresh` (checked and warm) the current version of its model; ends the old one when it is free."""
        old = self._current.get(key_of(fresh.name))
        self._current[key_of(fresh.name)] = fresh
        self._watch(fresh)
        if old is None or old is fresh:
            return
        say(f"serve: {fresh.name} ({fresh.artifact}) answers now; {old.name} ({old.artifact}) ends {old.held} calls")
        await self._drain(old)

    async def _drain(self, old: Deployment) -> None:
        self._draining.append(old)
        try:
            await old.free()
        finally:
            self._draining.remove(old)
            await self._end(old)

    async def start(self) -> None:
        """Watch every engine from now on."""
        for each in self:
            self._watch(each)

    async def close(self) -> None:
        """Stop watching; the engines belong to whoever started them."""
        for each in tuple(self._watches):
            await self._unwatch(each)

    def _watch(self, deployment: Deployment) -> None:
        if deployment not in self._watches:
            self._watches[deployment] = asyncio.create_task(deployment.engine.watch())

    async def _unwatch(self, deployment: Deployment) -> None:
        watching = self._watches.pop(deployment, None)
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _end(self, deployment: Deployment) -> None:
        await self._unwatch(deployment)
        await asyncio.to_thread(deployment.engine.stop)


def key_of(name: str) -> str:
    """A model's name without its version: `banking-intents@3` and `@4` are the same model."""
    return name.partition("@")[0]

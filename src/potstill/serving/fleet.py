"""The versions that a server answers with, by model name, and how one takes another's place without anybody noticing.

A call holds the version that it began with until it ends; a swap makes the new one current for the calls that come
after it, waits until the old one is held by nobody, and only then ends its engine. A model may have a canary besides:
a second version, to which the route gives a share of the calls.
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
    """One version behind one engine. `name` is what answers call the model; `held` counts calls in flight.

    `key` is the model whose version it is: the name without its version unless given.
    """

    name: str
    served: Served
    engine: Backend
    key: str = ""
    held: int = 0
    _free: asyncio.Event | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.key = self.key or key_of(self.name)

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
        self._current = {each.key: each for each in deployments}
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
    def every(self) -> tuple[Deployment, ...]:
        """All that hold an engine: current ones, canaries, those that end their last calls."""
        return (*self._current.values(), *self._canaries.values(), *self._draining)

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

    def canary(self, model: str) -> Deployment | None:
        """The second version of the model that a request for `model` means, None where there is none."""
        if not self._canaries:
            return None
        return self._canaries.get(self.first.key if len(self._current) == 1 else key_of(model))

    async def swap(self, fresh: Deployment) -> None:
        """Make `fresh` (checked and warm) the current version of its model; ends the old one when it is free."""
        old = self.place(fresh)
        if old is not None:
            await self.drain(old)

    async def set_canary(self, model: str, fresh: Deployment | None) -> None:
        """Give a model this canary, or take its canary away; ends the one before when it is free."""
        old = self.place_canary(model, fresh)
        if old is not None:
            await self.drain(old)

    def place(self, fresh: Deployment) -> Deployment | None:
        """As `swap`, at once: what was current is returned, to be drained."""
        key = fresh.key
        old = self._current.get(key)
        self._current[key] = fresh
        self._watch(fresh)
        if self._canaries.get(key) is fresh:
            del self._canaries[key]
        if old is None or old is fresh:
            return None
        say(f"serve: {fresh.name} ({fresh.artifact}) answers now; {old.name} ({old.artifact}) ends {old.held} calls")
        self._draining.append(old)
        return old

    def place_canary(self, model: str, fresh: Deployment | None) -> Deployment | None:
        """As `set_canary`, at once."""
        key = key_of(model)
        old = self._canaries.pop(key, None)
        if fresh is None:
            if old is not None:
                say(f"serve: {key} has no canary any more; {old.name} ({old.artifact}) ends {old.held} calls")
        else:
            say(f"serve: {fresh.name} ({fresh.artifact}) is the canary of {key}")
            self._canaries[key] = fresh
            self._watch(fresh)
        if old is None or old is fresh:
            return None
        self._draining.append(old)
        return old

    def remove(self, model: str) -> Deployment | None:
        """Answer for a model no more: what was current is returned, to be drained. The last model stays."""
        if len(self._current) == 1:
            raise ValueError("a server without a model")
        old = self._current.pop(key_of(model), None)
        if old is not None:
            self._draining.append(old)
        return old

    async def drain(self, old: Deployment, within_s: float | None = None) -> None:
        """End a version that was placed away, as soon as no call holds it, or after `within_s` all the same."""
        try:
            async with asyncio.timeout(within_s):
                await old.free()
        except TimeoutError:
            say(f"serve: {old.name} ({old.artifact}) still has {old.held} calls after {within_s:g} s and is ended")
        finally:
            await self._end(old)
            self._draining.remove(old)

    async def start(self) -> None:
        """Watch every engine from now on."""
        for each in self.every:
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

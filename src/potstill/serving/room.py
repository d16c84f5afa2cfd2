"""The engines of a server: from what the settings name to versions that answer, and from one version to the next.

A version is verified, started beside the one that answers, and checked before it takes over; one that fails stays
outside and the old one goes on answering. One change at a time, one old version a model at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from potstill.errors import EngineFailure, PotstillError, RecipeError
from potstill.forgetting.tombstone import heed
from potstill.free_memory import free_bytes
from potstill.progress import say
from potstill.serving.aside import aside
from potstill.serving.engine_settings import EngineSettings
from potstill.serving.fleet import Deployment, Fleet, key_of
from potstill.serving.memory import shortage
from potstill.serving.registry import Found, Gone, Registry
from potstill.serving.settings import ServeSettings
from potstill.serving.start import load_artifact, start_backend

Role = Literal["current", "canary"]
REGISTERED = "models:/"
UNNAMED = "unnamed"
# A call ends within request_timeout_s; what still holds a version so much later is a client that reads nothing.
LEFT_AFTER_S = 15.0


@dataclass(frozen=True, slots=True)
class Source:
    """Where a version of the model `key` comes from: a folder, or an address in the registry.

    `name` is what answers call a folder's version, "" for its digest.
    """

    key: str
    name: str
    address: str
    format: str | None
    slots: int
    threads: int | None
    engine: EngineSettings
    role: Role = "current"

    @property
    def registered(self) -> bool:
        return self.address.startswith(REGISTERED)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One version, and how its engine is to be run; two that are equal need no swap."""

    key: str
    name: str
    artifact: Path
    format: str | None
    slots: int
    threads: int | None
    engine: EngineSettings


class Followers(Protocol):
    """Who has to be told of a change before the engine behind it may end: the workers, where there are several."""

    async def placed(self, fresh: Deployment, role: Role) -> None:
        """Return when every worker gives its new calls to this version."""

    async def removed(self, old: Deployment, role: Role) -> None:
        """Return when no worker gives new calls to this version."""

    async def left(self, old: Deployment) -> None:
        """Return when no worker has a call at this version."""


class Nobody:
    """The one process that answers is this one."""

    async def placed(self, fresh: Deployment, role: Role) -> None: ...

    async def removed(self, old: Deployment, role: Role) -> None: ...

    async def left(self, old: Deployment) -> None: ...


def sources(settings: ServeSettings, address: str | None, name: str) -> list[Source]:
    """What a server serves: the artifact of its command line, the models of its settings, and their canary.

    `name` names the artifact of a folder. Raises RecipeError for nothing to serve and for a name twice.
    """
    found: list[Source] = []
    if address is not None:
        key = _model_of(address) if address.startswith(REGISTERED) else key_of(name) or UNNAMED
        found.append(Source(key, name, address, settings.format, settings.slots, settings.threads, settings.engine))
    for model, each in settings.models.items():
        found.append(
            Source(
                model, model, each.artifact, each.format, each.slots or settings.slots,
                each.threads or settings.threads, each.engine or settings.engine,
            )
        )  # fmt: skip
    keys = [each.key for each in found]
    if len(set(keys)) < len(keys):
        raise RecipeError([f"serve.models: {', '.join(keys)}: a name stands there twice; name each model otherwise"])
    if not found:
        raise RecipeError(["serve: nothing to serve; give an artifact folder, models:/NAME@ALIAS, or serve.models"])
    return found + _canaries(settings, found)


def _canaries(settings: ServeSettings, found: Sequence[Source]) -> list[Source]:
    """The second version of each registered model, where the settings name an alias for it."""
    alias = settings.canary.alias if settings.canary is not None else None
    if alias is None:
        return []
    return [
        Source(each.key, "", f"{REGISTERED}{_model_of(each.address)}@{alias}", each.format, each.slots, each.threads,
               each.engine, "canary")
        for each in found
        if each.registered
    ]  # fmt: skip


def _model_of(address: str) -> str:
    return address.removeprefix(REGISTERED).partition("@")[0].partition("/")[0]


def wanted_from(source: Source, found: Found | None) -> Wanted:
    """The version that a source names; `found` is what the registry said of it, None for a folder."""
    how = (source.slots, source.threads, source.engine)
    if found is None:
        return Wanted(source.key, source.name, Path(source.address), source.format, *how)
    shipped = found.format if source.engine.kind == "llama_cpp" else None
    return Wanted(source.key, f"{source.key}@{found.version}", found.artifact, source.format or shipped, *how)


class EngineRoom:
    """All engines of a server. `open` blocks; everything else runs in the event loop that owns the fleet."""

    fleet: Fleet

    def __init__(self, settings: ServeSettings, registry: Registry | None, followers: Followers | None = None) -> None:
        self.settings, self.registry = settings, registry
        self.followers: Followers = followers or Nobody()
        self.sources: list[Source] = []
        self._wanted: dict[tuple[str, Role], Wanted] = {}
        self._changing = asyncio.Lock()
        self._drains: dict[str, asyncio.Task[None]] = {}
        self._first_canaries: list[Deployment] = []
        self._stopped = False

    def open(self, found: Sequence[Source]) -> Fleet:
        """Start every source's version; raises what is wrong with the first that cannot be, and leaves none behind."""
        self.sources = list(found)
        deployments: list[Deployment] = []
        canaries: list[Deployment] = []
        try:
            for wanted, role in self._look_up(found):
                try:
                    fresh = self._deploy(wanted, "start")
                except PotstillError as fault:
                    if role == "current":
                        raise
                    say(f"serve: the canary {wanted.name} is REFUSED: {fault}; {wanted.key} is served without")
                    continue
                (deployments if role == "current" else canaries).append(fresh)
                self._wanted[wanted.key, role] = wanted
            self.fleet = Fleet(*deployments)
        except BaseException:
            for each in deployments + canaries:
                each.engine.stop()
            raise
        self._first_canaries = canaries
        return self.fleet

    def place_first_canaries(self) -> None:
        """In the event loop, once: an engine is watched there."""
        while self._first_canaries:
            each = self._first_canaries.pop()
            self.fleet.place_canary(each.key, each)

    def stop(self) -> None:
        """End every engine that is ours, also one that is starting."""
        self._stopped = True
        for each in (*self.fleet.every, *self._first_canaries):
            each.engine.stop()

    async def resolve(self, source: Source) -> Wanted:
        """What a source names now; raises RecipeError for an address that names nothing."""
        (found,) = await aside(lambda: self._look_up([source], True))
        return found[0]

    def _look_up(self, found: Sequence[Source], strict: bool = False) -> list[tuple[Wanted, Role]]:
        """The versions that sources name; a canary that is not there (yet) is left out unless `strict`."""
        known = self._registered([each for each in found if each.registered and (strict or each.role == "current")])
        versions = []
        for each in found:
            if each.role == "canary" and not strict:
                try:
                    known |= self._registered([each])
                except PotstillError as fault:
                    say(f"serve: no canary of {each.key} yet: {fault}")
                    continue
            versions.append((wanted_from(each, known.get(each.address)), each.role))
        return versions

    def _registered(self, found: Sequence[Source]) -> dict[str, Found]:
        if not found:
            return {}
        if self.registry is None:
            raise RecipeError([f"{found[0].address}: no registry to look it up in; give the artifact folder"])
        return {each.address: each for each in self.registry.find(*dict.fromkeys(each.address for each in found))}

    def _deploy(self, wanted: Wanted, when: Literal["start", "swap"]) -> Deployment:
        """A version that is verified, started and checked; blocks."""
        heed(wanted.artifact, f"serve: {wanted.artifact.name}")
        served = load_artifact(wanted.artifact, wanted.format, self.settings.trust, wanted.engine)
        lacks = None
        if when == "swap" and wanted.engine.kind == "llama_cpp":
            lacks = shortage(served.model, free_bytes())
        if lacks:
            raise EngineFailure(f"not enough memory for a second engine: {served.model.name} {lacks}; restart instead")
        engine = start_backend(served, wanted.engine, slots=wanted.slots, threads=wanted.threads)
        if self._stopped:
            engine.stop()
            raise EngineFailure("the server ended while an engine was starting")
        return Deployment(wanted.name or served.digest[:12], served, engine, wanted.key)

    async def change(self, wanted: Wanted, role: Role = "current") -> Deployment:
        """The version in its place, answering; what it replaced ends its calls in the background.

        Raises PotstillError, and then nothing has changed. Nothing to do for a version that is there already.
        """
        async with self._changing:
            there = self._there(wanted, role)
            if there is not None:
                return there
            await self._finish_drain(wanted.key)
            canary = self.fleet.canary(wanted.key) if role == "current" else None
            if canary is not None and self._wanted.get((wanted.key, "canary")) == wanted:
                fresh = canary  # promoted: its engine runs already, and has answered
                del self._wanted[wanted.key, "canary"]
            else:
                fresh = await aside(lambda: self._deploy(wanted, "swap"))
            self._wanted[wanted.key, role] = wanted
            old = self.fleet.place(fresh) if role == "current" else self.fleet.place_canary(wanted.key, fresh)
            await self.followers.placed(fresh, role)
            self._begin_drain(old)
            return fresh

    def _there(self, wanted: Wanted, role: Role) -> Deployment | None:
        if self._wanted.get((wanted.key, role)) != wanted:
            return None
        return self.fleet.canary(wanted.key) if role == "canary" else self.fleet.of(wanted.key)

    async def remove(self, key: str, role: Role) -> None:
        """No such model, or no canary of it, any more."""
        async with self._changing:
            if self._wanted.pop((key, role), None) is None:
                return
            old = self.fleet.remove(key) if role == "current" else self.fleet.place_canary(key, None)
            if old is not None:
                await self.followers.removed(old, role)
                self._begin_drain(old)

    def _begin_drain(self, old: Deployment | None) -> None:
        if old is not None:
            before = self._drains.get(old.key)
            self._drains[old.key] = asyncio.create_task(self._drain(old, before))

    async def _drain(self, old: Deployment, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.gather(before, return_exceptions=True)
        within_s = self.settings.request_timeout_s + LEFT_AFTER_S
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self.followers.left(old)
        await self.fleet.drain(old, within_s)

    async def _finish_drain(self, key: str) -> None:
        """Not three engines of one model at a time."""
        draining = self._drains.pop(key, None)
        if draining is not None:
            await asyncio.gather(draining, return_exceptions=True)

    async def reconcile(self, settings: ServeSettings, found: Sequence[Source]) -> Mapping[str, str]:
        """Bring the fleet to what new settings name; the refusals by model, whose versions stay as they are."""
        self.settings, refused = settings, {}
        gone = [(each.key, each.role) for each in self.sources if all(_place(each) != _place(new) for new in found)]
        self.sources = list(found)
        for source in found:
            try:
                await self.change(await self.resolve(source), source.role)
            except PotstillError as fault:
                refused[source.key] = str(fault)
                say(f"serve: {source.key}: {source.address} is refused: {fault}; what is served stays")
        for key, role in gone:
            await self.remove(key, role)
        return refused

    async def follow(self, every_s: float) -> None:
        """Swap whenever an alias moves, until cancelled."""
        followed = {each.address: each for each in self.sources if each.registered}
        if not followed or self.registry is None:
            return
        async for found in self.registry.follow(every_s, tuple(followed)):
            source = followed[found.address]
            if isinstance(found, Gone):
                if source.role == "canary":
                    await self.remove(source.key, "canary")
                else:
                    say(f"serve: {found.fault}; {source.key} stays as it is")
                continue
            try:
                await self.change(wanted_from(source, found), source.role)
            except Exception as fault:  # one version's fault, whatever it is, must not end the watch for the next
                say(f"serve: {found.address} moved to {found.name}, which is REFUSED: {fault}; what is served stays")

    async def close(self) -> None:
        """Let the versions that end their calls come to that end."""
        await asyncio.gather(*self._drains.values(), return_exceptions=True)


def _place(source: Source) -> tuple[str, Role]:
    return source.key, source.role

"""What an administrator may do to a server while it answers: give a model another version, read the settings again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from potstill.errors import PotstillError
from potstill.progress import say
from potstill.records import Json
from potstill.serving.aside import aside
from potstill.serving.errors import RequestRefused
from potstill.serving.fleet import key_of
from potstill.serving.room import UNNAMED, EngineRoom, Source, sources
from potstill.serving.settings import ServeSettings

# What a running server cannot take: it listens already, its processes run, its state is open.
FIXED = ("host", "port", "workers", "state")


class Control(Protocol):
    """How a process that answers reaches whoever keeps the engines, which may be another process."""

    async def swap(self, asked: Json) -> Json: ...

    async def reload(self) -> Json: ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...


class RoomControl:
    """The control of the process that keeps the engines.

    `read` gives the settings as they stand written now; `take` makes all that answer use new ones, or raises.
    `address` and `name` are what the server was started with.
    """

    def __init__(
        self,
        room: EngineRoom,
        address: str | None,
        name: str,
        read: Callable[[], ServeSettings] | None,
        take: Callable[[ServeSettings], Awaitable[None]],
    ) -> None:
        self._room, self._address, self._name, self._read, self._take = room, address, name, read, take
        self._following: asyncio.Task[None] | None = None
        self._working: set[asyncio.Task[Json]] = set()
        self._one = asyncio.Lock()

    async def start(self) -> None:
        self._room.place_first_canaries()
        self._follow()

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        for each in self._working:
            each.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)
        await self._room.close()

    def _follow(self) -> None:
        if self._following is not None:
            self._following.cancel()
        wanted = self._room.settings.follow
        self._following = asyncio.create_task(self._room.follow(wanted.every_s)) if wanted is not None else None

    async def swap(self, asked: Json) -> Json:
        """Raises RequestRefused: 400 for a question that is none, 409 for a version that may not answer."""
        source = self._source(asked)
        return await self._undisturbed(self._swap(source))

    async def reload(self) -> Json:
        """Raises RequestRefused 409 for settings that cannot be taken; then the old ones stay."""
        return await self._undisturbed(self._reload())

    async def hang_up(self) -> None:
        """Reload as a signal asks for it: a refusal, too, is said."""
        try:
            await self.reload()
        except RequestRefused as refused:
            say(f"serve: the settings are as they were: {refused.message}")

    async def _undisturbed(self, work: Awaitable[Json]) -> Json:
        """To the end, also where whoever asked hangs up: half a change helps nobody."""
        task = asyncio.ensure_future(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        return await asyncio.shield(task)

    def _source(self, asked: Json) -> Source:
        unknown = sorted(set(asked) - {"model", "artifact", "role"})
        role, artifact, model = asked.get("role", "current"), asked.get("artifact"), asked.get("model")
        if unknown or role not in ("current", "canary") or not isinstance(artifact, str | None) or artifact == "":
            expected = '{"model": NAME, "artifact": FOLDER or models:/NAME@ALIAS, "role": "current" or "canary"}'
            raise RequestRefused(400, f"found {sorted(asked)}, role {role!r}; expected {expected}")
        current = [each for each in self._room.sources if each.role == "current"]
        same = [each for each in current if len(current) == 1 or each.key == key_of(str(model or ""))]
        if not same:
            names = ", ".join(each.key for each in current)
            raise RequestRefused(404, f"model: found {model!r}, served here: {names}", param="model")
        if artifact is None and role == "current":
            raise RequestRefused(400, "artifact: missing; only a canary can be taken away", param="artifact")
        one = same[0]
        name = "" if one.key == UNNAMED else one.key
        return Source(one.key, name, artifact or "", one.format, one.slots, one.threads, one.engine, role)

    async def _swap(self, source: Source) -> Json:
        if not source.address:
            await self._room.remove(source.key, source.role)
            return {"model": source.key, "role": source.role, "artifact": None}
        try:
            if not source.registered and not Path(source.address).is_dir():
                message = (
                    f"artifact: {source.address}: no such folder here; give that of an artifact, or models:/NAME@ALIAS"
                )
                raise RequestRefused(400, message, param="artifact")
            now = await self._room.change(await self._room.resolve(source), source.role)
        except RequestRefused:
            raise
        except PotstillError as fault:
            say(f"serve: {source.address} for {source.key} is REFUSED: {fault}; what is served stays")
            raise RequestRefused(409, f"{fault}; what is served stays", code="swap_refused") from fault
        return {"model": now.name, "role": source.role, "artifact": now.artifact, "format": now.served.format}

    async def _reload(self) -> Json:
        async with self._one:
            if self._read is None:
                raise RequestRefused(409, "this server was given its settings by a program: nothing to read again")
            before = self._room.settings
            try:
                settings = await aside(self._read)
                fixed = [each for each in FIXED if getattr(settings, each) != getattr(before, each)]
                settings = settings.model_copy(update={each: getattr(before, each) for each in fixed})
                found = sources(settings, self._address, self._name)
                await self._take(settings)
            except (PotstillError, ValueError, OSError) as fault:
                raise RequestRefused(409, f"{fault}; the old settings stay", code="reload_refused") from fault
            refused = await self._room.reconcile(settings, found)
            if settings.follow != before.follow or self._following is None or self._following.done():
                self._follow()
            notes = [f"serve.{each} changes only with a restart" for each in fixed]
            notes += [f"{model} stays as it is: {fault}" for model, fault in refused.items()]
            say("; ".join(["serve: settings read again", *notes]))  # whoever asked, a signal or an address
            return {"object": "reload", "notes": notes, "models": [each.name for each in self._room.fleet]}

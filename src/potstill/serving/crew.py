"""Several processes that answer on one port, before engines that they share: the parent's side.

The parent keeps the engines and answers nothing itself. A change goes in two steps: every worker says that its new
calls go to the new version, then every worker says that none of its calls is at the old one; only then does that
one's engine end. A worker that dies takes its own calls with it and is replaced.
"""

from __future__ import annotations

import asyncio
import random
import socket
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic

from potstill.errors import EngineFailure, RecipeError
from potstill.progress import say
from potstill.records import Json
from potstill.serving.backends import Address
from potstill.serving.errors import RequestRefused
from potstill.serving.fleet import Deployment
from potstill.serving.registry import environment
from potstill.serving.room import EngineRoom, Role
from potstill.serving.settings import ServeSettings
from potstill.serving.supervise import STEADY_S, SupervisedEngine
from potstill.serving.wire import Hung, Wire

LOOK_EVERY_S = 0.1
START_S = 120.0
LONGEST_PAUSE_S = 10.0
ASK_EVERY_S = 2.0
STUCK_S = 30.0  # a worker that says nothing for so long stands still
KILL_AFTER_S = 5.0  # beyond the time for requests in flight


class Crew:
    """The workers. `swap` and `reload` do what comes in by their doors; they and `room` are set before `start`."""

    swap: Callable[[Json], Awaitable[Json]]
    reload: Callable[[], Awaitable[Json]]

    def __init__(self, settings: ServeSettings, capture_dir: Path, listening: list[socket.socket]) -> None:
        self.settings, self._capture_dir, self._listening = settings, capture_dir, listening
        self.room: EngineRoom
        self.restarts = 0
        self._wires: dict[int, Wire] = {}  # of the workers that live, from their first line on
        self._up: set[int] = set()  # places that have been filled, now or before
        self._answering: set[int] = set()  # places that are filled
        self._processes: dict[int, Process] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._looking: list[asyncio.Task[None]] = []
        self._numbers: dict[Deployment, int] = {}
        self._last_number = 0
        self._ending = False
        self._folder = tempfile.TemporaryDirectory(prefix="potstill-workers-")

    @property
    def pids(self) -> list[int]:
        return [each.pid for each in self._processes.values() if each.returncode is None]

    async def start(self) -> None:
        """All workers, answering; raises EngineFailure when one does not come up."""
        self._keepers = [asyncio.create_task(self._keep(index)) for index in range(self.settings.workers)]
        while len(self._up) < self.settings.workers:
            if any(each.done() for each in self._keepers):
                await self.stop()
                raise EngineFailure("a worker did not start; what it said stands above")
            await asyncio.sleep(0.02)
        self._looking = [asyncio.create_task(each) for each in (self._look(), self._keep_asking())]

    async def stop(self) -> None:
        """Tell the workers to drain and wait for their end; those that take too long are killed."""
        self._ending = True
        for looking in self._looking:
            looking.cancel()
        for each in self._listening:
            each.close()  # who comes now is refused, not kept waiting
        await self._ask_all({"do": "stop"})
        _, late = await asyncio.wait(self._keepers, timeout=self.settings.drain_s + KILL_AFTER_S)
        for process in self._processes.values():
            if late and process.returncode is None:
                say("serve: a worker did not end in time and is killed")
                with suppress(ProcessLookupError):
                    process.kill()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._folder.cleanup()

    async def _keep(self, index: int) -> None:
        """One worker after another in this place, until the end; the first one must come up."""
        pause = 0.0
        while not self._ending:
            began = monotonic()
            process, wire = await self._spawn(index)
            await self._until_gone(index, process, wire)
            if self._ending or index not in self._up:
                return
            self.restarts += 1
            pause = 0.0 if monotonic() - began > STEADY_S else min(2 * pause + 0.1, LONGEST_PAUSE_S)
            say(f"serve: worker {index} ended (exit code {process.returncode}); another in about {pause:.1f} s")
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))

    async def _spawn(self, index: int) -> tuple[Process, Wire]:
        ours, theirs = socket.socketpair()
        with theirs:
            doors = [each.fileno() for each in self._listening]
            words = ["--wire", str(theirs.fileno()), "--listen", *map(str, doors)]
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "potstill.serving.worker", *words, env=environment(),
                stdin=asyncio.subprocess.DEVNULL, pass_fds=(theirs.fileno(), *doors),
            )  # fmt: skip
        wire = Wire(ours, self._asked)
        await wire.open()
        wire.tell(self._boot(index))
        self._processes[index], self._wires[index] = process, wire
        if self._ending:  # told to end while this one was being started: it was not there to be told
            process.kill()
        return process, wire

    async def _until_gone(self, index: int, process: Process, wire: Wire) -> None:
        listening = asyncio.create_task(wire.listen())
        try:
            await asyncio.wait_for(wire.ask({"do": "hello"}), START_S)
            self._up.add(index)
            self._answering.add(index)
            await self._ask_all({"do": "release", "index": index})
            await self._cover()  # another place may have become empty while nobody could adopt it
            await listening
        except (Hung, TimeoutError):
            say(f"serve: worker {index} did not come up")
        finally:
            self._wires.pop(index, None)
            listening.cancel()
            wire.close()
            self._answering.discard(index)
            await self._cover()
            if not self._ending:
                with suppress(ProcessLookupError):
                    process.kill()
            await process.wait()

    async def _cover(self) -> None:
        """Have a worker accept in every place that none fills: connections wait there already."""
        wire = next((self._wires[each] for each in sorted(self._answering) if each in self._wires), None)
        if wire is None or self._ending:
            return
        for index in range(self.settings.workers):
            if index not in self._answering:
                with suppress(Hung, TimeoutError):
                    async with asyncio.timeout(STUCK_S):
                        await wire.ask({"do": "adopt", "index": index})

    def _boot(self, index: int) -> Json:
        fleet = self.room.fleet
        versions = [self._described(each, "current") for each in fleet]
        versions += [self._described(each, "canary") for key in fleet if (each := fleet.canary(key.name)) is not None]
        return {
            "settings": _as_json(self.settings),
            "index": index,
            "folder": self._folder.name,
            "capture_dir": str(self._capture_dir),
            "versions": versions,
        }

    def _number(self, deployment: Deployment) -> int:
        if deployment not in self._numbers:
            self._last_number += 1
            self._numbers[deployment] = self._last_number
        return self._numbers[deployment]

    def _described(self, deployment: Deployment, role: Role) -> Json:
        served, engine = deployment.served, deployment.engine
        return {
            "id": self._number(deployment), "role": role, "name": deployment.name, "key": deployment.key,
            "folder": str(served.folder), "digest": served.digest, "format": served.format, "model": str(served.model),
            "engine": {"address": engine.url, "name": engine.model, "headers": engine.headers}
            if isinstance(engine, Address) else _state(deployment),
        }  # fmt: skip

    async def _ask_all(self, question: Json) -> list[Json]:
        """The answers of the workers that live; one that dies meanwhile has nothing to say any more."""
        asked = [self._ask(index, wire, question) for index, wire in tuple(self._wires.items())]
        return [each for each in await asyncio.gather(*asked) if each is not None]

    async def _ask(self, index: int, wire: Wire, question: Json) -> Json | None:
        """A worker's answer. One that stands still holds no change up for long: it is killed, and so replaced."""
        within_s: float | None = STUCK_S if index in self._answering else START_S
        if question["do"] in ("drain", "stop"):
            within_s = None  # as long as its calls take, which others bound
        try:
            async with asyncio.timeout(within_s):
                return await wire.ask(question)
        except TimeoutError:
            say(f"serve: worker {index} has said nothing for {within_s:g} s and is killed")
            with suppress(ProcessLookupError):
                self._processes[index].kill()
        except Hung:
            pass
        return None

    async def _keep_asking(self) -> None:
        while True:
            await asyncio.sleep(ASK_EVERY_S)
            await self._ask_all({"do": "hello"})

    async def placed(self, fresh: Deployment, role: Role) -> None:
        await self._ask_all({"do": "place", **self._described(fresh, role)})

    async def removed(self, old: Deployment, role: Role) -> None:
        await self._ask_all({"do": "remove", "key": old.key, "role": role})

    async def left(self, old: Deployment) -> None:
        await self._ask_all({"do": "drain", "id": self._number(old)})
        self._numbers.pop(old, None)

    async def take(self, settings: ServeSettings) -> None:
        """New settings for every worker, or for none; raises RecipeError."""
        answers = await self._ask_all({"do": "prepare", "settings": _as_json(settings)})
        faults = [str(each["fault"]) for each in answers if each.get("fault")]
        if faults:
            await self._ask_all({"do": "drop"})
            raise RecipeError(sorted(set(faults)))
        self.settings = settings
        await self._ask_all({"do": "take"})

    async def _look(self) -> None:
        """Tell the workers where the engines are, whenever that has changed."""
        known: list[Json] = []
        while True:
            states = [
                {"id": self._number(each), **_state(each)}
                for each in self.room.fleet.every
                if isinstance(each.engine, SupervisedEngine) and each in self._numbers
            ]
            if states != known:
                known = states
                await self._ask_all({"do": "engines", "states": states})
            await asyncio.sleep(LOOK_EVERY_S)

    async def _asked(self, ask: Json) -> Json:
        """What an administrator wants, at whichever worker's door; or that a worker leaves by itself."""
        if ask["do"] == "leaving":
            self._answering.discard(ask["index"])
            await self._cover()
            return {}
        try:
            return {"done": await (self.swap(ask["asked"]) if ask["do"] == "swap" else self.reload())}
        except RequestRefused as refused:
            names = ("status", "message", "param", "code", "kind", "retry_after_s")
            return {"refused": {name: getattr(refused, name) for name in names}}


def _state(deployment: Deployment) -> Json:
    engine = deployment.engine
    url = engine.url if isinstance(engine, SupervisedEngine) else ""
    return {"dialect": engine.dialect, "url": url, "ready": engine.ready, "restarts": engine.restarts}


def _as_json(settings: ServeSettings) -> Json:
    found: Json = settings.model_dump(mode="json", by_alias=True)
    if ServeSettings.model_validate(found) != settings:
        raise RecipeError(["serve.workers: these settings do not survive the way to another process; use workers=1"])
    return found

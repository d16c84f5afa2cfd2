"""One of several processes that answer: `python -m potstill.serving.worker --wire FD --listen FD`.

The engines are the parent's, and so is the decision which version answers; it comes over the wire. Each worker has a
listening socket of its own on the same port (SO_REUSEPORT: the kernel spreads connections evenly, where a socket that
all accept from gave 47 of 64 to one of two). The parent holds them open, so that a connection which waits for a worker
that has died is not lost; another worker adopts the socket until the place is filled again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from potstill.contract import Contract
from potstill.errors import PotstillError
from potstill.records import Json
from potstill.serving.assemble import Listener, assemble, calm_collector
from potstill.serving.backends import Address, Backend, Borrowed
from potstill.serving.errors import RequestRefused
from potstill.serving.fleet import Deployment, Fleet
from potstill.serving.server import Place, Prepared
from potstill.serving.settings import ServeSettings
from potstill.serving.start import Served
from potstill.serving.wire import Wire


def deployment_of(told: Json) -> Deployment:
    """A version as the parent describes it; its files were verified there."""
    folder = Path(told["folder"])
    contract = Contract.read(folder)
    task, rule = contract.make_task(), contract.make_prompt_rule()
    served = Served(folder, told["digest"], told["format"], Path(told["model"]), contract, task, rule)
    at, engine = told["engine"], None
    if "address" in at:
        engine = Address(at["address"], at["name"], at["headers"])
    backend: Backend = engine or Borrowed(at["dialect"], at["url"], at["ready"], at["restarts"])
    return Deployment(told["name"], served, backend, told["key"])


class RemoteControl:
    """The parent's control, asked over the wire."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def swap(self, asked: Json) -> Json:
        return await self._ask({"do": "swap", "asked": asked})

    async def reload(self) -> Json:
        return await self._ask({"do": "reload"})

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def _ask(self, question: Json) -> Json:
        answer = await self._wire.ask(question)
        if "refused" in answer:
            raise RequestRefused(**answer["refused"])
        done: Json = answer["done"]
        return done


class Worker:
    """This process: its server, and what the parent may tell it."""

    def __init__(self, ours: socket.socket, listening: list[socket.socket]) -> None:
        self._wire = Wire(ours, self._told)
        self._listening = listening
        self._adopted: dict[int, asyncio.Server] = {}
        self._versions: dict[int, Deployment] = {}
        self._states: dict[int, Json] = {}
        self._prepared: Prepared | None = None

    async def run(self) -> None:
        """Answer until told to stop, or until the parent is gone."""
        await self._wire.open()
        boot = await self._wire.first()
        versions = [(each, self._version(each)) for each in boot["versions"]]
        fleet = Fleet(*(made for each, made in versions if each["role"] == "current"))
        for each, made in versions:
            if each["role"] == "canary":
                fleet.place_canary(made.key, made)
        settings = ServeSettings.model_validate(boot["settings"])
        place = Place(boot["index"], settings.workers, Path(boot["folder"]))
        self._fleet, self._server = fleet, assemble(settings, fleet, Path(boot["capture_dir"]), worker=place)
        self._server.control = RemoteControl(self._wire)
        self._listener = Listener(self._server)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._end)
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # Ctrl-C reaches the whole group; the parent decides
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        listening = asyncio.create_task(self._listen())
        try:
            await self._listener.serve(sockets=[self._listening[boot["index"]].dup()])
        finally:
            if self._server.log is not None:
                await asyncio.to_thread(self._server.log.close)
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _listen(self) -> None:
        await self._wire.listen()
        self._end()  # the parent is gone, and the engines with it

    def _end(self) -> None:
        """Drain and end; who comes to our socket meanwhile is another worker's, if there is one."""
        for each in self._listening:
            each.close()
        self._listener.end()
        if not self._wire.closed:
            self._leaving = asyncio.ensure_future(self._wire.ask({"do": "leaving", "index": self._server.worker.index}))
            self._leaving.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _adopt(self, index: int) -> None:
        if index not in self._adopted and not self._listener.should_exit:
            self._adopted[index] = await self._listener.adopt(self._listening[index].dup())

    def _release(self, index: int) -> None:
        if (server := self._adopted.pop(index, None)) is not None and not self._listener.should_exit:
            self._listener.leave(server)

    def _version(self, told: Json) -> Deployment:
        """The version of this description, made once."""
        number = told["id"]
        if number not in self._versions:
            self._versions[number] = deployment_of(told)
            self._tell(number)
        return self._versions[number]

    def _tell(self, number: int) -> None:
        """Where a version's engine is, as the parent last said; it may say so before the version is made here."""
        version, state = self._versions.get(number), self._states.get(number)
        if version is not None and state is not None and isinstance(version.engine, Borrowed):
            version.engine.told(state["url"], state["ready"], state["restarts"])

    async def _told(self, ask: Json) -> Json:
        match ask["do"]:
            case "hello":
                while not self._listener.started:
                    await asyncio.sleep(0.01)
            case "place":
                fresh = await asyncio.to_thread(self._version, ask)  # reads the contract
                if ask["role"] == "canary":
                    self._fleet.place_canary(fresh.key, fresh)
                else:
                    self._fleet.place(fresh)
            case "remove":
                if ask["role"] == "canary":
                    self._fleet.place_canary(ask["key"], None)
                else:
                    self._fleet.remove(ask["key"])
            case "drain":
                old = self._versions.pop(ask["id"], None)
                self._states.pop(ask["id"], None)
                if old is not None and old in self._fleet.draining:
                    await self._fleet.drain(old)
            case "engines":
                for each in ask["states"]:
                    self._states[each["id"]] = each
                    self._tell(each["id"])
            case "prepare" | "take" | "drop":
                return await self._reload(ask)
            case "adopt":
                await self._adopt(ask["index"])
            case "release":
                self._release(ask["index"])
            case "stop":
                self._end()
        return {}

    async def _reload(self, ask: Json) -> Json:
        """Two steps, so that all workers take new settings or none does."""
        if ask["do"] == "prepare":
            try:
                self._prepared = await self._server.prepare(ServeSettings.model_validate(ask["settings"]))
            except (PotstillError, ValueError, OSError) as fault:
                return {"fault": str(fault)}
            return {}
        prepared, self._prepared = self._prepared, None
        if prepared is not None and ask["do"] == "take":
            prepared.take()
        elif prepared is not None:
            prepared.drop()
        return {}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="potstill.serving.worker", description=__doc__)
    parser.add_argument("--wire", type=int, required=True, help="file descriptor of the wire to the parent")
    parser.add_argument("--listen", type=int, nargs="+", required=True, help="those of every worker's listening socket")
    options = parser.parse_args(argv)
    ours, listening = socket.socket(fileno=options.wire), [socket.socket(fileno=each) for each in options.listen]
    calm_collector()
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=_loop) as runner:
        runner.run(Worker(ours, listening).run())
    return 0


def _loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


if __name__ == "__main__":
    sys.exit(main())

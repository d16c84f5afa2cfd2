"""Which artifact an address `models:/NAME@ALIAS` names, now and whenever it moves: asked of a child process."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from potstill import errors
from potstill.errors import EngineFailure, PotstillError, RecipeError
from potstill.progress import say
from potstill.records import Json

FIRST_LOOK_S = 120.0  # MLflow's import and the first use of a fresh database, on a slow machine


@dataclass(frozen=True, slots=True)
class Found:
    """What an address names: a registered version and where its artifact lies. `format` is the file that ships."""

    address: str
    model: str
    version: str
    artifact: Path
    digest: str
    format: str | None

    @property
    def name(self) -> str:
        return f"{self.model}@{self.version}"


@dataclass(frozen=True, slots=True)
class Gone:
    """An address that names nothing: no such model, or its alias was taken away."""

    address: str
    fault: str


@dataclass(frozen=True, slots=True)
class Registry:
    """An MLflow address, or the work folder with MLflow's database in it."""

    tracking_uri: str | None
    work: Path

    def find(self, *addresses: str) -> list[Found]:
        """What these addresses name now; blocks for seconds. Raises what the look-up raised in its process."""
        command = self._command(0, addresses)
        try:
            ended = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment(), timeout=FIRST_LOOK_S
            )
        except subprocess.TimeoutExpired as fault:
            message = f"the registry gave no answer within {FIRST_LOOK_S:g} s; is its address right?"
            raise PotstillError(message) from fault
        events = [json.loads(line) for line in ended.stdout.splitlines() if line.strip()]
        found = [_found(each) for each in events]
        if len(found) != len(addresses):
            raise PotstillError(f"the look-up of {', '.join(addresses)} ended with {ended.returncode}; see above")
        return found

    async def follow(self, every_s: float, addresses: Sequence[str]) -> AsyncIterator[Found | Gone]:
        """Each version that an address comes to name, the present ones first. A child that dies is started again."""
        pause = 1.0
        while True:
            # Not asyncio's subprocesses: uvloop has them in the main thread alone.
            child = subprocess.Popen(
                self._command(every_s, addresses), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
            )
            try:
                async for line in await _lines(child):
                    event = json.loads(line)
                    if event.get("kind") == "RecipeError":
                        yield Gone(event["address"], event["fault"])
                    elif "fault" in event:
                        say(f"serve: {event['address']}: {event['fault']}; what is served stays")
                    else:
                        yield _found(event)
                        pause = 1.0
            finally:
                child.kill()
                child.wait()  # at once, since it was killed
            say(f"serve: the process that watches the registry ended ({child.returncode}); another in {pause:g} s")
            await asyncio.sleep(pause)
            pause = min(2 * pause, 60.0)

    def _command(self, every_s: float, addresses: Sequence[str]) -> list[str]:
        uri = ["--tracking-uri", self.tracking_uri] if self.tracking_uri else []
        return [
            sys.executable, "-m", "potstill.serving.registry_child", *uri, "--work", str(self.work),
            "--every-s", str(every_s), "--parent", str(os.getpid()), *addresses,
        ]  # fmt: skip


async def _lines(child: subprocess.Popen[bytes]) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), child.stdout)
    return reader


def _found(event: Json) -> Found:
    """The version of an event; raises the fault of one."""
    if "fault" not in event:
        event["artifact"] = Path(event["artifact"])
        return Found(**event)
    kind = getattr(errors, event["kind"], PotstillError)
    text = str(event["fault"])
    if kind is RecipeError:
        raise RecipeError(text.splitlines())
    if kind is errors.GateRefused:
        raise errors.GateRefused(event["address"], [text])
    raise kind(text) if isinstance(kind, type) and issubclass(kind, PotstillError) else EngineFailure(text)


def environment() -> dict[str, str]:
    """The child must find this very package, also where it was put on sys.path by hand."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "MLFLOW_DISABLE_TELEMETRY": "true"}

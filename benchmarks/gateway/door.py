"""The real application before any engine: `python -m benchmarks.gateway.door --engine URL [key=value ...]`.

`key=value` words are settings of `serve:`. No artifact is needed: the task is a choice among Banking77's kind of
labels, its contract has no golden prompts, and nothing is verified, since what is measured is the way of a request.
Prints the address.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
import tempfile
from pathlib import Path

from benchmarks.gateway.policies import texts
from potstill.calibration.conformal import Bound
from potstill.calibration.record import Calibration, Scorer
from potstill.commands.serve import settings_from
from potstill.contract import Contract
from potstill.manifest import write_manifest
from potstill.prompt import PromptRule
from potstill.records import Example, Json
from potstill.serving.assemble import Listener, assemble, calm_collector
from potstill.serving.backends import Address
from potstill.serving.fleet import Deployment, Fleet
from potstill.serving.server import Server
from potstill.serving.settings import ServeSettings
from potstill.serving.start import Served
from potstill.tasks import task_from
from potstill.watching.profile import make_profile

LABELS = ["label", *(f"other_{at}" for at in range(1, 77))]
TASKS: dict[str, Json] = {
    "classification": {"kind": "classification", "labels": LABELS},
    "generation": {"kind": "generation"},
}


def server_before(engine: str, settings: ServeSettings, folder: Path, kind: str = "classification") -> Server:
    """A server whose only version is the engine at this address, with a profile and a calibration of made-up rows."""
    artifact = folder / "artifact"
    artifact.mkdir(exist_ok=True)
    task = task_from(TASKS[kind])
    contract = Contract(TASKS[kind], "", [], PromptRule().to_json(), 32, 512)
    served = Served(artifact, "d" * 64, "mock", artifact / "none", contract, task, PromptRule())
    if settings.drift is not None:
        make_profile([row_of(at, text) for at, text in enumerate(texts(500))], task).write(artifact)
    if settings.escalate is not None:
        path = str(calibrated(folder / "calibration", served))
        settings = settings.model_copy(
            update={"escalate": settings.escalate.model_copy(update={"calibration": path})}
        )  # fmt: skip
    fleet = Fleet(Deployment("mock@1", served, Address(engine, "mock")))
    return assemble(settings, fleet, folder / "work" / "captured" / "mock")


def row_of(at: int, text: str) -> Example:
    messages = [{"role": "user", "content": text}]
    return Example(str(at), str(at), messages, messages, LABELS[at % 77], LABELS[at % 77], LABELS[at % 77])


def calibrated(folder: Path, served: Served) -> Path:
    """A calibration by which the engine's answers are sure enough."""
    folder.mkdir(exist_ok=True)
    points = [(at / 500, 1.0 if at < 100 else 0.0) for at in range(500)]
    Calibration(
        served.digest, served.format, "none", served.task.kind, Scorer.usual(served.task), "answer", points,
        Bound(0.05), [],
    ).write(folder)  # fmt: skip
    write_manifest(folder, "calibration", settings_passed={}, settings_used={}, inputs=[], facts={})
    return folder


def run_listener(server: Server) -> None:
    """Answer until our standard input ends; prints the address first."""
    listener = Listener(server)
    calm_collector()

    async def main() -> None:
        listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
        serving = asyncio.create_task(listener.serve(sockets=[listening]))
        while not listener.started:
            await asyncio.sleep(0.01)
        print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        closed = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await asyncio.wait({serving, asyncio.ensure_future(closed)}, return_when=asyncio.FIRST_COMPLETED)
        listener.end()
        await serving
        if server.log is not None:
            server.log.close()

    with asyncio.Runner(loop_factory=listener.config.get_loop_factory()) as runner:
        runner.run(main())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--task", choices=sorted(TASKS), default="classification")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    words = [each.replace("ENGINE", args.engine) for each in args.overrides]
    with tempfile.TemporaryDirectory() as folder:
        run_listener(server_before(args.engine, settings_from(words), Path(folder), args.task))


if __name__ == "__main__":
    main()

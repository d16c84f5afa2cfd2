"""The real application before any engine: `python -m benchmarks.gateway.door --engine URL [key=value ...]`.

`key=value` words are settings of `serve:`. No artifact is needed: the task is a choice among Banking77's kind of
labels, its contract has no golden prompts, and nothing is verified, since what is measured is the way of a request.
Prints the address.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

from potstill.commands.serve import settings_from
from potstill.contract import Contract
from potstill.prompt import PromptRule
from potstill.serving.app import App
from potstill.serving.authenticate import Keys
from potstill.serving.backends import Address
from potstill.serving.capture import CaptureLog
from potstill.serving.fleet import Deployment, Fleet
from potstill.serving.meter import Meter
from potstill.serving.order import ORDER
from potstill.serving.redact_lines import RedactLines
from potstill.serving.server import Server
from potstill.serving.settings import ServeSettings
from potstill.serving.start import Served
from potstill.tasks import task_from

LABELS = ["label", *(f"label_{at}" for at in range(76))]


def server_before(engine: str, settings: ServeSettings, folder: Path) -> Server:
    """A server whose only version is the engine at this address."""
    task = {"kind": "classification", "labels": LABELS}
    contract = Contract(task, "", [], PromptRule().to_json(), 32, 512)
    served = Served(folder, "d" * 64, "mock", folder / "none", contract, task_from(task), PromptRule())
    meter = Meter()
    log = None
    if settings.capture is not None:
        redact = RedactLines() if settings.capture.redact else None
        log = CaptureLog(folder, meter, sample=settings.capture.sample, durable=settings.capture.durable, redact=redact)
    fleet = Fleet(Deployment("mock@1", served, Address(engine, "mock")))
    return Server(fleet, settings, ORDER, keys=Keys.load(settings.keys), meter=meter, log=log)


def run_uvicorn(app: Any) -> None:
    import uvicorn

    config = uvicorn.Config(app, port=0, log_level="warning", access_log=False, lifespan="on", backlog=4096)
    server = uvicorn.Server(config)

    async def main() -> None:
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        print(f"http://{host}:{port}", flush=True)
        closed = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await asyncio.wait({serving, asyncio.ensure_future(closed)}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving

    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(main())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", required=True)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_uvicorn(App(server_before(args.engine, settings_from(args.overrides), Path(folder))))


if __name__ == "__main__":
    main()

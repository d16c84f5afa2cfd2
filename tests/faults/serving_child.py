"""A server before a mock engine that captures into a folder and may be killed: `python serving_child.py ENGINE FOLDER`.

`durable` or `grouped` says how surely; small files, so that it rotates all the time. Prints its address.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.gateway.door import LABELS, run_listener
from potstill.contract import Contract
from potstill.prompt import PromptRule
from potstill.serving.backends import Address
from potstill.serving.capture import Bounds, CaptureLog
from potstill.serving.fleet import Deployment, Fleet
from potstill.serving.meter import Meter
from potstill.serving.order import ORDER
from potstill.serving.redact_lines import RedactLines
from potstill.serving.server import Server
from potstill.serving.settings import ServeSettings
from potstill.serving.start import Served
from potstill.tasks import task_from


def main(engine: str, folder: Path, how: str) -> None:
    task = {"kind": "classification", "labels": LABELS}
    contract = Contract(task, "", [], PromptRule().to_json(), 32, 512)
    served = Served(folder, "d" * 64, "mock", folder / "none", contract, task_from(task), PromptRule())
    meter = Meter()
    log = CaptureLog(
        folder, meter, sample=1.0, durable=how == "durable", redact=RedactLines(b"k"),
        bounds=Bounds(rotate_bytes=20_000, group_s=0.1),
    )  # fmt: skip
    server = Server(
        Fleet(Deployment("mock@1", served, Address(engine, "mock"))), ServeSettings(), ORDER, meter=meter, log=log
    )
    run_listener(server)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])

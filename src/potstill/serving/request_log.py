"""One JSON line a request: who, which version, what answered, how long, what it cost. Never a text, never a key."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from potstill.progress import say
from potstill.records import Json
from potstill.serving.costs import cost_of

if TYPE_CHECKING:
    from potstill.serving.call import Call
    from potstill.serving.settings import ServeSettings
    from potstill.serving.traceparent import Trace

EVERY_S = 0.25
MOST_WAITING = 100_000  # lines, while the file takes none


class RequestLog:
    """Lines are gathered and written together by a thread; the file may be moved away at any time (logrotate)."""

    def __init__(self, path: str) -> None:
        self._path = None if path == "stderr" else Path(path)
        self._lines: deque[bytes] = deque(maxlen=MOST_WAITING)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def note(self, call: Call, settings: ServeSettings, trace: Trace | None) -> None:
        self._lines.append(orjson.dumps(line_of(call, settings, trace), option=orjson.OPT_APPEND_NEWLINE))

    def start(self) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._write_on, name="potstill-log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what waits."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _write_on(self) -> None:
        ended, failing = False, False
        while not ended:
            ended = self._stop.wait(EVERY_S)
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            if not lines:
                continue
            try:
                self._write(b"".join(lines))
                failing = False
            except OSError as fault:
                if not failing:
                    say(f"serve: telemetry.log: {fault}")
                failing = True
                self._lines.extendleft(reversed(lines))

    def _write(self, data: bytes) -> None:
        if self._path is None:
            sys.stderr.write(data.decode())
            sys.stderr.flush()
            return
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            end = os.fstat(file).st_size
            if os.write(file, data) != len(data):
                os.ftruncate(file, end)
                raise OSError(f"{self._path}: the disk is full")
        finally:
            os.close(file)


def line_of(call: Call, settings: ServeSettings, trace: Trace | None) -> Json:
    """What the log says of a request. `user` and all content are left out on purpose."""
    prompt = completion = 0
    for each in call.asked:
        prompt += each.usage.get("prompt_tokens") or 0
        completion += each.usage.get("completion_tokens") or 0
    model = call.deployment
    return {
        "time": call.time,
        "id": call.id,
        "key": call.key or None,
        "tenant": call.tenant or None,
        "model": model.name if model is not None else None,
        "version": model.artifact if model is not None else None,
        "answered_by": call.answered_by or None,
        "status": call.status,
        "stream": call.stream,
        "asked": [each.by for each in call.asked],
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "ms": round(call.seconds * 1000, 3),
        "first_ms": round(call.first_s * 1000, 3) if call.first_s is not None else None,
        "cost_usd": cost_of(call, settings),
        "trace": f"{trace.trace:032x}" if trace is not None else None,
    }

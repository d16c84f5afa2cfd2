"""The inference engine for GGUF files: llama.cpp in a child process, spoken to over loopback HTTP.

    with Engine.start(Path("student.gguf"), parallel=4) as engine:
        httpx.post(f"{engine.url}/v1/chat/completions", json=...)

The child ends with this process, however this process ends. Nothing here imports torch or transformers.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from potstill.cores import usable_cores
from potstill.errors import EngineFailure
from potstill.records import Json, Message

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 5.0
LOG_TAIL_BYTES = 2000


@dataclass
class Engine:
    """A running engine: its address, its process, and where it writes what went wrong."""

    url: str
    model: Path
    parallel: int
    context: int
    process: subprocess.Popen[bytes]
    log: Path
    owns_log: bool = False

    @classmethod
    def start(
        cls,
        model: Path,
        *,
        parallel: int = 4,
        context: int = 2048,
        threads: int | None = None,
        port: int = 0,
        log: Path | None = None,
        timeout_s: float = START_TIMEOUT_S,
    ) -> Engine:
        """A healthy engine serving `model` with `parallel` slots of `context` tokens each.

        Raises EngineFailure, with the end of the engine's log, when the file is missing or no GGUF, when
        llama.cpp refuses it, or when it is not healthy within `timeout_s`.
        """
        if not model.is_file():
            raise EngineFailure(f"{model}: no such file; expected a GGUF model")
        owns_log = log is None
        if log is None:
            handle, name = tempfile.mkstemp(prefix="potstill-engine-", suffix=".log")
            os.close(handle)
            log = Path(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        process = _spawn(model, parallel, context, threads or usable_cores(), port, log)
        engine = cls("", model, parallel, context, process, log, owns_log)
        try:
            engine.url = engine._await_address(time.monotonic() + timeout_s, timeout_s)
            engine._await_health(time.monotonic() + timeout_s)
        except BaseException:
            engine.stop()
            raise
        return engine

    def alive(self) -> bool:
        """Whether the process runs; says nothing about whether it answers."""
        return self.process.poll() is None

    def stop(self) -> None:
        """End the engine and wait for it; safe to call twice."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):  # the child closed its end first
                self.process.stdin.close()
        if self.alive():
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        if self.owns_log:
            self.log.unlink(missing_ok=True)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """The engine's own token ids for a text; `add_special` puts the model's opening token in front."""
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        return [int(each) for each in self._post("/tokenize", body)["tokens"]]

    def apply_template(self, messages: Sequence[Message], tools: Sequence[Json] = ()) -> str:
        """The prompt text that the engine makes of these messages with the file's chat template."""
        body: Json = {"messages": list(messages)}
        if tools:
            body["tools"] = list(tools)
        return str(self._post("/apply-template", body)["prompt"])

    def log_tail(self) -> str:
        """The last lines that the engine wrote."""
        try:
            data = self.log.read_bytes()
        except OSError:
            return ""
        return data[-LOG_TAIL_BYTES:].decode(errors="replace").strip()

    def _post(self, path: str, body: Json) -> Json:
        import httpx

        try:
            response = httpx.post(self.url + path, json=body, timeout=30)
        except httpx.HTTPError as fault:
            raise self._failure(f"did not answer {path} ({fault})") from fault
        if response.status_code != 200:
            raise EngineFailure(f"engine answered {path} with {response.status_code}: {response.text[:300]}")
        return cast(Json, response.json())

    def _await_address(self, deadline: float, timeout_s: float) -> str:
        """The line that the child writes once it listens."""
        stream: Any = self.process.stdout
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self._failure(f"did not start within {timeout_s:.0f} s")
            chunk = os.read(stream.fileno(), 200)
            if not chunk:
                self.process.wait()
                raise self._failure("did not start")
            line += chunk
        return line.decode().strip()

    def _await_health(self, deadline: float) -> None:
        import httpx

        while time.monotonic() < deadline:
            if not self.alive():
                raise self._failure("ended while loading")
            try:
                if httpx.get(self.url + "/health", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass  # not listening yet; the deadline and alive() bound the wait
            time.sleep(0.05)
        raise self._failure("loaded, but /health never said ok")

    def _failure(self, what: str) -> EngineFailure:
        code = self.process.poll()
        state = "" if code is None else f" (exit code {code})"
        tail = self.log_tail() or "nothing"
        return EngineFailure(f"engine for {self.model} {what}{state}; the end of its log: {tail}")


def _spawn(model: Path, parallel: int, context: int, threads: int, port: int, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "potstill.engine_child", "--model", str(model), "--port", str(port)]
    command += ["--parallel", str(parallel), "--context", str(context), "--threads", str(threads)]
    command += ["--parent", str(os.getpid())]
    # The child must find this very package, also where it was put on sys.path by hand.
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
    with log.open("ab") as stream:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, env=environment, bufsize=0
        )

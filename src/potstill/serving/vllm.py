"""vLLM as a child process: `vllm serve` on a folder of the artifact, on a leash, spoken to over loopback HTTP.

Its options are those of vLLM 0.12's documentation. A vLLM takes most of a GPU's memory when it starts
(`--gpu-memory-utilization`), so that two of them share one GPU only when each is told to take less than half.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from potstill.engine import LOG_TAIL_BYTES
from potstill.errors import EngineFailure
from potstill.serving.backends import VLLM_MODEL
from potstill.serving.engine_settings import VllmSettings

STOP_TIMEOUT_S = 10.0


def command_line(folder: Path, window: int, port: int, settings: VllmSettings) -> list[str]:
    """What is run; the recipe's own arguments come last and so have the last word."""
    words = [settings.command, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    words += ["--served-model-name", VLLM_MODEL, "--max-model-len", str(window)]
    return [*words, *settings.arguments]


@dataclass
class VllmServer:
    """A running vLLM: its address, its process (the leash), its log."""

    url: str
    model: Path
    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, folder: Path, window: int, settings: VllmSettings) -> VllmServer:
        """A healthy vLLM; raises EngineFailure with the end of its log."""
        port = _free_port()
        handle, name = tempfile.mkstemp(prefix="potstill-vllm-", suffix=".log")
        leash = [sys.executable, "-m", "potstill.serving.leash", "--parent", str(os.getpid()), "--"]
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
        with os.fdopen(handle, "ab") as log:
            process = subprocess.Popen(
                leash + command_line(folder, window, port, settings),
                stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment,
            )  # fmt: skip
        server = cls(f"http://127.0.0.1:{port}", folder, process, Path(name))
        try:
            server._await_health(settings.start_timeout_s)
        except BaseException:
            server.stop()
            raise
        return server

    def alive(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        """End it and all that it started; safe to call twice."""
        if self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.unlink(missing_ok=True)

    def log_tail(self) -> str:
        """The last lines that it wrote."""
        try:
            return self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
        except OSError:
            return ""

    def _await_health(self, timeout_s: float) -> None:
        import httpx

        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if not self.alive():
                raise self._failure(f"ended while starting (exit code {self.process.returncode})")
            with suppress(httpx.HTTPError):
                if httpx.get(self.url + "/health", timeout=5).status_code == 200:
                    return
            time.sleep(0.1)
        raise self._failure(f"was not healthy within {timeout_s:g} s")

    def _failure(self, what: str) -> EngineFailure:
        return EngineFailure(f"vLLM for {self.model} {what}; the end of its log: {self.log_tail() or 'nothing'}")


def _free_port() -> int:
    """vLLM names no port that it chose itself, so one is chosen for it; a taken one shows as a failed start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

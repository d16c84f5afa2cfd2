"""Other gateways before the same engine, with the features of theirs that compare: a key, limits, a cache, metrics."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.gateway.policies import KEY
from benchmarks.gateway.processes import Running

LITELLM = """
model_list:
  - model_name: mock
    litellm_params:
      model: openai/mock
      api_base: {engine}/v1
      api_key: none
      rpm: 100000000
      tpm: 100000000
general_settings:
  master_key: {key}
litellm_settings:
  telemetry: false
  cache: true
  cache_params:
    type: local
  num_retries: 0
"""
START_S = 90.0


@contextmanager
def litellm(command: Path, engine: str) -> Iterator[Running]:
    """LiteLLM's proxy with one worker: master key, rate limits of its router, cache in memory; nothing logged."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        config = Path(folder) / "config.yaml"
        config.write_text(LITELLM.format(engine=engine, key=KEY), encoding="utf-8")
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        words = [
            str(command),
            "--config",
            str(config),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--num_workers",
            "1",
        ]
        log = (Path(folder) / "log").open("wb")
        child = subprocess.Popen(words, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(f"{url}/health/liveliness", child)
            yield Running(url, psutil.Process(child.pid))
        finally:
            for each in [*psutil.Process(child.pid).children(recursive=True), child]:
                each.kill()
            child.wait()


def wait_for(url: str, child: subprocess.Popen[bytes]) -> None:
    """Return when the address answers; raises RuntimeError when the process ended or took too long."""
    end = time.monotonic() + START_S
    while time.monotonic() < end and child.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"{url}: no answer within {START_S:g} s; exit code {child.poll()}")

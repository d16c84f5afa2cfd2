"""The processes of a benchmark of the gateway: each prints its address, ends when our end of its pipe closes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

Json = dict[str, Any]


@dataclass(frozen=True)
class Running:
    """A server process at `url`."""

    url: str
    process: psutil.Process

    def cpu_s(self) -> float:
        """Processor seconds that it and its children have used."""
        every = [self.process, *self.process.children(recursive=True)]
        return sum(sum(each.cpu_times()[:2]) for each in every)

    def rss_bytes(self) -> int:
        return int(sum(each.memory_info().rss for each in [self.process, *self.process.children(recursive=True)]))


@contextmanager
def running(module: str, words: Sequence[str], env: Mapping[str, str] | None = None) -> Iterator[Running]:
    """`python -m module words` until the block ends."""
    child = subprocess.Popen(
        [sys.executable, "-m", module, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **(env or {})},
    )  # fmt: skip
    assert child.stdin
    assert child.stdout
    try:
        url = child.stdout.readline().strip()
        if not url:
            raise RuntimeError(f"{module} {' '.join(words)} ended before it gave its address")
        yield Running(url, psutil.Process(child.pid))
    finally:
        child.stdin.close()
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def load(url: str, lines: Iterable[str], *, key: str = "", **options: object) -> Json:
    """Run `load.py` against a server's chat completions; the options are its flags, True for a flag without a value."""
    words = [sys.executable, "-m", "benchmarks.gateway.load", "--url", f"{url}/v1/chat/completions", "--key", key]
    for name, value in options.items():
        if value is not False:
            words += [f"--{name}"] + ([] if value is True else [str(value)])
    done = subprocess.run(words, input="\n".join(lines), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the load on {url} failed: {done.stderr[-2000:]}")
    found: Json = json.loads(done.stdout)
    return found

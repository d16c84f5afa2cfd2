"""Promise of the image: what deploy/requirements.txt names is enough to serve, torch and MLflow not among it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import httpx
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "port=0", "threads=1", "limits={requests_per_minute: 1000}", "budgets={key: {daily_usd: 5}}",
    "prices={student: {output: 0.1}}", "cache={exact: {}}",
    "screen={injection: {}, personal: {}}", "batches={}", "telemetry={log: stderr}",
)  # fmt: skip
# Stands in for an environment with these distributions alone: modules of any other are not found, in children neither.
BLOCK = """
import sys
import time
from importlib.machinery import PathFinder
ALLOWED = set({allowed!r})
class Refuse:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if "." not in name and name in {known!r} and name not in ALLOWED:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse)
"""


def closure(names: list[str]) -> set[str]:
    """The distributions that pip would install for these, by normal name."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        for each in map(Requirement, needs):
            if each.marker is None or each.marker.evaluate({"extra": ""}):
                waiting.append(each.name)
    return found


def until_ready(url: str) -> None:
    for _ in range(100):
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.ConnectError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"{url}: not ready within 10 s")


def test_a_server_starts_and_answers_with_what_the_image_has(artifact: Path, tmp_path: Path) -> None:
    lines = (ROOT / "deploy" / "requirements.txt").read_text().splitlines()
    there = closure([each for each in lines if each and not each.startswith("#")]) | {"potstill"}
    assert not there & {"torch", "transformers", "mlflow", "scikit-learn"}
    modules = metadata.packages_distributions()
    allowed = sorted(
        name for name, of in modules.items() if {re.sub(r"[-_.]+", "-", each).lower() for each in of} & there
    )
    (tmp_path / "sitecustomize.py").write_text(BLOCK.format(allowed=allowed, known=set(modules)))
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT / 'src'}", "POTSTILL_KEY": "k" * 20}
    words = [sys.executable, "-m", "potstill.cli", "serve", str(artifact), "keys=[POTSTILL_KEY]", *SETTINGS]
    child = subprocess.Popen(words, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    assert child.stderr
    try:
        said = []
        for line in child.stderr:
            said.append(line)
            if found := re.search(r"at (http://\S+)/v1", line):
                break
        else:
            raise AssertionError("".join(said))
        until_ready(f"{found[1]}/readyz")
        body = {"model": "m", "messages": [{"role": "user", "content": "I love it, call +1 415 555 2671"}]}
        headers = {"authorization": f"Bearer {'k' * 20}"}
        answer = httpx.post(f"{found[1]}/v1/chat/completions", json=body, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"] in ("negative", "neutral", "positive")
    finally:
        child.terminate()
        child.wait(30)
    assert child.returncode == 0

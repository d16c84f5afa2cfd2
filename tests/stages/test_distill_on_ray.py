"""The same log gives the same dataset to the byte in one process, in worker processes, and on two nodes of Ray."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distillation.run import main
from distillation.runtime_ray import RayRuntime
from potstill.manifest import sha256_file
from potstill.stage import Shared
from tests.unit.mail_log import LABELS, correction, exchange, said, settings_for

pytestmark = pytest.mark.slow
ROWS_A_FILE = 9_000  # about six megabytes: more than one block a file


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster of two nodes with a core each, on this machine."""
    pytest.importorskip("ray", reason="ray is not installed: pip install potstill[ray]")
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster.address
    cluster.shutdown()


def where(plan: str, task: int) -> str:
    """The node that this runs on."""
    import ray

    time.sleep(0.5)
    return str(ray.get_runtime_context().get_node_id())


def logs(folder: Path) -> Path:
    """Three files with duplicates among them, corrections, personal data and damaged lines."""
    folder.mkdir()
    for file in range(3):
        with (folder / f"part{file}.jsonl").open("w") as stream:
            for at in range(ROWS_A_FILE):
                row = file * ROWS_A_FILE + at
                text = said(row if at % 5 else row - 7) + (
                    f" mail me at user{row}@mail.example" if at % 11 == 0 else ""
                )
                given = correction(LABELS[(row + 1) % 3]) if at % 9 == 0 else []
                stream.write(json.dumps(exchange(row, text=text, feedback=given)) + "\n")
            stream.write("{damaged\n")
    return folder / "part*.jsonl"


def distilled(log: Path, out: Path, runtime: str) -> dict[str, str]:
    out.mkdir()
    base = out.parent / "base"
    base.mkdir(exist_ok=True)
    (base / "config.json").write_text("{}")
    task = {"kind": "classification", "labels": LABELS}
    shared = Shared("mail", task, str(base), out.parent / "work" / "mail", "sqlite:///unused.db")
    main(settings_for(log, runtime=runtime), shared, {}, out)
    return {path.relative_to(out).as_posix(): sha256_file(path) for path in sorted(out.rglob("*")) if path.is_file()}


def test_two_nodes_of_ray_give_the_bytes_of_one_machine(
    tmp_path: Path, two_nodes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with RayRuntime() as ray:
        assert len(set(ray.map(where, "", range(8)))) == 2, "both nodes work"
    log = logs(tmp_path / "log")
    local = distilled(log, tmp_path / "local", "local")
    remote = distilled(log, tmp_path / "remote", "ray")
    print(json.dumps({"local": local, "two nodes of ray": remote}, indent=1))
    assert remote == local

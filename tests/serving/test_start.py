"""Promises of the server's start and end: what is refused before the first request, and what a signal leaves behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import httpx
import pytest

from potstill.contract import Contract, Golden
from potstill.errors import ManifestMismatch, ParityMismatch, RecipeError
from potstill.manifest import write_manifest
from potstill.serving.captured import join
from potstill.serving.run import running_server
from potstill.serving.settings import ServeSettings
from potstill.serving.start import load_artifact, resolve, start_engine


def copy_of(artifact: Path, to: Path, change: Callable[[Contract], Contract] | None = None) -> Path:
    """The artifact again (the model hard-linked), with another contract and a manifest that agrees with it."""
    to.mkdir()
    os.link(artifact / "model-q4_1.gguf", to / "model-q4_1.gguf")
    contract = Contract.read(artifact)
    (change(contract) if change else contract).write(to)
    facts = {"formats": {"gguf-q4_1": {"file": "model-q4_1.gguf"}}}
    write_manifest(to, "artifact", settings_passed={}, settings_used={}, inputs=[], facts=facts)
    return to


def test_a_flipped_byte_is_refused_by_name(artifact: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(artifact, damaged)
    with (damaged / "model-q4_1.gguf").open("r+b") as stream:
        stream.seek(50_000_000)
        byte = stream.read(1)[0]
        stream.seek(50_000_000)
        stream.write(bytes([byte ^ 1]))
    with (
        pytest.raises(ManifestMismatch, match=r"model-q4_1\.gguf"),
        running_server(damaged, ServeSettings(port=0), "", tmp_path / "capture"),
    ):
        pass


def test_a_changed_template_is_refused_with_what_differs(artifact: Path, tmp_path: Path) -> None:
    def other_template(contract: Contract) -> Contract:
        return replace(contract, chat_template=contract.chat_template.replace("<|im_end|>", "<|end|>", 1))

    changed = copy_of(artifact, tmp_path / "changed", other_template)
    with pytest.raises(ParityMismatch, match=r"(?s)chat template: at character \d+: found .*im_end.*expected .*<\|end"):
        start_engine(load_artifact(changed), slots=1, threads=1)


def test_other_tokens_than_in_training_are_refused(artifact: Path, tmp_path: Path) -> None:
    def other_tokens(contract: Contract) -> Contract:
        golden = contract.golden[1]
        return replace(contract, golden=[contract.golden[0], Golden(**asdict(golden) | {"token_ids": [1, 2, 3]})])

    changed = copy_of(artifact, tmp_path / "changed", other_tokens)
    with pytest.raises(ParityMismatch, match=r"golden prompt 1: \d+ tokens, expected 3; first difference at token"):
        start_engine(load_artifact(changed), slots=1, threads=1)


def test_a_wide_bind_without_keys_is_refused_and_with_keys_allowed_to_start(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for host in ("0.0.0.0", "::", "some-name"):
        with (
            pytest.raises(RecipeError, match="keys"),
            running_server(artifact, ServeSettings(host=host, port=0), "", tmp_path),
        ):
            pass
    monkeypatch.delenv("POTSTILL_TEST_KEY", raising=False)
    with (
        pytest.raises(RecipeError, match="POTSTILL_TEST_KEY is not set"),
        running_server(artifact, ServeSettings(host="0.0.0.0", port=0, keys=("POTSTILL_TEST_KEY",)), "", tmp_path),
    ):
        pass


def test_a_taken_port_is_refused_before_an_engine_starts(artifact: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = ServeSettings(port=taken.getsockname()[1])
        with pytest.raises(RecipeError, match="cannot be bound"), running_server(artifact, settings, "", tmp_path):
            pass


def test_an_address_in_the_registry_is_resolved_by_name_and_alias(tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def find_version(name: str, alias: str) -> Path:
        asked.append((name, alias))
        return tmp_path

    assert resolve("models:/sentiment@champion", find_version) == tmp_path
    assert asked == [("sentiment", "champion")]
    assert resolve(str(tmp_path)) == tmp_path
    with pytest.raises(RecipeError, match="models:/NAME@ALIAS"):
        resolve("models:/sentiment", find_version)


SERVE = """
import sys
from pathlib import Path
from potstill.serving.run import serve
from potstill.serving.settings import ServeSettings
serve(Path(sys.argv[1]), ServeSettings(port=int(sys.argv[3]), threads=1, slots=1), "sentiment@1", Path(sys.argv[2]))
print("ended in order")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_in_order_with_every_answer_captured(
    artifact: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", SERVE, str(artifact), str(tmp_path), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 60
        while time.monotonic() < end and process.poll() is None:
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        body = {"model": "m", "messages": [{"role": "user", "content": "fine"}]}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30).json()
        process.send_signal(number)
        said, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "ended in order" in said
    assert [each.id for each in join(tmp_path)] == [answer["id"]]
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url}/healthz")

"""Promises about engines that need none: what is asked in which words, what fits into memory, what is compared."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from potstill.canaries import choose_canaries, read_canaries
from potstill.completers import Completion
from potstill.errors import ParityMismatch, RecipeError
from potstill.free_memory import free_bytes
from potstill.records import Example
from potstill.serving.authenticate import Keys
from potstill.serving.backends import Address, Borrowed, body_for
from potstill.serving.call import Call
from potstill.serving.engine_settings import LlamaCppSettings
from potstill.serving.fleet import Fleet
from potstill.serving.memory import shortage
from potstill.serving.order import ORDER
from potstill.serving.run import running_server
from potstill.serving.server import Server
from potstill.serving.settings import ServeSettings
from potstill.serving.start import load_artifact
from potstill.serving.steps import Step
from potstill.serving.wire import Hung, Wire
from potstill.tasks import task_from
from tests.serving.test_steps_and_fleet import asked, deployment
from tests.serving.test_swaps import gone, until
from tests.serving.versions import version

LABELS = {"kind": "classification", "labels": ["yes", "no"]}


def test_each_backend_is_asked_in_its_own_words() -> None:
    upstream = {"messages": [], "grammar": 'root ::= "a"', "cache_prompt": True}
    assert body_for(Borrowed("llama_cpp", "http://x", True), upstream) == upstream
    vllm = body_for(Borrowed("vllm", "http://x", True), upstream)
    assert vllm == {"messages": [], "model": "student", "structured_outputs": {"grammar": 'root ::= "a"'}}
    assert body_for(Address("http://127.0.0.1:1/v1", "gpt"), upstream) == {"messages": [], "model": "gpt"}
    schema = body_for(Borrowed("vllm", "http://x", True), {"json_schema": {"type": "object"}})
    assert schema["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_an_engine_that_does_not_fit_is_said_with_what_it_needs(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"x" * (10 << 20))
    assert shortage(model, 13 << 20) is None
    assert shortage(model, None) is None
    assert shortage(model, 11 << 20) == "needs about 12 MiB beside the engine that runs, 11 MiB are free"
    assert shortage(tmp_path, 11 << 20) is not None  # a folder counts by its files


def test_the_containers_limit_counts_where_it_is_less_than_the_machines(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    assert free_bytes(meminfo, tmp_path) == 2 << 20
    (tmp_path / "memory.max").write_text("1048576\n")
    (tmp_path / "memory.current").write_text("524288\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 1024\n")
    assert free_bytes(meminfo, tmp_path) == 524288 + 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(meminfo, tmp_path) == 2 << 20
    assert free_bytes(tmp_path / "none", tmp_path / "none") is None


def test_canaries_are_valid_answers_as_different_as_they_come_and_are_read_back(tmp_path: Path) -> None:
    texts = ["yes", "yes", "maybe", "no"]
    rows = []
    for at in range(4):
        prompt = [{"role": "user", "content": "x" * at}]
        rows.append(Example(str(at), str(at), prompt, prompt, "yes", None, ""))
    answered = [Completion(id=str(at), text=text) for at, text in enumerate(texts)]
    entry = choose_canaries(rows, answered, task_from(LABELS))
    assert [each["answer"] for each in entry["canaries"]] == ["yes", "no"]
    (tmp_path / "verification.json").write_text(json.dumps({"gguf-q8_0": entry}))
    assert [each.answer for each in read_canaries(tmp_path, "gguf-q8_0")] == ["yes", "no"]
    assert read_canaries(tmp_path, "gguf-f16") == ()
    (tmp_path / "verification.json").write_text('{"gguf-q8_0": {"canaries": [{"text": 1}]}}')
    with pytest.raises(ParityMismatch, match="cannot be read"):
        read_canaries(tmp_path, "gguf-q8_0")


def test_vllm_takes_a_folder_of_the_artifact_and_llama_cpp_names_the_way_to_it(tmp_path: Path) -> None:
    folder = version(tmp_path / "v", "x")
    vllm = ServeSettings.model_validate({"engine": {"kind": "vllm"}}).engine
    assert load_artifact(folder, engine=vllm).format == "safetensors-bf16"
    with pytest.raises(RecipeError, match=r"serve\.engine\.kind=vllm"):
        load_artifact(folder)
    with pytest.raises(RecipeError, match="found 'fp8'; of the folders that vLLM loads this artifact has safetensors"):
        load_artifact(folder, "fp8", engine=vllm)


def test_an_engine_of_no_known_kind_is_refused() -> None:
    with pytest.raises(ValidationError, match="llama_cpp"):
        ServeSettings.model_validate({"engine": {"kind": "tgi"}})
    with pytest.raises(ValidationError, match="url"):
        ServeSettings.model_validate({"engine": {"kind": "address"}})


def test_what_a_call_uses_is_closed_only_when_the_call_has_ended() -> None:
    notes: list[str] = []
    go, inside = asyncio.Event(), asyncio.Event()

    class Slow(Step):
        async def before(self, call: Call) -> None:
            inside.set()
            await go.wait()

        async def end(self, call: Call) -> None:
            notes.append("end")

        async def close(self) -> None:
            notes.append("close")

    async def main() -> None:
        server = Server(Fleet(deployment("m")), ServeSettings(), [lambda _: Slow(), *ORDER])
        call = asyncio.create_task(asked(server))
        await inside.wait()
        await server.reload(ServeSettings(max_body_bytes=10))
        await asyncio.sleep(0.01)
        assert notes == []
        go.set()
        await call
        await asyncio.sleep(0.01)
        assert notes == ["end", "close"]

    asyncio.run(main())


def test_settings_that_would_open_the_door_are_not_taken() -> None:
    async def main() -> None:
        server = Server(Fleet(deployment("m")), ServeSettings(), ORDER, keys=Keys())
        with pytest.raises(RecipeError, match=r"no key is asked for"):
            await server.reload(ServeSettings(host="0.0.0.0"))
        assert server.settings.host == "127.0.0.1"

    asyncio.run(main())


def test_a_question_over_the_wire_ends_when_the_other_process_is_gone() -> None:
    async def main() -> None:
        left, right = socket.socketpair()

        async def slow(ask: dict[str, object]) -> dict[str, object]:
            if ask["do"] == "wait":
                await asyncio.Event().wait()
            return {"got": ask}

        ours, theirs = Wire(left, slow), Wire(right, slow)
        await ours.open()
        await theirs.open()
        listening = [asyncio.create_task(each.listen()) for each in (ours, theirs)]
        waiting = asyncio.create_task(ours.ask({"do": "wait"}))
        assert await ours.ask({"do": "x", "text": "ü\n"}) == {"got": {"do": "x", "text": "ü\n"}}
        assert await theirs.ask({"do": "y"}) == {"got": {"do": "y"}}
        theirs.close()
        with pytest.raises(Hung):
            await waiting
        with pytest.raises(Hung):
            await ours.ask({"do": "z"})
        await asyncio.gather(*listening)

    asyncio.run(main())


def test_a_leash_ends_with_its_starter_and_takes_the_whole_group_along(tmp_path: Path) -> None:
    said = tmp_path / "pids"
    inner = (
        "import os, subprocess; p = subprocess.Popen(['sleep', '60']); "
        f"open({str(said)!r}, 'w').write(f'{{os.getpid()}} {{p.pid}}'); p.wait()"
    )
    outer = (
        "import os, subprocess, sys, time; "
        "subprocess.Popen([sys.executable, '-m', 'potstill.serving.leash', '--parent', str(os.getpid()), '--', "
        f"sys.executable, '-c', {inner!r}], stdin=subprocess.PIPE); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", outer], env=os.environ) as starter:
        assert until(lambda: said.exists() and len(said.read_text().split()) == 2)
        starter.send_signal(signal.SIGKILL)
    assert until(lambda: all(gone(int(each)) for each in said.read_text().split()))


def test_the_health_question_of_llama_cpp_is_answered_while_it_decodes_and_seen_when_it_stands_still(
    artifact: Path, tmp_path: Path
) -> None:
    engine = LlamaCppSettings(hung_after_s=6)
    made = ServeSettings(port=0, slots=1, threads=1, constrain=False, capture=None, engine=engine)
    never_ends = {"0": -100, "2": -100}
    body = {"model": "m", "max_tokens": 120, "messages": [{"role": "user", "content": "hi"}], "logit_bias": never_ends}
    with running_server(artifact, made, "m", tmp_path / "c") as running:
        url = f"{running.base_url}/chat/completions"
        assert httpx.post(url, json=body, timeout=60).status_code == 200
        assert running.engine.restarts == 0
        first = running.engine.pid
        os.kill(first, signal.SIGSTOP)
        assert until(lambda: running.engine.restarts == 1, 60)
        assert gone(first)
        assert httpx.post(url, json=body | {"max_tokens": 2}, timeout=60).status_code == 200

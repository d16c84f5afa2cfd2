"""Promises of hot swaps: no call fails, no stream mixes versions, and a version that fails its checks never answers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from potstill.errors import EngineFailure, ParityMismatch
from potstill.serving import room as room_module
from potstill.serving.engine_settings import ModelSettings
from potstill.serving.run import RunningServer, running_server
from potstill.serving.settings import ServeSettings
from potstill.serving.start import load_artifact
from tests.serving.versions import BODY, Seen, clients, fake_vllm, settings, swapped, version


def until(true: Callable[[], bool], within_s: float = 20) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.05)
    return False


def ask(running: RunningServer, **more: Any) -> Any:
    return httpx.post(f"{running.base_url}/chat/completions", json=BODY | more, timeout=30)


def text(reply: httpx.Response) -> str:
    return str(reply.json()["choices"][0]["message"]["content"])


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "Z"


def started(folder: Path) -> list[int]:
    """The processes that engines of this version ran in."""
    lines = (folder.parent / f"seen-{folder.name}.jsonl").read_text().splitlines()
    return [json.loads(line)["pid"] for line in lines if "pid" in line]


async def swaps_under_load(url: str, folders: list[Path], count: int, loads: int) -> Seen:
    """Swap to one version after the other while clients ask."""
    expected = {load(each): (each / "model-bf16" / "answer.txt").read_text() for each in folders}
    end = asyncio.Event()
    asking = asyncio.create_task(clients(url, expected, end, loads))
    for at in range(count):
        done = await swapped(url, artifact=str(folders[(at + 1) % len(folders)]))
        assert done.status_code == 200, done.text
    end.set()
    return await asking


def load(folder: Path) -> str:
    from potstill.manifest import read_manifest

    return read_manifest(folder, "artifact").digest[:12]


def test_swaps_under_load_fail_no_request_and_mix_no_stream(tmp_path: Path) -> None:
    folders = [version(tmp_path / f"v{at}", f"version {at} " + "word " * 20 + f"end {at}") for at in (1, 2)]
    with running_server(folders[0], settings(tmp_path), "m@1", tmp_path / "c") as running:
        seen = asyncio.run(swaps_under_load(running.url, folders, 8, 6))
        assert (seen.failed, seen.mixed) == ([], [])
        assert len(seen.answers) == 2
        assert seen.streams > 20
        assert until(lambda: running.room.fleet.draining == ())
        running_now = [pid for each in folders for pid in started(each) if not gone(pid)]
        assert len(running_now) == 1
    assert all(gone(pid) for each in folders for pid in started(each))


def test_a_version_that_fails_its_checks_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    good = version(tmp_path / "good", "good answer", canaries=["good answer"])
    other_tokens = version(tmp_path / "tokens", "bad", tokens=[9, 9])
    other_answers = version(tmp_path / "answers", "bad", canaries=["what was verified"])
    broken = version(tmp_path / "broken", "bad", refuses=True)
    with running_server(good, settings(tmp_path), "m@1", tmp_path / "c") as running:
        for folder, why in ((other_tokens, "golden prompt 0"), (other_answers, "canary"), (broken, "CUDA error")):
            reply = asyncio.run(swapped(running.url, artifact=str(folder)))
            assert reply.status_code == 409
            assert why in reply.json()["error"]["message"]
            assert text(ask(running)) == "good answer"
            assert all(gone(pid) for pid in started(folder))
    for folder, kind in ((other_tokens, ParityMismatch), (other_answers, ParityMismatch), (broken, EngineFailure)):
        with pytest.raises(kind), running_server(folder, settings(tmp_path), "m@1", tmp_path / "c"):
            pass


def test_a_swap_without_memory_for_both_engines_is_refused_with_the_figures(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = ServeSettings(port=0, slots=1, threads=1, capture=None)
    with running_server(artifact, limits, "m@1", tmp_path / "c") as running:
        monkeypatch.setattr(room_module, "free_bytes", lambda: 50 * 2**20)
        other = tmp_path / "other"
        other.symlink_to(artifact)
        reply = asyncio.run(swapped(running.url, artifact=str(other)))
        assert reply.status_code == 409
        assert "not enough memory" in reply.text
        assert "50 MiB are free" in reply.text
        assert ask(running).status_code == 200


def test_an_engine_that_stands_still_is_replaced(tmp_path: Path) -> None:
    folder = version(tmp_path / "v", "an answer")
    with running_server(folder, settings(tmp_path, engine={"hung_after_s": 1.5}), "m", tmp_path / "c") as running:
        (pid,) = started(folder)
        os.kill(pid, signal.SIGSTOP)
        assert until(lambda: running.engine.restarts == 1)
        assert gone(pid)
        assert text(ask(running)) == "an answer"


def test_an_engine_that_dies_is_replaced_and_meanwhile_calls_are_told_to_come_back(tmp_path: Path) -> None:
    folder = version(tmp_path / "v", "an answer", start_s=0.5)
    with running_server(folder, settings(tmp_path), "m", tmp_path / "c") as running:
        os.kill(started(folder)[0], signal.SIGKILL)
        statuses: list[int] = []

        def answered() -> bool:
            reply = ask(running)
            statuses.append(reply.status_code)
            assert reply.status_code == 200 or reply.headers["retry-after"]
            return statuses[-1] == 200 and 503 in statuses

        assert until(answered)
        assert set(statuses) == {200, 503}


def test_vllm_is_started_with_the_contracts_window_and_the_recipes_words(tmp_path: Path) -> None:
    folder = version(tmp_path / "v", "an answer", notes=True)
    words = settings(tmp_path, engine={"arguments": ("--tensor-parallel-size", "2")})
    with running_server(folder, words, "m", tmp_path / "c") as running:
        assert ask(running).status_code == 200
    first, *bodies = [json.loads(line) for line in (tmp_path / "seen-v.jsonl").read_text().splitlines()]
    argv = first["argv"]
    assert argv[:2] == ["serve", str(folder / "model-bf16")]
    assert argv[argv.index("--max-model-len") + 1] == "512"
    assert argv[-2:] == ["--tensor-parallel-size", "2"]
    assert {each["model"] for each in bodies} == {"student"}
    assert "cache_prompt" not in bodies[-1]


def test_several_models_answer_by_their_names_each_from_its_engine(tmp_path: Path) -> None:
    first, second = version(tmp_path / "a", "from a"), version(tmp_path / "b", "from b")
    models = {"intents": ModelSettings(artifact=str(first)), "replies": ModelSettings(artifact=str(second))}
    with running_server(None, settings(tmp_path, models=models), "", tmp_path / "c") as running:
        assert text(ask(running, model="intents")) == "from a"
        assert text(ask(running, model="replies")) == "from b"
        assert ask(running, model="gpt-5").status_code == 404
        listed = httpx.get(f"{running.base_url}/models").json()["data"]
        assert [each["id"] for each in listed] == ["intents", "replies"]
        third = version(tmp_path / "d", "from d")
        done = asyncio.run(swapped(running.url, model="replies", artifact=str(third)))
        assert done.status_code == 200
        assert (text(ask(running, model="intents")), text(ask(running, model="replies"))) == ("from a", "from d")
        assert asyncio.run(swapped(running.url, model="other", artifact=str(third))).status_code == 404


def test_a_canary_runs_beside_the_current_version_and_keeps_its_engine_when_promoted(tmp_path: Path) -> None:
    first, second = version(tmp_path / "a", "from a"), version(tmp_path / "b", "from b")
    with running_server(first, settings(tmp_path), "m@1", tmp_path / "c") as running:
        assert running.room.fleet.canary("m") is None
        assert asyncio.run(swapped(running.url, artifact=str(second), role="canary")).status_code == 200
        canary = running.room.fleet.canary("anything")
        assert canary is not None
        assert canary.engine.ready
        assert text(ask(running)) == "from a"
        assert asyncio.run(swapped(running.url, artifact=str(second))).json()["artifact"] == load(second)
        assert text(ask(running)) == "from b"
        assert running.room.fleet.canary("m") is None
        assert len(started(second)) == 1
        assert asyncio.run(swapped(running.url, artifact=str(first), role="canary")).status_code == 200
        assert asyncio.run(swapped(running.url, artifact=None, role="canary")).status_code == 200
        assert running.room.fleet.canary("m") is None
        assert until(lambda: all(gone(pid) for pid in started(first)))


def test_settings_are_read_again_without_a_restart_and_what_cannot_be_is_named(tmp_path: Path) -> None:
    folder = version(tmp_path / "v", "an answer")
    written = [settings(tmp_path)]
    with running_server(folder, written[0], "m", tmp_path / "c", read=lambda: written[0]) as running:
        json_type = {"content-type": "application/json"}
        assert ask(running).status_code == 200
        changed = {"max_body_bytes": 10, "port": 4711, "workers": 3, "slots": 2}
        written[0] = written[0].model_copy(update=changed)
        reply = httpx.post(f"{running.url}/admin/reload", headers=json_type, timeout=60)
        assert [each.split()[0] for each in reply.json()["notes"]] == ["serve.port", "serve.workers"]
        assert ask(running).status_code == 413
        assert len(started(folder)) == 2  # other slots are another engine, swapped in
        written[0] = written[0].model_copy(update={"max_body_bytes": 10_000})
        assert httpx.post(f"{running.url}/admin/reload", headers=json_type, timeout=60).status_code == 200
        assert ask(running).status_code == 200
        assert len(started(folder)) == 2


def test_only_this_machine_administers_a_server_without_keys_and_by_json_alone(tmp_path: Path) -> None:
    folder = version(tmp_path / "v", "an answer")
    with running_server(folder, settings(tmp_path), "m", tmp_path / "c") as running:
        elsewhere = {"host": "rebound.example:80"}
        assert httpx.post(f"{running.url}/admin/swap", json={}, headers=elsewhere).status_code == 403
        form = {"content-type": "application/x-www-form-urlencoded"}
        assert httpx.post(f"{running.url}/admin/swap", content=b"{}", headers=form).status_code == 415
        assert httpx.post(f"{running.url}/admin/swap", json=[1]).status_code == 400
        assert httpx.post(f"{running.url}/admin/swap", json={"artefact": "x"}).status_code == 400
        assert httpx.post(f"{running.url}/admin/swap", json={"artifact": "/no/such"}).status_code == 400


def test_the_real_engine_swaps_under_load_too(artifact: Path, tmp_path: Path) -> None:
    """The same model under two contracts: their artifacts differ, and so does what they may answer."""
    from dataclasses import replace

    from potstill.contract import Contract
    from potstill.manifest import write_manifest

    other = tmp_path / "other"
    other.mkdir()
    os.link(artifact / "model-q4_1.gguf", other / "model-q4_1.gguf")
    replace(Contract.read(artifact), task={"kind": "classification", "labels": ["yes", "no"]}).write(other)
    facts = {"formats": {"gguf-q4_1": {"file": "model-q4_1.gguf"}}}
    write_manifest(other, "artifact", settings_passed={}, settings_used={}, inputs=[], facts=facts)
    limits = ServeSettings(port=0, slots=2, threads=1, capture=None)

    async def swap_and_load(running: RunningServer) -> Seen:
        expected = {}
        for folder in (artifact, other):
            answer = text(await asyncio.to_thread(ask, running))
            expected[load_artifact(folder).digest[:12]] = answer
            following = other if folder is artifact else artifact
            assert (await swapped(running.url, artifact=str(following))).status_code == 200
        end = asyncio.Event()
        asking = asyncio.create_task(clients(running.url, expected, end, 3))
        for folder in (other, artifact):
            assert (await swapped(running.url, artifact=str(folder))).status_code == 200
            await asyncio.sleep(0.3)
        end.set()
        return await asking

    with running_server(artifact, limits, "m@1", tmp_path / "c") as running:
        seen = asyncio.run(swap_and_load(running))
    assert (seen.failed, seen.mixed) == ([], [])
    assert len(seen.answers) == 2


def test_an_address_is_checked_at_start(tmp_path: Path) -> None:
    folder = version(tmp_path / "v", "an answer")
    with running_server(folder, settings(tmp_path), "m", tmp_path / "c") as behind:
        url = f"{behind.engine.url}/v1"
        engine = {"kind": "address", "url": url}
        made = ServeSettings.model_validate({"port": 0, "engine": engine, "capture": None})
        with running_server(folder, made, "m", tmp_path / "d") as running:
            assert text(ask(running)) == "an answer"
        other = ServeSettings.model_validate({"port": 0, "engine": engine | {"model": "gpt-5"}, "capture": None})
        with pytest.raises(ParityMismatch, match="'gpt-5' is not among its models: student"):
            running_server(folder, other, "m", tmp_path / "d").__enter__()
        mismatch = version(tmp_path / "w", "an answer", canaries=["another answer"])
        with pytest.raises(ParityMismatch, match="canary 0"):
            running_server(mismatch, made, "m", tmp_path / "d").__enter__()
    with pytest.raises(EngineFailure, match="did not answer"):
        running_server(folder, made, "m", tmp_path / "d").__enter__()


def test_an_engine_that_is_not_installed_is_said(tmp_path: Path) -> None:
    folder = version(tmp_path / "v", "an answer")
    engine = settings(tmp_path).engine.model_copy(update={"command": str(tmp_path / "none")})
    with pytest.raises(EngineFailure, match="cannot be started"):
        running_server(folder, ServeSettings(port=0, engine=engine), "m", tmp_path / "c").__enter__()
    assert fake_vllm(tmp_path)

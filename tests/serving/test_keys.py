"""Promises of keys: who may do what, until when, and that a key itself is never seen again."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from potstill.cli import main
from potstill.errors import RecipeError
from potstill.serving.app import App
from potstill.serving.authenticate import Keys
from potstill.serving.capture import CaptureLog
from potstill.serving.key_records import Key, sha256_of
from potstill.serving.key_store import KeyStoreAway, RedisKeys, SqliteKeys
from potstill.serving.meter import Meter
from potstill.serving.start import refuse_open_door
from tests.redis_server import redis_server
from tests.serving.paid_server import CountingEngine, paid_server


async def asked(server: Any, path: str, key: str, body: Any = None) -> tuple[int, dict[str, str], Any]:
    """Status, headers and body of one request in process."""
    sent: list[Any] = []
    raw = json.dumps(body or {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}).encode()
    came = iter([{"type": "http.request", "body": raw}])

    async def receive() -> Any:
        message = next(came, None)
        return message if message is not None else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    method = "POST" if path.endswith(("completions", "feedback")) else "GET"
    headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
    await App(server)({"type": "http", "method": method, "path": path, "headers": headers}, receive, send)
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    whole = b"".join(each.get("body", b"") for each in sent[1:])
    return sent[0]["status"], found, json.loads(whole) if found["content-type"] == "application/json" else whole


def made(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(["keys", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_key_is_shown_once_and_stored_as_its_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = f"state.dir={tmp_path}"
    secret = made(capsys, "add", "team-a", "--tenant", "acme", "--daily-usd", "5", "--expires", "90d", where)["key"]
    listed = made(capsys, "list", where)["keys"]
    assert [(each["name"], each["tenant"], each["daily_usd"], each["state"]) for each in listed] == [
        ("team-a", "acme", 5.0, "live")
    ]
    assert secret not in json.dumps(listed)
    for file in tmp_path.iterdir():
        assert secret.encode() not in file.read_bytes()
        assert file.stat().st_mode & 0o077 == 0
    assert SqliteKeys(tmp_path).all()[0].hash == sha256_of(secret)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["add", "a b"], "name: found 'a b'"),
        (["add", "a", "--scopes", "chat,root"], "scopes: found root"),
        (["add", "a", "--expires", "soon"], "--expires: found 'soon'"),
        (["revoke", "nobody"], "no live key of this name"),
        (["rotate", "nobody"], "no live key of this name"),
    ],
)
def test_what_cannot_be_done_to_keys_is_refused_by_name(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", *words, f"state.dir={tmp_path}"]) == 2
    assert said in capsys.readouterr().err


def test_a_running_server_sees_added_revoked_and_rotated_keys_within_two_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = f"state.dir={tmp_path}"

    async def status(server: Any, key: str) -> int:
        return (await asked(server, "/v1/models", key))[0]

    async def until(server: Any, key: str, wanted: int) -> float:
        began = time.monotonic()
        while await status(server, key) != wanted:
            assert time.monotonic() - began < 2
            await asyncio.sleep(0.05)
        return time.monotonic() - began

    async def run() -> None:
        server = paid_server("http://127.0.0.1:9", tmp_path, Keys(store=SqliteKeys(tmp_path)))
        await server.start()
        assert await status(server, "") == 200  # nobody has made a key yet
        first = made(capsys, "add", "a", where)["key"]
        await until(server, "", 401)
        assert await status(server, first) == 200
        second = made(capsys, "rotate", "a", where, "--grace", "1s")["key"]
        await until(server, second, 200)
        await until(server, first, 401)
        made(capsys, "revoke", "a", where)
        await until(server, second, 401)
        assert await status(server, "") == 401  # no live key is left, and the door stays shut
        await server.close()

    asyncio.run(run())


def test_each_route_asks_for_its_scope_and_admin_may_do_everything(tmp_path: Path) -> None:
    async def run() -> None:
        engine = CountingEngine()
        keys = {
            name: Key(name, name, sha256_of(f"secret-{name}"), frozenset(scopes))
            for name, scopes in {"c": {"chat"}, "f": {"feedback"}, "m": {"metrics"}, "a": {"admin"}}.items()
        }
        server = paid_server(await engine.start(), tmp_path, Keys({each.hash: each for each in keys.values()}))
        paths = {"/v1/chat/completions": "c", "/v1/feedback": "f", "/metrics": "m"}
        for path, may in paths.items():
            for name in keys:
                status, _, body = await asked(server, path, f"secret-{name}")
                assert (status == 403) == (name not in (may, "a")), (path, name)
                if status == 403:
                    assert body["error"]["code"] == "insufficient_scope"
        for name in keys:
            assert (await asked(server, "/v1/models", f"secret-{name}"))[0] == 200

    asyncio.run(run())


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (Key("a", "a", sha256_of("s"), expires=1.0), "a key that is expired"),
        (Key("a", "a", sha256_of("s"), revoked=1.0), "a key that is revoked"),
        (Key("a", "a", sha256_of("other")), "a key that is not known here"),
    ],
)
def test_a_key_that_is_no_longer_or_not_known_gets_401(key: Key, said: str, tmp_path: Path) -> None:
    server = paid_server("http://127.0.0.1:9", tmp_path, Keys({key.hash: key}))
    for path in ("/v1/models", "/v1/chat/completions"):
        status, _, body = asyncio.run(asked(server, path, "s"))
        assert (status, body["error"]["code"]) == (401, "invalid_api_key")
        assert said in body["error"]["message"]


def test_keys_of_variables_and_files_still_work_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOOR_KEY", "from-variable")
    (tmp_path / "keys.txt").write_text(f"# ours\n{sha256_of('from-file')} anna\n")
    keys = Keys.load(["DOOR_KEY", str(tmp_path / "keys.txt")], SqliteKeys(tmp_path))
    assert {each.name for secret in ("from-variable", "from-file") if (each := keys.of(secret))} == {"DOOR_KEY", "anna"}
    monkeypatch.delenv("DOOR_KEY")
    with pytest.raises(RecipeError, match="DOOR_KEY is not set"):
        Keys.load(["DOOR_KEY"])


def test_stored_keys_open_a_wider_door_and_no_keys_do_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RecipeError, match="can be reached from outside"):
        refuse_open_door("0.0.0.0", Keys.load([], SqliteKeys(tmp_path)))
    made(capsys, "add", "a", f"state.dir={tmp_path}")
    refuse_open_door("0.0.0.0", Keys.load([], SqliteKeys(tmp_path)))


def test_a_key_never_appears_in_logs_captures_or_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = f"state.dir={tmp_path / 'state'}"
    good = made(capsys, "add", "a", "--concurrent", "1", where)["key"]
    bad = good[:-1] + ("x" if good[-1] != "x" else "y")

    async def run() -> list[Any]:
        engine = CountingEngine()
        log = CaptureLog(tmp_path / "captured", Meter(), sample=1.0, durable=True, redact=None)
        server = paid_server(await engine.start(), tmp_path / "state", Keys(store=SqliteKeys(tmp_path / "state")))
        server.log = log
        await server.reload(server.settings)
        said = [await asked(server, "/v1/chat/completions", key) for key in (good, bad)]
        said += [await asked(server, "/metrics", good), await asked(server, "/nowhere", good)]
        await server.close()
        log.close()
        return said

    said = asyncio.run(run())
    assert [each[0] for each in said] == [200, 401, 403, 404]
    captured = b"".join(each.read_bytes() for each in (tmp_path / "captured").iterdir())
    assert b'"key":"a"' in captured
    everything = repr(said) + captured.decode() + "".join(capsys.readouterr())
    for file in (tmp_path / "state").rglob("*"):
        everything += file.read_bytes().decode("latin-1") if file.is_file() else ""
    assert good not in everything
    assert bad not in everything


def test_keys_in_redis_are_seen_by_every_server_and_their_loss_is_said(tmp_path: Path) -> None:
    with redis_server(tmp_path) as url:
        import redis

        one, two = (RedisKeys(redis.Redis.from_url(url, socket_timeout=1)) for _ in range(2))
        keys = Keys(store=two)
        one.change(lambda keys: [*keys, Key("a", "t", sha256_of("s"))])
        assert keys.of("s") is None
        keys.refresh()
        assert keys.of("s") == Key("a", "t", sha256_of("s"))
    with pytest.raises(KeyStoreAway, match="Redis did not answer"):
        keys.refresh()
    assert keys.of("s") is not None  # what was known stays known

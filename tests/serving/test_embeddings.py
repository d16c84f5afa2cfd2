"""Promises of embeddings: an engine's own, under our model's name; an engine without them is said to have none."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest

from potstill.contract import Contract
from potstill.prompt import PromptRule
from potstill.records import Json
from potstill.serving.backends import Address
from potstill.serving.fleet import Deployment, Fleet
from potstill.serving.order import ORDER
from potstill.serving.server import Server
from potstill.serving.settings import ServeSettings
from potstill.serving.start import Served
from potstill.tasks import task_from
from tests.serving.mock_door import listening


class Embedder(ThreadingHTTPServer):
    """Answers with what `says` holds; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Embeds)
        self.says: tuple[int, Any] = (200, {})
        self.got: list[tuple[str, Json]] = []


class _Embeds(BaseHTTPRequestHandler):
    server: Embedder

    def do_POST(self) -> None:
        self.server.got.append((self.path, json.loads(self.rfile.read(int(self.headers["content-length"])))))
        status, body = self.server.says
        raw = json.dumps(body).encode() if not isinstance(body, bytes) else body
        self.send_response(status)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *words: Any) -> None: ...


@pytest.fixture(scope="module")
def engine() -> Iterator[Embedder]:
    found = Embedder()
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture(scope="module")
def client(engine: Embedder) -> Iterator[openai.OpenAI]:
    contract = Contract({"kind": "generation"}, "", [], PromptRule().to_json(), 32, 512)
    nowhere = Path("none")
    served = Served(nowhere, "d" * 64, "remote", nowhere, contract, task_from(contract.task), PromptRule())
    address = Address(f"http://127.0.0.1:{engine.server_address[1]}/v1", "theirs")
    server = Server(Fleet(Deployment("ours@1", served, address)), ServeSettings(capture=None), ORDER)
    with listening(server) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_vectors_come_from_the_engine_under_our_name(client: openai.OpenAI, engine: Embedder) -> None:
    vectors = [{"object": "embedding", "index": at, "embedding": [0.5, float(at)]} for at in range(2)]
    usage = {"prompt_tokens": 2, "total_tokens": 2}
    engine.says = 200, {"object": "list", "model": "theirs", "data": vectors, "usage": usage}
    found = client.embeddings.create(model="ours", input=["a", "b"], encoding_format="float")
    assert [each.embedding for each in found.data] == [[0.5, 0.0], [0.5, 1.0]]
    assert (found.model, found.usage.total_tokens) == ("ours@1", 2)
    path, body = engine.got[-1]
    assert (path, body["model"], body["input"]) == ("/v1/embeddings", "theirs", ["a", "b"])


def test_an_engine_without_them_is_404_and_its_refusals_are_passed_on(client: openai.OpenAI, engine: Embedder) -> None:
    engine.says = 501, {"error": {"message": "start it with --embeddings"}}
    with pytest.raises(openai.NotFoundError, match="gives no embeddings"):
        client.embeddings.create(model="ours", input="a")
    engine.says = 422, {"error": {"message": "too many dimensions"}}
    with pytest.raises(openai.BadRequestError, match="too many dimensions"):
        client.embeddings.create(model="ours", input="a", dimensions=9)
    for nonsense in (b"<html>", {"data": "none"}, {"error": "text"}):
        engine.says = 200, nonsense
        with pytest.raises(openai.InternalServerError) as failed:
            client.embeddings.create(model="ours", input="a")
        assert failed.value.status_code == 502
    with pytest.raises(openai.BadRequestError, match="input"):
        client.embeddings.create(model="ours", input=[])

"""The routes of files and batches, as OpenAI's client asks them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from potstill.records import Json
from potstill.serving.authenticate import caller, identify
from potstill.serving.batches.runner import Batches, batch_body, file_body, of
from potstill.serving.batches.store import new_id
from potstill.serving.batches.upload import boundary_of, read_form
from potstill.serving.chat_request import BatchRequest
from potstill.serving.errors import RequestRefused
from potstill.serving.http import Http, too_large
from potstill.serving.server import Server
from potstill.serving.validate_input import read_json, shaped

_PIECE = 1 << 18
_AROUND = 65_536  # bytes of a form besides the file in it
JSON_LINES = (b"content-type", b"application/jsonl")


def _who(server: Server, http: Http) -> tuple[Batches, str]:
    """The batches, and whose files are meant; raises RequestRefused 401 or 404."""
    return of(server), caller(http, server.keys, "batch")


async def upload(server: Server, http: Http) -> None:
    """POST /v1/files: the form goes to the disk as it comes, never whole through memory."""
    batches, owner = _who(server, http)
    settings, store = batches.settings, batches.store
    boundary = boundary_of(http.header(b"content-type"))
    file_id = new_id("file-")
    form, content = store.folder / f"{file_id}.form", store.folder / f"{file_id}.part"
    try:
        await _write_all(form, http.pieces(settings.max_file_bytes + _AROUND))
        fields, name = await asyncio.to_thread(read_form, form, boundary, content)
        if name is None:
            raise RequestRefused(400, "file: missing; send it as the part `file` of the form", param="file")
        if fields.get("purpose") != "batch":
            found = fields.get("purpose", "")[:40]
            raise RequestRefused(400, f"purpose: found {found!r}, expected 'batch'", param="purpose")
        size = content.stat().st_size
        if size > settings.max_file_bytes:
            raise too_large(settings.max_file_bytes)
        body = file_body(file_id, size, name, "batch", settings.keep_days * 86400)
        await asyncio.to_thread(store.add_file, owner, body, content, settings.max_files, settings.max_stored_bytes)
    finally:
        form.unlink(missing_ok=True)
        content.unlink(missing_ok=True)
    await http.respond_json(body)


async def _write_all(to: Path, pieces: AsyncIterator[bytes]) -> None:
    with to.open("wb") as stream:
        waiting = bytearray()
        async for piece in pieces:
            waiting += piece
            if len(waiting) >= _PIECE:
                await asyncio.to_thread(stream.write, bytes(waiting))
                waiting.clear()
        await asyncio.to_thread(stream.write, bytes(waiting))


async def list_files(server: Server, http: Http) -> None:
    await _list(server, http, "files", 10_000)


async def list_batches(server: Server, http: Http) -> None:
    await _list(server, http, "batches", 100)


async def _list(server: Server, http: Http, table: str, most: int) -> None:
    batches, owner = _who(server, http)
    query = http.query()
    wanted = query.get("limit", "20" if table == "batches" else str(most))
    if not wanted.isdecimal() or len(wanted) > 5 or not 1 <= int(wanted) <= most:
        raise RequestRefused(400, f"limit: found {wanted[:20]!r}, expected 1 to {most:,}", param="limit")
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise RequestRefused(400, f"order: found {order[:20]!r}, expected asc or desc", param="order")
    limit = int(wanted)
    store = batches.store
    found = await asyncio.to_thread(store.listed, table, owner, query.get("after") or None, limit, order == "asc")
    page = found[:limit]
    if query.get("purpose"):
        page = [each for each in page if each.get("purpose") == query["purpose"]]
    await http.respond_json(
        {
            "object": "list", "data": page, "has_more": len(found) > limit,
            "first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None,
        }
    )  # fmt: skip


async def get_file(server: Server, http: Http) -> None:
    batches, owner = _who(server, http)
    await http.respond_json(await asyncio.to_thread(batches.store.file, owner, http.segment(3)))


async def delete_file(server: Server, http: Http) -> None:
    batches, owner = _who(server, http)
    file_id = http.segment(3)
    await asyncio.to_thread(batches.store.delete_file, owner, file_id)
    await http.respond_json({"id": file_id, "object": "file", "deleted": True})


async def get_content(server: Server, http: Http) -> None:
    """The bytes of a file, read as the client takes them."""
    batches, owner = _who(server, http)
    body = await asyncio.to_thread(batches.store.file, owner, http.segment(3))
    with batches.store.path(body["id"]).open("rb") as stream:
        await http.begin(200, [JSON_LINES, (b"content-length", str(body["bytes"]).encode())])
        while piece := await asyncio.to_thread(stream.read, _PIECE):
            await http.write(piece)
        await http.end()


async def create_batch(server: Server, http: Http) -> None:
    batches, owner = _who(server, http)
    asked: Json = await read_json(http, server.settings.max_body_bytes, server.settings.input.max_depth)
    shaped(BatchRequest, asked)
    await asyncio.to_thread(batches.store.file, owner, asked["input_file_id"])
    body = batch_body(asked, batches.settings.window_h * 3600)
    key = identify(http, server.keys, "batch")
    who = {"key": key.name, "tenant": key.tenant, "hash": key.hash} if key is not None else {}
    await asyncio.to_thread(batches.store.add_batch, owner, body, who)
    batches.news.set()
    await http.respond_json(body)


async def get_batch(server: Server, http: Http) -> None:
    batches, owner = _who(server, http)
    await http.respond_json(await asyncio.to_thread(batches.store.batch, owner, http.segment(3)))


async def cancel_batch(server: Server, http: Http) -> None:
    batches, owner = _who(server, http)
    body = await asyncio.to_thread(batches.store.cancel, owner, http.segment(3))
    batches.news.set()
    await http.respond_json(body)


ROUTES = {
    ("POST", "/v1/files"): upload,
    ("GET", "/v1/files"): list_files,
    ("GET", "/v1/files/*"): get_file,
    ("DELETE", "/v1/files/*"): delete_file,
    ("GET", "/v1/files/*/content"): get_content,
    ("POST", "/v1/batches"): create_batch,
    ("GET", "/v1/batches"): list_batches,
    ("GET", "/v1/batches/*"): get_batch,
    ("POST", "/v1/batches/*/cancel"): cancel_batch,
}

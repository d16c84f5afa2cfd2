"""Asking by /v1/batches: cheaper, within a day, and never submitted twice.

A batch is first a record in the ledger, committed together with the reservations of all its requests. Its key (the hash
of its requests, and how often just these were submitted before) goes along as `metadata.potstill_key`, so that a batch
whose submission a kill interrupted is found again by listing, or known never to have been made.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from potstill.errors import PotstillError
from potstill.progress import Progress, say
from potstill.records import Json, canonical_json

from .ask import BACKOFF_S, OUT_OF_BUDGET, Tally, open_client
from .ledger import PICO, Ledger, Paid, lose, release, settle
from .request import Ask, paid_for
from .settings import Relabel, Teacher

if TYPE_CHECKING:
    import httpx

# OpenAI's limits for one batch: 50,000 requests in 200 MB.
MOST_REQUESTS, MOST_BYTES = 50_000, 190_000_000
ENDED = ("completed", "failed", "expired", "cancelled")
CLOCKS_APART_S = 3600.0


@dataclass(slots=True)
class Batch:
    """A submission as the ledger knows it."""

    key: str
    made_at: float
    remote_id: str | None


def collect_batches(asks: Sequence[Ask], teacher: Teacher, settings: Relabel, ledger: Ledger) -> Tally:
    """Settle those of these requests that batches hold already, from an earlier run or another process."""
    with open_client(teacher, settings) as client:
        return _Batches(client, asks, teacher, settings, ledger).collect_known()


def ask_in_batches(asks: Sequence[Ask], teacher: Teacher, settings: Relabel, ledger: Ledger) -> Tally:
    """Settle these requests, those of batches already on their way first."""
    with open_client(teacher, settings) as client:
        return _Batches(client, asks, teacher, settings, ledger).run()


class _Batches:
    def __init__(
        self, client: httpx.Client, asks: Sequence[Ask], teacher: Teacher, settings: Relabel, ledger: Ledger
    ) -> None:
        self._client, self._teacher, self._settings, self._ledger = client, teacher, settings, ledger
        self._asks = {ask.key: ask for ask in asks}
        self._url = teacher.base_url.rstrip("/")
        self._tally = Tally()

    def collect_known(self) -> Tally:
        self._collect(self._known())
        return self._tally

    def run(self) -> Tally:
        self.collect_known()
        made: list[Batch] = []
        for part in parts([ask for ask in self._asks.values() if self._ledger.answer(ask.key) is None]):
            batch, chosen = self._plan(part)
            if chosen:
                batch.remote_id = self._submit(batch, chosen)
                made.append(batch)
        self._collect(made)
        # Requests that another process put into a batch meanwhile.
        return self.collect_known()

    def _known(self) -> list[Batch]:
        """Open batches that hold any of our requests; what was never submitted is undone."""
        query = (
            "SELECT key, made_at, remote_id, owner FROM batch WHERE state = 'open' AND base_url = ? ORDER BY made_at"
        )
        held = {batch for key, batch in self._ledger.in_batches() if key in self._asks}
        found = []
        for key, made_at, remote_id, owner in self._ledger.read(query, self._url):
            if key not in held:
                continue
            batch = Batch(key, made_at, remote_id)
            if remote_id is None:
                batch.remote_id = self._await_owner(batch, owner)
            if batch.remote_id is not None:
                found.append(batch)
        return found

    def _await_owner(self, batch: Batch, owner: str | None) -> str | None:
        """The id of a batch that some process was about to submit; None, and its requests free, if it never did."""
        while self._ledger.alive(owner) and owner != self._ledger.owner:
            time.sleep(self._settings.batch_poll_s)
            [(remote_id,)] = self._ledger.read("SELECT remote_id FROM batch WHERE key = ?", batch.key)
            if remote_id is not None:
                return str(remote_id)
        found = self._find(batch)
        if found is None:
            # A submission that was under way when its process died may appear a little later.
            time.sleep(min(5.0, self._settings.batch_poll_s))
            found = self._find(batch)
        if found is not None:
            self._remember(batch, found)
            return found
        with self._ledger.transaction() as db:
            db.execute("UPDATE request SET batch = NULL, reserved = 0 WHERE batch = ?", (batch.key,))
            db.execute("DELETE FROM batch WHERE key = ?", (batch.key,))
        return None

    def _plan(self, part: Sequence[Ask]) -> tuple[Batch, list[Ask]]:
        """Reserve what the budget allows and commit the record of the batch with it."""
        digest = hashlib.sha256(canonical_json(sorted(ask.key for ask in part)).encode()).hexdigest()[:48]
        chosen = []
        with self._ledger.transaction() as db:
            earlier = db.execute("SELECT count(*) FROM batch WHERE key LIKE ?", (f"{digest}-%",)).fetchone()[0]
            batch = Batch(f"{digest}-{earlier}", time.time(), None)
            for ask in part:
                honoured = self._teacher.honours_idempotency_keys
                found = self._ledger.reserve_in(db, ask.key, ask.worst, honoured, batch.key)
                if found == "reserved":
                    chosen.append(ask)
                elif found == "refused":
                    self._tally.unsettled[ask.key] = OUT_OF_BUDGET
            if chosen:
                values = (batch.key, self._url, batch.made_at, self._ledger.owner)
                db.execute("INSERT INTO batch (key, base_url, made_at, owner) VALUES (?, ?, ?, ?)", values)
        return batch, chosen

    def _submit(self, batch: Batch, asks: Sequence[Ask]) -> str:
        """Upload and create; after an unclear failure look for the batch before making another."""
        lines = "".join(canonical_json(_line(ask)) + "\n" for ask in asks).encode()
        file = {"file": (f"{batch.key}.jsonl", lines)}
        uploaded = self._call("POST", "/files", files=file, data={"purpose": "batch"}).json()
        body = {
            "input_file_id": uploaded["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {"potstill_key": batch.key},
        }
        self._tally.sent += len(asks)
        try:
            headers = {"Idempotency-Key": batch.key}
            made = str(self._call("POST", "/batches", attempts=1, json=body, headers=headers).json()["id"])
        except PotstillError:
            found = self._find(batch)
            if found is None:
                raise
            made = found
        self._remember(batch, made)
        say(f"relabel: batch {made} of {len(asks):,} requests submitted")
        return made

    def _remember(self, batch: Batch, remote_id: str) -> None:
        with self._ledger.transaction() as db:
            db.execute("UPDATE batch SET remote_id = ?, owner = NULL WHERE key = ?", (remote_id, batch.key))

    def _find(self, batch: Batch) -> str | None:
        """The id of the batch with our metadata, among those made since the record; listings are newest first."""
        query: Json = {"limit": 100}
        while True:
            page = self._call("GET", "/batches", params=query).json()
            for each in page["data"]:
                if (each.get("metadata") or {}).get("potstill_key") == batch.key:
                    return str(each["id"])
            last = page["data"][-1] if page["data"] else None
            if not page.get("has_more") or last is None or last["created_at"] < batch.made_at - CLOCKS_APART_S:
                return None
            query["after"] = last["id"]

    def _collect(self, batches: Sequence[Batch]) -> None:
        """Wait for the batches and settle each as soon as it has ended."""
        waiting = list(batches)
        with Progress("relabel in batches", len(waiting) or None, "batches") as progress:
            while waiting:
                for batch in list(waiting):
                    state = self._call("GET", f"/batches/{batch.remote_id}").json()
                    if state["status"] in ENDED:
                        self._settle(batch, state)
                        waiting.remove(batch)
                        progress.advance(note=f"${self._tally.paid / PICO:.4f}")
                if waiting:
                    progress.advance(0)
                    time.sleep(self._settings.batch_poll_s)

    def _settle(self, batch: Batch, state: Json) -> None:
        """Keep every answer in one transaction, and free or lose the requests that got none."""
        lines = [line for name in ("output_file_id", "error_file_id") for line in self._download(state.get(name))]
        faults = "; ".join(str(each.get("message")) for each in ((state.get("errors") or {}).get("data") or []))
        with self._ledger.transaction() as db:
            held = dict(db.execute("SELECT key, reserved FROM request WHERE batch = ?", (batch.key,)).fetchall())
            for key, status, body, reason in lines:
                if key not in held:
                    continue
                paid = self._paid(key, held[key], status, body)
                if paid is None:
                    release(db, key)
                    self._failed(key, reason)
                else:
                    settle(db, key, paid)
                    self._tally.paid += paid.cost
                del held[key]
            for key in held:
                # A batch that failed was never begun; of any other, what has no line may have been billed.
                (release if state["status"] == "failed" else lose)(db, key)
                self._failed(key, f"batch {state['status']}" + (f": {faults[:200]}" if faults else ""))
            db.execute("UPDATE batch SET state = ? WHERE key = ?", (state["status"], batch.key))

    def _paid(self, key: str, worst: int, status: int, body: str) -> Paid | None:
        return paid_for(Ask(key, {}, worst, 0), self._teacher, self._settings.batch_discount, status, body)

    def _failed(self, key: str, reason: str) -> None:
        self._tally.failures[reason.partition(":")[0]] += 1
        if key in self._asks:
            self._tally.unsettled[key] = reason

    def _download(self, file_id: str | None) -> Iterator[tuple[str, int, str, str]]:
        """Key, status, body and reason of every readable line."""
        if file_id is None:
            return
        for line in self._call("GET", f"/files/{file_id}/content").text.splitlines():
            try:
                found = json.loads(line)
                response = found.get("response") or {}
                status, body = int(response.get("status_code") or 0), response.get("body")
                reason = f"HTTP {status}" if status else str((found.get("error") or {}).get("code") or "no answer")
                yield str(found["custom_id"]), status, body if isinstance(body, str) else json.dumps(body), reason
            except (ValueError, LookupError, TypeError, AttributeError):
                self._tally.failures["unreadable line of a batch"] += 1

    def _call(self, method: str, path: str, attempts: int | None = None, **what: Any) -> httpx.Response:
        """A call that costs nothing, tried again while the fault may pass; raises PotstillError when it does not."""
        import httpx

        attempts = attempts or self._settings.attempts
        for attempt in range(1, attempts + 1):
            try:
                response = self._client.request(method, self._url + path, **what)
            except httpx.RequestError as fault:
                problem = f"{type(fault).__name__}: {fault}"
            else:
                if response.is_success:
                    return response
                problem = f"HTTP {response.status_code}: {response.text[:200]}"
                if response.status_code not in (408, 409, 429) and response.status_code < 500:
                    break
            if attempt < attempts:
                time.sleep(random.uniform(0, min(BACKOFF_S * 2**attempt, 60)))
        raise PotstillError(f"{method} {self._url}{path}: {problem}; what was submitted is remembered: run again later")


def _line(ask: Ask) -> Json:
    return {"custom_id": ask.key, "method": "POST", "url": "/v1/chat/completions", "body": ask.body}


def parts(asks: Iterable[Ask]) -> Iterator[list[Ask]]:
    """Cut where one batch may hold no more."""
    part: list[Ask] = []
    size = 0
    for ask in asks:
        length = len(canonical_json(_line(ask)).encode()) + 1
        if part and (len(part) == MOST_REQUESTS or size + length > MOST_BYTES):
            yield part
            part, size = [], 0
        part.append(ask)
        size += length
    if part:
        yield part

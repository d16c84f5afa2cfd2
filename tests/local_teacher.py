"""A teacher on 127.0.0.1 that speaks chat completions, files and batches, and keeps a bill of all that it generated.

Its answers follow from the request's key (the Idempotency-Key header, or custom_id in a batch), so that runs can be
compared. A key seen before gets the same answer without another line on the bill, unless keys are ignored. As in life,
a client that goes away while an answer is generated is billed all the same.

Run: python -m tests.local_teacher --bill FILE [--ignore-keys] [--delay S] [--faults]   prints its base_url
"""

from __future__ import annotations

import argparse
import email
import hashlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Json = dict[str, Any]
LABELS = ("refund", "delivery", "complaint", "praise")
PRICE = {"input": 2.0, "output": 8.0}  # dollars per million tokens


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one send. `reset` closes the connection after the work is done and billed."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    text: str | None = None
    billed: bool = False
    slow_s: float = 0.0
    reset: bool = False


def number(*words: object) -> int:
    return int(hashlib.sha256(repr(words).encode()).hexdigest()[:12], 16)


def scripted_reply(body: Json, key: str) -> str:
    """A label that most samples of a prompt agree on, sometimes no label at all; a letter for a judge."""
    messages = body["messages"]
    if messages[0]["content"].startswith("You are given a request to an assistant and several"):
        return "AB"[number("judge", key) % 2]
    draw = number("draw", key) % 100
    right = LABELS[number("right", messages[-1]["content"]) % len(LABELS)]
    if draw < 70:
        return right
    return LABELS[draw % len(LABELS)] if draw < 95 else "I cannot say."


def scripted_fault(key: str, nth: int) -> Fault | None:
    """Some keys' first send goes wrong in a way that passes; a few keys always get a page that is no JSON."""
    draw = number("fault", key) % 100
    if draw < 2:
        return Fault(text="<html>gateway</html>", billed=True)
    if nth == 1 and draw < 6:
        return Fault(429, {"Retry-After": "0.02"}, "slow down")
    if nth == 1 and draw < 9:
        return Fault(500, text="oops")
    return Fault(reset=True) if nth == 1 and draw < 11 else None


class LocalTeacher:
    """The server; `url` is its base_url. `seen` holds every request's path and headers."""

    def __init__(
        self,
        bill: Path,
        *,
        reply: Callable[[Json, str], str] = scripted_reply,
        fault: Callable[[str, int], Fault | None] = lambda key, nth: None,
        ignore_keys: bool = False,
        delay_s: float = 0.0,
        batch_delay_s: float = 0.0,
    ) -> None:
        self.reply, self.fault = reply, fault
        self.ignore_keys, self.delay_s, self.batch_delay_s = ignore_keys, delay_s, batch_delay_s
        self.seen: list[tuple[str, dict[str, str], Json]] = []
        self.sends: Counter[str] = Counter()
        self.files: dict[str, str] = {}
        self.batches: dict[str, Json] = {}
        self.batch_keys: dict[str, str] = {}
        self._bill = os.open(bill, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
        self._done: dict[str, Json] = {}
        self._lock = threading.Lock()
        self._key_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"teacher": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def start(self) -> LocalTeacher:
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def serve(self) -> None:
        self._server.serve_forever(0.02)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        os.close(self._bill)

    def lock_of(self, key: str) -> threading.Lock:
        with self._lock:
            return self._key_locks[key]

    def generate(self, key: str, body: Json, factor: float = 1.0) -> Json:
        """One completion, on the bill unless its key was paid before."""
        with threading.Lock() if self.ignore_keys else self.lock_of(key):
            if not self.ignore_keys and key in self._done:
                return self._done[key]
            if self.delay_s:
                time.sleep(self.delay_s)
            text = self.reply(body, key)
            usage = {
                "prompt_tokens": sum(len(str(each["content"])) for each in body["messages"]) // 4,
                "completion_tokens": len(text) // 4 + 1,
            }
            picodollars = usage["prompt_tokens"] * PRICE["input"] + usage["completion_tokens"] * PRICE["output"]
            self._write_bill(key, picodollars * factor / 1e6)
            message = {"role": "assistant", "content": text}
            answer = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
            self._done[key] = answer
            return answer

    def _write_bill(self, key: str, usd: float) -> None:
        os.write(self._bill, (json.dumps({"key": key, "usd": usd}) + "\n").encode())

    def make_batch(self, key: str, body: Json) -> Json:
        """Everything in it is generated (and billed) at once, the outcome shown after `batch_delay_s`."""
        with self.lock_of(f"batch {key}"):
            if not self.ignore_keys and key in self.batch_keys:
                return self.batches[self.batch_keys[key]]
            good, bad = [], []
            for line in self.files[body["input_file_id"]].splitlines():
                each = json.loads(line)
                identity = each["custom_id"]
                fault = self.fault(identity, 1)
                if fault is not None and fault.status >= 300:
                    response = {"status_code": fault.status, "body": {"error": {"message": fault.text}}}
                    bad.append({"custom_id": identity, "response": response, "error": None})
                else:
                    response = {"status_code": 200, "body": self.generate(identity, each["body"], 0.5)}
                    good.append({"custom_id": identity, "response": response, "error": None})
            with self._lock:
                made = f"batch_{len(self.batches)}"
                self.batches[made] = {
                    "id": made,
                    "created_at": int(time.time()),
                    "ready_at": time.time() + self.batch_delay_s,
                    "metadata": body.get("metadata"),
                    "output_file_id": self.keep_file("\n".join(json.dumps(each) for each in good)),
                    "error_file_id": self.keep_file("\n".join(json.dumps(each) for each in bad)) if bad else None,
                }
                self.batch_keys[key] = made
            return self.batches[made]

    def keep_file(self, text: str) -> str:
        name = f"file-{len(self.files)}"
        self.files[name] = text
        return name

    def shown(self, batch: Json) -> Json:
        if time.time() >= batch["ready_at"]:
            return batch | {"status": batch.get("status", "completed")}
        return batch | {"status": "in_progress", "output_file_id": None, "error_file_id": None}


class _Handler(BaseHTTPRequestHandler):
    teacher: LocalTeacher
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/files":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            parts = email.message_from_bytes(head + raw).get_payload()
            [text] = [part.get_payload(decode=True).decode() for part in parts if part.get_filename()]
            return self._send(200, {"id": self.teacher.keep_file(text)})
        body = json.loads(raw)
        key = self.headers.get("Idempotency-Key") or ""
        self.teacher.seen.append((self.path, dict(self.headers), body))
        if self.path == "/v1/batches":
            return self._send(200, self.teacher.shown(self.teacher.make_batch(key, body)))
        with self.teacher._lock:
            self.teacher.sends[key] += 1
            nth = self.teacher.sends[key]
        fault = self.teacher.fault(key, nth)
        if fault is None:
            return self._send(200, self.teacher.generate(key, body))
        return self._fail(fault, key, body)

    def _fail(self, fault: Fault, key: str, body: Json) -> None:
        time.sleep(fault.slow_s)
        answer = self.teacher.generate(key, body) if fault.billed or fault.reset or fault.status < 300 else {}
        if fault.reset:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault.text is not None:
            self._send(fault.status, fault.text, fault.headers)
        else:
            self._send(fault.status, answer, fault.headers)

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        teacher = self.teacher
        if found := re.fullmatch(r"/v1/files/([^/]+)/content", path):
            self._send(200, teacher.files[found[1]])
        elif found := re.fullmatch(r"/v1/batches/([^/]+)", path):
            self._send(200, teacher.shown(teacher.batches[found[1]]))
        else:
            newest = [teacher.shown(each) for each in reversed(list(teacher.batches.values()))]
            after = dict(pair.split("=") for pair in query.split("&") if pair).get("after")
            start = next((at + 1 for at, each in enumerate(newest) if each["id"] == after), 0)
            self._send(200, {"data": newest[start : start + 2], "has_more": start + 2 < len(newest)})

    def _send(self, status: int, answer: Json | str, headers: dict[str, str] | None = None) -> None:
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, ValueError, OSError):
            self.close_connection = True  # the client was killed, or a reset was asked for

    def log_message(self, *_: object) -> None:
        """Silent: a test's output is its own."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bill", type=Path, required=True)
    parser.add_argument("--ignore-keys", action="store_true")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--batch-delay", type=float, default=0.0)
    parser.add_argument("--faults", action="store_true")
    given = parser.parse_args()
    fault = scripted_fault if given.faults else lambda key, nth: None
    teacher = LocalTeacher(
        given.bill,
        ignore_keys=given.ignore_keys,
        delay_s=given.delay,
        batch_delay_s=given.batch_delay,
        fault=fault,
    ).start()
    print(teacher.url, flush=True)
    sys.stdin.read()  # until the test that started it closes the pipe or dies


if __name__ == "__main__":
    main()

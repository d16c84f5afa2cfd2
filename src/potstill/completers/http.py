"""Answers from any server that speaks OpenAI's chat API, several requests at a time, in the order asked."""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx

from potstill.completers import Completion, CompletionRequest
from potstill.completers.openai_form import Dialect, chat_body, failed, raw_body, read_chat, read_raw
from potstill.errors import RecipeError
from potstill.records import Json

LONGEST_PAUSE_S = 60.0


class HttpCompleter:
    """`base_url` ends where the OpenAI client's does (`https://host/v1`); the key is read from `api_key_env`.

    429, 408, 5xx, timeouts and broken connections are tried again, `attempts` times in all, after a pause drawn between
    nothing and a doubling bound (or the server's Retry-After). Everything else is an answer: a Completion with `error`.
    `latency_ms` is the wall time of the attempt that succeeded.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str | None = None,
        concurrency: int = 8,
        timeout_s: float = 120.0,
        attempts: int = 5,
        backoff_s: float = 0.5,
        dialect: Dialect = "openai",
        name: str | None = None,
    ) -> None:
        headers = {}
        if api_key_env is not None:
            key = os.environ.get(api_key_env)
            if not key:
                raise RecipeError(
                    [f"{api_key_env}: environment variable is not set, expected the API key of {base_url}; export it"]
                )
            headers["Authorization"] = f"Bearer {key}"
        self.name = name or model
        self._model = model
        self._base_url = base_url.rstrip("/")
        self._concurrency = concurrency
        self._attempts = attempts
        self._backoff_s = backoff_s
        self._dialect: Dialect = dialect
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        self._client = httpx.Client(headers=headers, timeout=timeout_s, limits=limits)

    def close(self) -> None:
        """Close the connections; safe to call twice."""
        self._client.close()

    def complete(self, requests: Sequence[CompletionRequest]) -> Iterator[Completion]:
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="completer")
        waiting: deque[Future[Completion]] = deque()
        try:
            for request in requests:
                waiting.append(pool.submit(self._answer, request))
                # A window, so that a batch of a million holds thousands of answers at most, not all of them.
                while len(waiting) >= 64 * self._concurrency or (waiting and waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, request: CompletionRequest) -> Completion:
        try:
            if self._dialect == "llama_cpp" and request.tools and request.constraint is not None:
                return self._answer_raw(request)
            body = chat_body(request, self._model, self._dialect)
            data, latency_ms = self._post(f"{self._base_url}/chat/completions", body)
        except (httpx.HTTPError, ValueError) as fault:
            return failed(request, _reason(fault))
        return read_chat(request, data, latency_ms)

    def _answer_raw(self, request: CompletionRequest) -> Completion:
        """llama.cpp refuses a grammar beside tools in a chat, so: render first, then complete the text."""
        root = self._base_url.removesuffix("/v1")
        rendered, _ = self._post(f"{root}/apply-template", {"messages": request.messages, "tools": request.tools})
        data, latency_ms = self._post(f"{root}/completion", raw_body(request, str(rendered["prompt"])))
        return read_raw(request, data, latency_ms)

    def _post(self, url: str, body: Json) -> tuple[Any, float]:
        """The JSON answer and its wall time in ms; raises httpx.HTTPError once trying again is of no use."""
        for attempt in range(1, self._attempts + 1):
            start = time.perf_counter()
            try:
                response = self._client.post(url, json=body)
                response.raise_for_status()
                return response.json(), (time.perf_counter() - start) * 1000
            except (httpx.HTTPStatusError, httpx.TransportError) as fault:
                if attempt == self._attempts or not _passing(fault):
                    raise
                time.sleep(self._pause_s(attempt, fault))
        raise AssertionError("attempts is at least 1")

    def _pause_s(self, attempt: int, fault: httpx.HTTPError) -> float:
        """Full jitter (Brooker, "Exponential Backoff and Jitter", AWS 2015), unless the server names a time."""
        if isinstance(fault, httpx.HTTPStatusError):
            asked = fault.response.headers.get("retry-after", "")
            if asked.replace(".", "", 1).isdecimal():
                return min(float(asked), LONGEST_PAUSE_S)
        return random.uniform(0, min(self._backoff_s * 2**attempt, LONGEST_PAUSE_S))


def _passing(fault: httpx.HTTPError) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(fault, httpx.HTTPStatusError):
        return fault.response.status_code in (408, 429) or fault.response.status_code >= 500
    return isinstance(fault, httpx.TransportError) and not isinstance(fault, httpx.UnsupportedProtocol)


def _reason(fault: Exception) -> str:
    if isinstance(fault, httpx.HTTPStatusError):
        return f"HTTP {fault.response.status_code}: {fault.response.text[:300]}"
    return f"{type(fault).__name__}: {fault}"

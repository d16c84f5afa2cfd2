"""What can answer behind the server: an engine of our own (`supervise.py`), or an address that speaks OpenAI's API."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Literal, Protocol

from potstill.records import Json
from potstill.serving.upstream import Upstream

Dialect = Literal["llama_cpp", "openai", "vllm"]
VLLM_MODEL = "student"  # what a vLLM of ours calls its model


class Backend(Protocol):
    """One place that answers chat completions. `upstream` holds its connections in the running event loop."""

    dialect: Dialect
    restarts: int

    @property
    def ready(self) -> bool: ...

    @property
    def upstream(self) -> Upstream: ...

    def hang_up(self) -> None:
        """Close the connections; the next request opens new ones."""

    async def watch(self) -> None:
        """Keep it well until cancelled."""

    def stop(self) -> None:
        """End it, where it is ours."""


class Distant:
    """A backend that this process only talks to: never started, looked after or stopped here."""

    dialect: Dialect = "openai"
    restarts = 0
    ready = True

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self.url, self.headers = url, dict(headers or {})
        self._upstream: Upstream | None = None

    @property
    def upstream(self) -> Upstream:
        if self._upstream is None:
            self._upstream = Upstream(self.url, self.headers)
        return self._upstream

    def hang_up(self) -> None:
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None

    async def watch(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.hang_up()

    def stop(self) -> None: ...


class Address(Distant):
    """Somebody else's server at `url` (with its /v1), asked for `model`."""

    def __init__(self, url: str, model: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(url.rstrip("/").removesuffix("/v1"), headers)
        self.model = model
        Upstream(self.url, self.headers).close()  # a wrong address is refused here, not at the first request


class Borrowed(Distant):
    """An engine that another process of this server looks after; `told` keeps it up to date here."""

    def __init__(self, dialect: Dialect, url: str, ready: bool, restarts: int = 0) -> None:
        super().__init__(url)
        self.dialect, self.ready, self.restarts = dialect, ready, restarts

    def told(self, url: str, ready: bool, restarts: int) -> None:
        if url != self.url:
            self.hang_up()
        self.url, self.ready, self.restarts = url, ready, restarts


# What only llama.cpp's server understands; another address would refuse it.
LLAMA_ONLY = ("cache_prompt", "grammar", "json_schema")


def body_for(backend: Backend, upstream: Json) -> Json:
    """The request in the words of the backend: a schema as `response_format`, the address's own name of the model.

    A grammar goes to llama.cpp and to vLLM (`structured_outputs`, since 0.12 the only field for it); OpenAI has none.
    """
    if backend.dialect == "llama_cpp":
        # With tools it takes no grammar but ours, unless it is told not to look for calls itself.
        return upstream | {"tool_choice": "none"} if "grammar" in upstream and "tools" in upstream else upstream
    body = {key: value for key, value in upstream.items() if key not in LLAMA_ONLY}
    if "json_schema" in upstream:
        schema = {"name": "answer", "schema": upstream["json_schema"], "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if isinstance(backend, Address):
        body["model"] = backend.model
    elif backend.dialect == "vllm":
        body["model"] = VLLM_MODEL
        if "grammar" in upstream:
            body["structured_outputs"] = {"grammar": upstream["grammar"]}
    return body

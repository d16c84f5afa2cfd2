"""Refusals in the form that OpenAI's clients understand: a status and `{"error": {message, type, param, code}}`."""

from __future__ import annotations

from potstill.errors import PotstillError
from potstill.records import Json


class RequestRefused(PotstillError):
    """One request cannot be answered; carries what the client is told. Never fatal to the server."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.retry_after_s = retry_after_s

    def body(self) -> Json:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def engine_unavailable(detail: str) -> RequestRefused:
    """503: the engine is away and is being restarted."""
    message = f"{detail}; it is being restarted, try again"
    return RequestRefused(503, message, kind="server_error", code="engine_unavailable", retry_after_s=1)

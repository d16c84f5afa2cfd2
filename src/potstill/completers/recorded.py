"""Answers that were given before: the recorded teacher, looked up by request id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from potstill.completers import Completion, CompletionRequest
from potstill.completers.openai_form import failed


class RecordedCompleter:
    """Gives each request the completion recorded under its id, latency and usage as recorded."""

    def __init__(self, completions: Mapping[str, Completion], *, name: str = "recorded") -> None:
        self.name = name
        self._completions = completions

    def complete(self, requests: Sequence[CompletionRequest]) -> Iterator[Completion]:
        for request in requests:
            yield self._completions.get(request.id) or failed(
                request, f"{request.id}: not among the {len(self._completions)} recorded answers"
            )

    def close(self) -> None:
        """Nothing to let go."""

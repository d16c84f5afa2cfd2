"""Answers from a GGUF through the engine that would serve it: constrained while decoding, prefix cached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from potstill.completers import Completion, CompletionRequest
from potstill.completers.grammar import choices_grammar
from potstill.completers.http import HttpCompleter
from potstill.engine import Engine

__all__ = ["LlamaCppCompleter", "choices_grammar"]


class LlamaCppCompleter:
    """Starts an engine for `model`, asks it `parallel` requests at a time, ends it on `close`.

    Raises EngineFailure when the engine does not start. When it dies later, the requests that it leaves behind carry
    its last words as their `error`. With `parallel` above 1, `latency_ms` includes waiting for the other slots.
    """

    def __init__(
        self,
        model: Path,
        *,
        name: str | None = None,
        parallel: int = 4,
        context: int = 2048,
        threads: int | None = None,
        timeout_s: float = 300.0,
        log: Path | None = None,
    ) -> None:
        self.name = name or model.stem
        self.engine = Engine.start(model, parallel=parallel, context=context, threads=threads, log=log)
        # Our own child on loopback: a failure is a finding about the artifact, so nothing is tried again.
        self._http = HttpCompleter(
            f"{self.engine.url}/v1",
            self.name,
            concurrency=parallel,
            timeout_s=timeout_s,
            attempts=1,
            dialect="llama_cpp",
        )

    def complete(self, requests: Sequence[CompletionRequest]) -> Iterator[Completion]:
        for completion in self._http.complete(requests):
            if completion.error is not None and not self.engine.alive():
                lost = (
                    f"the engine died ({completion.error}); the end of its log: {self.engine.log_tail() or 'nothing'}"
                )
                yield replace(completion, error=lost)
            else:
                yield completion

    def close(self) -> None:
        self._http.close()
        self.engine.stop()

    def __enter__(self) -> LlamaCppCompleter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

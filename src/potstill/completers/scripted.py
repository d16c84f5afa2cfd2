"""A fake for tests: answers come from a function or a list, and it fails where it is told to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from potstill.completers import Completion, CompletionRequest
from potstill.completers.openai_form import failed
from potstill.records import Message

Answer = str | Message


class ScriptedCompleter:
    """`script` gives an answer (text or assistant message) for a request, or is the list of answers in order.

    `fails` holds the ids of requests that yield an error instead; an exception raised by the script, or a list at its
    end, yields an error too. `asked` keeps every request, so that a test can look at the prompts.
    """

    def __init__(
        self,
        script: Callable[[CompletionRequest], Answer] | Sequence[Answer],
        *,
        fails: Collection[str] = (),
        latency_ms: float = 1.0,
        name: str = "scripted",
    ) -> None:
        self.name = name
        self.asked: list[CompletionRequest] = []
        self._script = script
        self._fails = frozenset(fails)
        self._latency_ms = latency_ms

    def complete(self, requests: Sequence[CompletionRequest]) -> Iterator[Completion]:
        for request in requests:
            place = len(self.asked)
            self.asked.append(request)
            if request.id in self._fails:
                yield failed(request, f"{request.id}: told to fail")
                continue
            try:
                answer = self._script(request) if callable(self._script) else self._script[place]
            except Exception as fault:  # the protocol: one request never takes the batch down
                yield failed(request, f"{type(fault).__name__}: {fault}")
                continue
            yield self._completion(request, answer)

    def close(self) -> None:
        """Nothing to let go."""

    def _completion(self, request: CompletionRequest, answer: Answer) -> Completion:
        message: Message = {"role": "assistant", "content": answer} if isinstance(answer, str) else dict(answer)
        content = message.get("content")
        text = content if isinstance(content, str) else ""
        return Completion(
            id=request.id,
            text=text,
            finish_reason="tool_calls" if message.get("tool_calls") else "stop",
            # Words, for want of a tokenizer: a test that sums them sees a figure that moves with the text.
            prompt_tokens=sum(len(str(each.get("content") or "").split()) for each in request.messages),
            completion_tokens=len(text.split()),
            latency_ms=self._latency_ms,
            message=message,
        )

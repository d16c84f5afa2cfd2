"""Asking one judge: kept verdicts first, the rest within the budget, every send accounted for before it goes out."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from potstill.completers import Completion, CompletionRequest
from potstill.errors import PotstillError
from potstill.records import Json, Message, canonical_json
from potstill.tasks.base import Constraint

from .kept import Kept, Verdict, recorded
from .prompt import SCHEMA, key_of
from .settings import JudgeModel, JudgeSettings

if TYPE_CHECKING:
    import httpx

# Beyond a token a byte: what chat templates put around a message, and around the whole.
TOKENS_A_MESSAGE, TOKENS_A_PROMPT = 16, 64
LONGEST_PAUSE_S = 30.0
HOPELESS_IN_A_ROW = 20
_REFUSED = ("HTTP 401", "HTTP 403", "HTTP 404")


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt to a judge under its key."""

    key: str
    messages: tuple[Message, ...]

    @classmethod
    def of(cls, messages: Sequence[Message]) -> Question:
        return cls(key_of(messages), tuple(messages))


@dataclass(slots=True)
class Judge:
    """One judge and what it said: `replies` by key, `failed` with the reason, `unasked` for want of money.

    A recorded judge answers from its file; what is not in it has failed.
    """

    model: JudgeModel
    settings: JudgeSettings
    kept: Kept
    replies: dict[str, Verdict] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    unasked: set[str] = field(default_factory=set)
    _recorded: dict[str, Verdict] | None = None
    _client: httpx.Client | None = None
    _failed_in_a_row: int = 0
    _last_error: str = ""

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def usd(self) -> float:
        """What the verdicts used here cost, whenever they were paid for."""
        return sum(each.usd for each in self.replies.values())

    def ask(self, questions: Sequence[Question]) -> None:
        """Answer these questions as far as the budget goes; raises PotstillError when the judge is of no use."""
        due = {each.key: each for each in questions if each.key not in self.replies and each.key not in self.failed}
        for key in list(due):
            found = self._known(key)
            if found is not None:
                self.replies[key] = found
                del due[key]
        if self.model.recorded is not None:
            self.failed |= dict.fromkeys(due, f"not among the judgements in {self.model.recorded}")
            return
        self._opened()
        for attempt in range(self.settings.attempts):
            due = self._round(due)
            if not due:
                break
            if attempt + 1 < self.settings.attempts:
                # Full jitter (Brooker, "Exponential Backoff and Jitter", AWS 2015).
                time.sleep(random.uniform(0, min(2.0**attempt, LONGEST_PAUSE_S)))
        for key in due:
            self.failed.setdefault(key, "not asked: the judge answered nothing before it")
        if self._failed_in_a_row >= HOPELESS_IN_A_ROW:
            raise self._hopeless()

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _known(self, key: str) -> Verdict | None:
        if self.model.recorded is None:
            return self.kept.verdicts.get((self.name, self.model.model or "", key))
        if self._recorded is None:
            from pathlib import Path

            self._recorded = recorded(Path(self.model.recorded), self.name)
        return self._recorded.get(key)

    def _round(self, due: dict[str, Question]) -> dict[str, Question]:
        """Ask once; what is left may succeed later. Failures that will not pass stay in `failed`."""
        later: dict[str, Question] = {}
        waiting = list(due.values())
        with ThreadPoolExecutor(self.settings.concurrency, thread_name_prefix="judge") as pool:
            while waiting:
                batch = self._affordable(waiting)
                if not batch:
                    self.unasked |= {each.key for each in waiting}
                    break
                waiting = waiting[len(batch) :]
                asked = {pool.submit(self._post, each): each for each in batch}
                for done in as_completed(asked):
                    if self._settle(asked[done], done.result()):
                        later[asked[done].key] = asked[done]
                errors = [self.failed[each.key] for each in batch if each.key in self.failed]
                if any(each.startswith(_REFUSED) for each in errors):
                    raise self._hopeless()
                if len(errors) == len(batch):  # it answers nothing now: pause before the rest
                    later |= {each.key: each for each in waiting}
                    break
        return later

    def _affordable(self, waiting: Sequence[Question]) -> list[Question]:
        """As many as may go out together; each is written down as sent, at its worst price."""
        batch: list[Question] = []
        for question in waiting[: 4 * self.settings.concurrency]:
            worst = self._worst(question)
            # A hair of room, so that a sum of floats that meets the budget exactly is not refused.
            if self.kept.committed_usd + worst > self.settings.budget_usd + 1e-12:
                break
            self.kept.send((self.name, self.model.model or "", question.key), worst)
            batch.append(question)
        return batch

    def _worst(self, question: Question) -> float:
        """No text has more tokens than bytes, so this is a true bound."""
        size = len(canonical_json(list(question.messages)).encode()) + len(canonical_json(SCHEMA))
        return self._price(size + TOKENS_A_MESSAGE * len(question.messages) + TOKENS_A_PROMPT, self.model.max_tokens)

    def _price(self, prompt_tokens: int, completion_tokens: int) -> float:
        assert self.model.price is not None
        return (prompt_tokens * self.model.price.input + completion_tokens * self.model.price.output) / 1e6

    def _post(self, question: Question) -> Completion:
        """The judge's answer, or one with `error`; never raises for what the network or the server does."""
        import httpx

        from potstill.completers.openai_form import failed, read_chat

        request = CompletionRequest(question.key, list(question.messages), max_tokens=self.model.max_tokens)
        try:
            headers = {"Idempotency-Key": f"{self.name}-{question.key}"}
            response = self._opened().post("chat/completions", json=self._body(request), headers=headers)
            response.raise_for_status()
            data = response.json()
        except httpx.HTTPStatusError as fault:
            return failed(request, f"HTTP {fault.response.status_code}: {fault.response.text[:200]}")
        except (httpx.HTTPError, ValueError) as fault:
            return failed(request, f"{type(fault).__name__}: {fault}")
        return read_chat(request, data, 0.0)

    def _opened(self) -> httpx.Client:
        import httpx

        if self._client is None:
            key = os.environ.get(self.model.api_key_env or "", "")
            self._client = httpx.Client(
                base_url=str(self.model.base_url).rstrip("/") + "/",
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=self.settings.timeout_s,
            )
        return self._client

    def _body(self, request: CompletionRequest) -> Json:
        from dataclasses import replace

        from potstill.completers.openai_form import chat_body

        constraint = Constraint("json_schema", schema=SCHEMA) if self.model.structured else None
        body = chat_body(replace(request, constraint=constraint), str(self.model.model), "openai")
        body[self.model.limit_field] = body.pop("max_tokens")
        if self.model.temperature is None:
            del body["temperature"]
        else:
            body["temperature"] = self.model.temperature
        return body

    def _settle(self, question: Question, answer: Completion) -> bool:
        """Keep the answer, or say whether to ask again."""
        name = (self.name, self.model.model or "", question.key)
        if answer.error is None:
            known = answer.prompt_tokens is not None and answer.completion_tokens is not None
            usd = self._price(answer.prompt_tokens or 0, answer.completion_tokens or 0) if known else None
            usd = self._worst(question) if usd is None else usd
            self.kept.settle(name, answer.text, usd, answer.prompt_tokens, answer.completion_tokens)
            self.replies[question.key] = Verdict(answer.text, usd)
            self.failed.pop(question.key, None)
            self._failed_in_a_row = 0
            return False
        if _unbilled(answer.error):
            self.kept.free(name)
        self.failed[question.key] = self._last_error = answer.error
        self._failed_in_a_row += 1
        return _passing(answer.error)

    def _hopeless(self) -> PotstillError:
        """A judge that refuses the key or answers nothing is not asked on."""
        return PotstillError(
            f"judge {self.name} at {self.model.base_url}: {self._failed_in_a_row} questions in a row came to nothing, "
            f"the last by {self._last_error}; what was paid for is kept: mend it and run again"
        )


def _unbilled(error: str) -> bool:
    """Refused by the server itself, or never sent. A proxy's own errors hide whether the model answered."""
    if error.startswith("HTTP "):
        return not error.startswith(("HTTP 408", "HTTP 502", "HTTP 504"))
    return error.startswith(("ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol"))


def _passing(error: str) -> bool:
    """Whether the same question may be answered later."""
    if error.startswith("HTTP "):
        return error.startswith(("HTTP 408", "HTTP 409", "HTTP 429", "HTTP 5"))
    return error.endswith("Timeout") or "Error: " in error or "Timeout: " in error

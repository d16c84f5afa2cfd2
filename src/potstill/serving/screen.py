"""Is this a request that the model should see? Injections, personal data, abuse and listed words, each only if asked.

What is found is refused, flagged (header, metric, capture) or, for personal data, replaced before any model, cache or
log sees it. Short requests are looked at in the event loop (microseconds a kilobyte); long ones and classifiers in a
thread, under a time limit. When that is over, or a classifier fails, `on_fault` says whether the request passes; one
whose personal data could not be looked for in time never does.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from potstill.errors import RecipeError
from potstill.progress import say
from potstill.records import Json, Message
from potstill.serving.call import Call
from potstill.serving.guards.blocklist import Blocklist, load_blocklist
from potstill.serving.guards.decisions import Counters, refusal
from potstill.serving.guards.injection import Verdict, score_all
from potstill.serving.guards.normalise import Reading
from potstill.serving.guards.personal import Placeholders, Restored, actions_of, may_hold
from potstill.serving.guards.settings import InjectionScreen, ScreenSettings
from potstill.serving.guards.toxicity import Toxicity, load_toxicity, refuse_missing
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.guards.windows import Passing
    from potstill.serving.server import Server

IN_LOOP = 4_096  # characters: under a millisecond, unless they are telephone numbers throughout
RESTORE = "screen.placeholders"
Classifier = Callable[[list[str]], Sequence[float]]


@dataclass(slots=True)
class Found:
    """What the looks at one request came to: guard, action, detail, and why where it is refused."""

    notes: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    refused: tuple[str, str] | None = None
    messages: list[Message] | None = None
    placeholders: Placeholders | None = None

    def add(self, guard: str, action: str, why: str = "", **detail: Any) -> None:
        self.notes.append((guard, action, detail))
        if action in ("refuse", "block") and self.refused is None:
            self.refused = guard, why


class Screen(Step):
    def __init__(self, settings: ScreenSettings, counters: Counters) -> None:
        self._settings, self._counters = settings, counters
        self._blocklist: Blocklist | None = None
        self._toxicity: Toxicity | None = None
        self._classifier: Classifier | None = None
        if settings.blocklist:
            self._blocklist = load_blocklist(settings.blocklist, "serve.screen.blocklist")
        if settings.toxicity:
            refuse_missing("serve.screen.toxicity")
        if settings.injection and settings.injection.classifier:
            self._classifier = _function(settings.injection.classifier)
        self._actions = actions_of(settings.personal) if settings.personal else {}
        self._key = secrets.token_bytes(32)  # placeholders of this process: nobody can guess what stands behind one

    async def start(self) -> None:
        """Load what takes seconds the first time: not in the event loop, and not in the first request."""
        await asyncio.to_thread(self._warm)

    def _warm(self) -> None:
        if self._settings.toxicity:
            self._toxicity = load_toxicity()
        messages: list[Message] = [{"role": role, "content": _WARM} for role in ("user", "assistant", "tool")]
        self._look(messages, "warm")

    async def before(self, call: Call) -> None:
        """Raises RequestRefused 400 (`content_filter`); replaces `call.body` where personal data was redacted."""
        messages = said_in(call.body)
        conversation = (call.body.get("metadata") or {}).get("conversation") or call.id
        scope = f"{call.tenant or call.key}\0{conversation}"
        if sum(map(_size, messages)) <= IN_LOOP:
            found = self._look(messages, scope)
        else:
            found = await self._in_time(call, "length", asyncio.to_thread(self._look, messages, scope)) or Found()
        if self._classifier is not None and found.refused is None:
            await self._classify(call, messages, found)
        self._decide(call, found)

    def _decide(self, call: Call, found: Found) -> None:
        for guard, action, detail in found.notes:
            self._counters.note(call, "screen", guard, action, **detail)
        if found.refused is not None:
            call.body = with_said(call.body, [])  # nothing behind this may write it down
            raise refusal("screen", *found.refused)
        if found.messages is not None:
            call.body = with_said(call.body, found.messages)
            if self._settings.personal and self._settings.personal.restore and found.placeholders:
                call.marks[RESTORE] = found.placeholders.values

    def passing(self, call: Call, live: bool) -> Passing | None:
        """The values behind this call's placeholders, put back last of all: no cache and no log ever holds them."""
        values = call.marks.get(RESTORE)
        return Restored(values) if values else None

    async def end(self, call: Call) -> None:
        call.marks.pop(RESTORE, None)

    async def _in_time(self, call: Call, what: str, waited: Any) -> Any:
        """What is waited for, or None when the time is over or it failed and such requests pass.

        One whose personal data could not be looked for in time never passes: that it reaches no model is a promise.
        """
        try:
            async with asyncio.timeout(self._settings.timeout_ms / 1000):
                return await waited
        except Exception as fault:
            reason = "timeout" if isinstance(fault, TimeoutError) else type(fault).__name__
            self._counters.fault(call, "screen", what, reason)
            if self._settings.on_fault == "refuse" or (what == "length" and self._settings.personal):
                raise refusal("screen", what, f"it could not be looked at ({reason})") from fault
            return None

    async def _classify(self, call: Call, messages: list[Message], found: Found) -> None:
        settings = self._settings.injection
        assert settings is not None
        assert self._classifier is not None
        texts = list(texts_of(messages, settings.roles))
        scores = await self._in_time(call, "classifier", asyncio.to_thread(self._classifier, texts)) if texts else None
        if scores and max(scores) >= settings.threshold:
            found.notes = [each for each in found.notes if each[0] != "injection"]
            _add_injection(found, settings, Verdict(float(max(scores)), ("classifier",)))

    def _look(self, messages: list[Message], scope: str) -> Found:
        """Everything that needs no other process, in one go."""
        found, settings = Found(), self._settings
        read: dict[str, Reading] = {}

        def of(roles: Sequence[str]) -> Iterator[Reading]:
            for text in texts_of(messages, roles):
                yield read.get(text) or read.setdefault(text, Reading(text))

        if settings.injection:
            verdict = score_all(of(settings.injection.roles))
            if verdict.score >= settings.injection.threshold:
                _add_injection(found, settings.injection, verdict)
        if self._blocklist and settings.blocklist and any(map(self._blocklist.read, of(settings.blocklist.roles))):
            found.add("blocklist", settings.blocklist.action, "it holds a listed word")
        if settings.toxicity:
            model = self._toxicity or load_toxicity()
            worst = max(map(model.score_reading, of(settings.toxicity.roles)), default=0.0)
            if worst >= settings.toxicity.threshold:
                found.add("toxicity", settings.toxicity.action, "it is abusive", score=round(worst, 3))
        if settings.personal:
            self._redact(messages, scope, found)
        return found

    def _redact(self, messages: list[Message], scope: str, found: Found) -> None:
        settings = self._settings.personal
        assert settings is not None
        said = [each for each in messages if each["role"] in settings.roles]
        if not any(each.get("tool_calls") for each in said) and not any(map(may_hold, texts_of(said, settings.roles))):
            return
        placeholders = Placeholders(
            kinds=tuple(self._actions), region=settings.region, key=self._key, actions=self._actions  # type: ignore[arg-type]
        )  # fmt: skip
        shown = [_redacted(each, placeholders, scope) if each["role"] in settings.roles else each for each in messages]
        if not placeholders.found:
            return
        detail: dict[str, Any] = {"found": dict(placeholders.found)}
        if placeholders.blocked.total():
            kinds = ", ".join(sorted(each for each, count in placeholders.blocked.items() if count))
            found.add("personal", "block", f"it holds personal data that may not be sent here ({kinds})", **detail)
            return
        found.add("personal", "redact" if placeholders.values else "flag", **detail)
        if placeholders.values:
            found.messages, found.placeholders = shown, placeholders


_WARM = "Call 555-010-9999 or write to a.person@example.org; 4111 1111 1111 1111, 10.1.2.3."


def _add_injection(found: Found, settings: InjectionScreen, verdict: Verdict) -> None:
    families = list(verdict.families)
    found.add(
        "injection", settings.action, "it reads like an attack on the model", score=verdict.score, families=families
    )


def said_in(body: Json) -> list[Message]:
    """The messages of a request; a `prompt` or `input` is what a user says."""
    if "messages" in body:
        messages: list[Message] = body["messages"]
        return messages
    given = body.get("prompt", body.get("input")) or []
    texts = [given] if isinstance(given, str) else given
    return [{"role": "user", "content": each} for each in texts if isinstance(each, str)]


def with_said(body: Json, messages: list[Message]) -> Json:
    """The request with these messages in the place of its own."""
    if "messages" in body:
        return body | {"messages": messages}
    name = "prompt" if "prompt" in body else "input"
    texts = [each["content"] for each in messages]
    return body | {name: "".join(texts) if isinstance(body.get(name), str) else texts}


def texts_of(messages: Iterable[Message], roles: Sequence[str]) -> Iterable[str]:
    """Every text that these roles said, of messages in one piece or in parts."""
    for message in messages:
        if message["role"] in roles:
            content = message.get("content")
            if isinstance(content, str):
                yield content
            elif content:
                yield from (each["text"] for each in content if isinstance(each.get("text"), str))


def _size(message: Message) -> int:
    content = message.get("content")
    if isinstance(content, str):
        return len(content)
    return sum(len(each.get("text") or "") for each in content or [])


def _redacted(message: Message, redactor: Placeholders, scope: str) -> Message:
    """A copy of a message with the texts and the arguments of tool calls redacted."""
    shown = dict(message)
    content = message.get("content")
    if isinstance(content, str):
        shown["content"] = redactor.text(content, scope)
    elif content:
        shown["content"] = [
            {**each, "text": redactor.text(each["text"], scope)} if isinstance(each.get("text"), str) else each
            for each in content
        ]
    if message.get("tool_calls"):
        shown["tool_calls"] = redactor.value(message["tool_calls"], scope)
    return shown


def _function(name: str) -> Classifier:
    module, _, function = name.partition(":")
    try:
        found: Classifier = getattr(import_module(module), function)
    except (ImportError, AttributeError) as fault:
        raise RecipeError([f"serve.screen.injection.classifier: {name}: {fault}"]) from fault
    return found


def make(server: Server) -> Step | None:
    settings = server.settings.screen
    if settings is None:
        return None
    if settings == ScreenSettings(timeout_ms=settings.timeout_ms, on_fault=settings.on_fault):
        say("serve: screen: nothing is screened; name injection, personal, toxicity or blocklist")
        return None
    return Screen(settings, Counters.of(server.meter.registry))

"""Is this an answer that the client should see? Personal data, secrets, abuse and listed words, each only if asked.

A stream goes on while it is filtered: only what a match can still need is held back (`guards.windows`). Where a part
of the filter needs the whole answer (abuse, patterns without a bound, JSON, tool calls, log-probabilities), or `hold`
is set, a stream is given once the answer is known. What is captured is what was shown.

A valid answer of a classification is one of a closed set of labels: there is nothing to find, and nothing is asked.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from potstill.progress import say
from potstill.records import Json, Message
from potstill.redaction import KINDS, Redactor
from potstill.redaction.redactor import Scope
from potstill.redaction.rules import find
from potstill.serving.call import Call
from potstill.serving.guards.blocklist import Blocklist, load_blocklist
from potstill.serving.guards.decisions import Counters, refusal
from potstill.serving.guards.secrets import find_more, refuse_missing_detector
from potstill.serving.guards.settings import FilterSettings
from potstill.serving.guards.toxicity import load_toxicity, refuse_missing
from potstill.serving.guards.windows import Chain, Cut, Finding, Listed, Passing, Stretches, Window, sparing
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.server import Server

SECRETS = ("URL", "API_KEY", "SECRET")
RUN = "filter.run"
WEIGHT = {"flag": 0, "redact": 1, "replace": 2, "refuse": 3}


@dataclass(eq=False)
class Run:
    """One answer's way through the filter. `decisions`: the heaviest action of each guard and what it found."""

    decisions: dict[str, tuple[str, Counter[str]]] = field(default_factory=dict)
    chain: Chain | None = None
    ended: str | None = None  # the action that ended the answer

    def note(self, guard: str, action: str, kind: str) -> None:
        before, kinds = self.decisions.get(guard, ("flag", Counter[str]()))
        kinds[kind] += 1
        self.decisions[guard] = (max(before, action, key=WEIGHT.__getitem__), kinds)


class AnswerFilter(Step):
    every_answer = True  # a cache may hold what was written before the filter was set

    def __init__(self, settings: FilterSettings, counters: Counters, constrained: bool) -> None:
        self._settings, self._counters, self._constrained = settings, counters, constrained
        self._blocklist: Blocklist | None = None
        if settings.blocklist:
            self._blocklist = load_blocklist(settings.blocklist, "serve.filter.blocklist")
        if settings.toxicity:
            refuse_missing("serve.filter.toxicity")
        if settings.secrets and settings.secrets.detect_secrets:
            refuse_missing_detector("serve.filter.secrets.detect_secrets")
        self._action_of = _actions(settings)
        self._kinds = tuple(each for each in KINDS if each in self._action_of)
        self._key = secrets.token_bytes(32)
        toxic = settings.toxicity is not None and settings.toxicity.action != "flag"
        unbounded = self._blocklist is not None and self._blocklist.width is None
        self._holds = settings.hold or toxic or unbounded

    async def start(self) -> None:
        await asyncio.to_thread(self._warm)

    def _warm(self) -> None:
        """What takes seconds the first time: not in the event loop, and not in the first answer."""
        if self._settings.toxicity:
            load_toxicity()
        self._text(Run(), "Call 555-010-9999 or write to a.person@example.org; 4111 1111 1111 1111.", "")

    def needs_whole(self, call: Call) -> bool:
        kind = call.model.served.task.kind
        if kind == "classification" and self._constrained:
            return False
        body = call.body
        whole = body.get("logprobs") or body.get("tools") or (body.get("n") or 1) > 1
        return self._holds or bool(whole) or kind == "extraction"

    def passing(self, call: Call, live: bool) -> Passing | None:
        """The filter of a stream that goes by as it comes; a whole answer was filtered in `after`."""
        if not live or (call.model.served.task.kind == "classification" and self._constrained):
            return None
        run = Run()
        call.marks[RUN] = run
        run.chain = self._chain(run, call.id)
        return run.chain

    async def after(self, call: Call) -> None:
        """Filter the answer; raises RequestRefused 400 (`content_filter`) where that is the action."""
        if call.model.served.task.kind == "classification" and call.parsed is not None and call.parsed.valid:
            return
        run: Run | None = call.marks.pop(RUN, None)
        choices = [{**each} for each in call.response.get("choices") or []]
        if run is not None and run.chain is not None:
            self._take_what_was_shown(choices, run)
        else:
            run = Run()
            for choice in choices:
                self._choice(choice, run, call.id)
        for guard, (action, kinds) in run.decisions.items():
            self._counters.note(call, "filter", guard, action, found=dict(kinds))
        if run.ended == "refuse" and run.chain is None:
            raise refusal("filter", self._heaviest(run), "it holds what may not be shown")
        if run.decisions:
            call.response = call.response | {"choices": choices}
            if run.ended:
                call.parsed = None  # what is shown is no answer of the task's

    def _heaviest(self, run: Run) -> str:
        return max(run.decisions, key=lambda guard: WEIGHT[run.decisions[guard][0]])

    def _take_what_was_shown(self, choices: list[Json], run: Run) -> None:
        """Of a stream that has gone by: the record says what the client saw."""
        assert run.chain is not None
        text = "".join(run.chain.shown)
        self._judge(text, run)
        for choice in choices[:1]:
            choice["message"] = {**choice["message"], "content": text}
            choice["finish_reason"] = run.chain.finish_reason or choice["finish_reason"]

    def _choice(self, choice: Json, run: Run, scope: str) -> None:
        message: Message = {**choice["message"]}
        before = (message.get("content"), message.get("tool_calls"))
        content = message.get("content")
        if isinstance(content, str) and content:
            message["content"] = self._text(run, content, scope)
            self._judge(content, run)
        if message.get("tool_calls") and not run.ended:
            message["tool_calls"] = [self._tool_call(each, run, scope) for each in message["tool_calls"]]
        if run.ended:
            message = {"role": "assistant", "content": self._settings.answer}
            choice["finish_reason"] = "content_filter"
        if (message.get("content"), message.get("tool_calls")) != before:
            choice["message"] = message
            choice.pop("logprobs", None)  # its tokens spell the text out

    def _tool_call(self, call: Json, run: Run, scope: str) -> Json:
        function = call.get("function") or {}
        try:
            arguments = orjson.loads(function.get("arguments") or "")
        except orjson.JSONDecodeError:
            return {
                **call,
                "function": {**function, "arguments": self._text(run, function.get("arguments") or "", scope)},
            }
        shown = _each_text(arguments, lambda text: self._text(run, text, scope))
        if shown == arguments:
            return call
        return {**call, "function": {**function, "arguments": orjson.dumps(shown).decode()}}

    def _judge(self, text: str, run: Run) -> None:
        """Abuse, which only the whole text shows."""
        settings = self._settings.toxicity
        if settings is None or load_toxicity().score(text) < settings.threshold:
            return
        run.note("toxicity", settings.action, "toxic")
        if settings.action != "flag" and run.chain is None:
            run.ended = _heavier(run.ended, settings.action)

    def _text(self, run: Run, text: str, scope: str) -> str:
        """A whole text through the same windows as a stream."""
        chain = self._chain(run, scope)
        return chain.feed(text) + chain.flush()

    def _chain(self, run: Run, scope: str) -> Chain:
        windows: list[Window] = []
        if self._action_of:
            redactor = _Filtering(key=self._key, region=self._region(), kinds=self._kinds)
            redactor.look = self._find
            redactor.decide = lambda kind, value, place: self._replaced(run, kind, value, place, redactor)
            redactor.place = redactor.place_of(scope)
            windows.append(Stretches(self._find, redactor.replaced, lambda text: redactor.text(text, scope)))
        if self._blocklist is not None:
            windows.append(Listed(self._blocklist, lambda value, kind: self._masked(run, kind)))

        def ended(cut: Cut) -> None:
            run.ended = _heavier(run.ended, self._action(cut.guard))

        return Chain(windows, ended)

    def _region(self) -> str:
        return self._settings.personal.region if self._settings.personal else "US"

    def _find(self, text: str) -> list[Finding]:
        spans = sparing(lambda piece: find(piece, self._action_of, self._region()))(text)
        if "SECRET" in self._action_of:
            spans = find_more(text, spans)
        return spans

    def _replaced(self, run: Run, kind: str, value: str, place: Scope, redactor: _Filtering) -> str:
        guard, action = ("secrets" if kind in SECRETS else "personal"), self._action_of[kind]
        run.note(guard, action, kind)
        if action == "flag":
            return value
        if action == "redact":
            return redactor.placeholder(kind, value, place)
        raise Cut(guard, kind)

    def _masked(self, run: Run, kind: str) -> str:
        action = self._action("blocklist")
        run.note("blocklist", action, kind)
        if action == "redact":
            return self._settings.mask
        raise Cut("blocklist", kind)

    def _action(self, guard: str) -> str:
        return str(getattr(self._settings, guard).action)


@dataclass
class _Filtering(Redactor):
    """A redactor of one answer that looks by `look` and asks `decide` what stands in the place of a finding."""

    look: Callable[[str], list[Finding]] = field(default=lambda text: [], repr=False)
    decide: Callable[[str, str, Scope], str] = field(default=lambda kind, value, place: value, repr=False)
    place: Scope | None = None

    def place_of(self, scope: str) -> Scope:
        return self._scope(scope)

    def replaced(self, value: str, kind: str) -> str:
        assert self.place is not None
        return self.decide(kind, value, self.place)

    def placeholder(self, kind: str, value: str, place: Scope) -> str:
        return super()._name(kind, value, place)

    def _name(self, kind: str, value: str, scope: Scope) -> str:
        return self.decide(kind, value, scope)

    def _spans(self, text: str, marks: int) -> list[Finding]:
        return self.look(text)


def _actions(settings: FilterSettings) -> dict[str, str]:
    """What is done with each kind of finding."""
    found: dict[str, str] = {}
    if settings.personal:
        kinds = settings.personal.kinds or tuple(each for each in KINDS if each not in SECRETS)
        found |= dict.fromkeys(kinds, settings.personal.action)
    if settings.secrets:
        found |= dict.fromkeys(("URL", "API_KEY"), settings.secrets.action)
        found |= {"SECRET": settings.secrets.action} if settings.secrets.detect_secrets else {}
    return found


def _heavier(one: str | None, other: str) -> str:
    return max(one or "replace", other, key=WEIGHT.__getitem__)


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _each_text(each, change) for key, each in value.items()}
    return [_each_text(each, change) for each in value] if isinstance(value, list) else value


def make(server: Server) -> Step | None:
    settings = server.settings.filter
    if settings is None:
        return None
    if not (settings.personal or settings.secrets or settings.toxicity or settings.blocklist):
        say("serve: filter: nothing is filtered; name personal, secrets, toxicity or blocklist")
        return None
    if server.settings.constrain and all(each.served.task.kind == "classification" for each in server.fleet):
        say("serve: filter: every answer is one of a closed set of labels: nothing is asked of them")
    return AnswerFilter(settings, Counters.of(server.meter.registry), server.settings.constrain)

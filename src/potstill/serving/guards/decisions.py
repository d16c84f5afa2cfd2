"""Every decision of a guard where people look for it: on the call, in a header, among the metrics, in the capture.

Names of screens, actions, kinds, counts and scores; never the text that was found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Counter

from potstill.serving.errors import RequestRefused

if TYPE_CHECKING:
    from potstill.serving.call import Call

Stage = Literal["screen", "filter"]
MARK = "guards"
CODE = "content_filter"


class Counters:
    """The counters of one registry; two steps and every reload share them."""

    _made: ClassVar[WeakKeyDictionary[CollectorRegistry, Counters]] = WeakKeyDictionary()

    def __init__(self, registry: CollectorRegistry) -> None:
        self.decisions = Counter(
            "potstill_guard_decisions", "Decisions of screens and filters", ["stage", "guard", "action"],
            registry=registry,
        )  # fmt: skip
        self.faults = Counter(
            "potstill_guard_faults", "Guards that failed or ran out of time", ["stage", "guard"], registry=registry
        )

    @classmethod
    def of(cls, registry: CollectorRegistry) -> Counters:
        if registry not in cls._made:
            cls._made[registry] = cls(registry)
        return cls._made[registry]

    def note(self, call: Call, stage: Stage, guard: str, action: str, **detail: Any) -> None:
        """Count a decision and leave it on the call, for the header and the capture."""
        self.decisions.labels(stage, guard, action).inc()
        call.marks.setdefault(MARK, {}).setdefault(stage, {})[guard] = {"action": action, **detail}
        if not call.http.status:
            _set_header(call, stage)

    def fault(self, call: Call, stage: Stage, guard: str, reason: str) -> None:
        self.faults.labels(stage, guard).inc()
        call.marks.setdefault(MARK, {}).setdefault(stage, {})[guard] = {"action": "fault", "reason": reason}
        if not call.http.status:
            _set_header(call, stage)


def _set_header(call: Call, stage: Stage) -> None:
    """One header a stage: `x-potstill-screen: injection=flag, personal=redact`."""
    name = f"x-potstill-{stage}".encode()
    found = call.marks[MARK][stage]
    text = ", ".join(f"{guard}={each['action']}" for guard, each in found.items())
    call.http.extra[:] = [each for each in call.http.extra if each[0] != name]
    call.http.extra.append((name, text.encode()))


def refusal(stage: Stage, guard: str, why: str) -> RequestRefused:
    """400 in the form that clients know from OpenAI's content filter."""
    what = "the request was" if stage == "screen" else "the answer was"
    message = f"{what} refused by serve.{stage}.{guard}: {why}"
    return RequestRefused(400, message, param="messages" if stage == "screen" else None, code=CODE)

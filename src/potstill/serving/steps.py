"""What a step of a request is, and the steps of a server put together into a plan.

A step is a module with `make(server) -> Step | None`: None where its key in `serve:` is off, so that off costs
nothing. It overrides only the moments that it has something to do in:

    before   on the way in; may refuse (RequestRefused) or answer by itself (fill `call.response`): nothing behind it
             and no engine is asked then
    failed   the engine gave no answer; may give one instead
    after    on the way out, in the same order; sees the whole answer and may change or replace it. An answer that was
             given on the way in passes only the steps with `every_answer` (counting, writing down)
    passing  on the way to the client; may hold back and change the text of an answer, piece by piece while it streams
    end      once, whatever happened, in reverse order: settle what was reserved, keep what is worth keeping

`needs_whole` says that `after` must see an answer before the client sees any of it: streams are then held back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from potstill.serving.call import Call
    from potstill.serving.errors import RequestRefused
    from potstill.serving.guards.windows import Passing

    Moment = Callable[[Call], Awaitable[None]]
    Rescue = Callable[[Call, RequestRefused], Awaitable[None]]


class Step:
    """Nothing at any moment; a step overrides what it needs."""

    every_answer = False

    def needs_whole(self, call: Call) -> bool:
        return False

    async def before(self, call: Call) -> None: ...

    async def failed(self, call: Call, refused: RequestRefused) -> None: ...

    async def after(self, call: Call) -> None: ...

    def passing(self, call: Call, live: bool) -> Passing | None:
        """What the text of one answer passes last. `live`: it streams as it comes, before `after` has seen any of it;
        otherwise `after` has seen the whole, and what passes here is shown but neither captured nor cached.
        """
        return None

    async def end(self, call: Call) -> None: ...

    async def start(self) -> None:
        """Once, in the server's event loop, before the first request."""

    async def close(self) -> None:
        """Once, after the last request."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The moments of all active steps in order; a call keeps the plan that it began with."""

    steps: tuple[Step, ...]
    before: tuple[Moment, ...]
    failed: tuple[Rescue, ...]
    after: tuple[Moment, ...]
    after_given: tuple[Moment, ...]
    end: tuple[Moment, ...]
    holding: tuple[Step, ...]
    showing: tuple[Step, ...]

    @classmethod
    def of(cls, steps: Sequence[Step]) -> Plan:
        def having(moment: str) -> list[Step]:
            return [each for each in steps if getattr(type(each), moment) is not getattr(Step, moment)]

        return cls(
            tuple(steps),
            tuple(each.before for each in having("before")),
            tuple(each.failed for each in having("failed")),
            tuple(each.after for each in having("after")),
            tuple(each.after for each in having("after") if each.every_answer),
            tuple(each.end for each in reversed(having("end"))),
            tuple(having("needs_whole")),
            tuple(having("passing")),
        )

    def needs_whole(self, call: Call) -> bool:
        return any(each.needs_whole(call) for each in self.holding)

    def passings(self, call: Call, live: bool) -> list[Passing]:
        """What the text of one answer passes on its way to the client, in order; of no step, where nothing is to do."""
        return [each for step in self.showing if (each := step.passing(call, live)) is not None]

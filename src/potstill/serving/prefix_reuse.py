"""How much of its prompts the engine had read already: its own prefix cache, from the usage of every question.

Counted from what was asked of the student, not from answers: one given by a cache cost no prompt. The details of the
usage are passed on to the client as they are; a whole answer has the share in a header too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill.serving.caches.counts import Counts
from potstill.serving.call import Call
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.server import Server

HEADER = b"x-potstill-prefix-cached"


class PrefixReuse(Step):
    def __init__(self, counts: Counts) -> None:
        self._computed, self._reused = counts.prompt.labels("computed"), counts.prompt.labels("reused")

    async def after(self, call: Call) -> None:
        """Count; where the answer has not begun, say how many tokens of the prompt were reused."""
        reused = 0
        for each in call.asked:
            if each.by == "student":
                known = (each.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
                self._computed.inc(max(0, (each.usage.get("prompt_tokens") or 0) - known))
                reused += known
        self._reused.inc(reused)
        if reused and not call.http.status:
            call.http.extra.append((HEADER, str(reused).encode()))


def make(server: Server) -> Step:
    return PrefixReuse(Counts.of(server.meter))

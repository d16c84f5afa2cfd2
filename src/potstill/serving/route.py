"""Which version answers: the current one of the model that the request names, held until the call has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill.serving.call import Call
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.server import Server


class Route(Step):
    def __init__(self, server: Server) -> None:
        self._fleet = server.fleet

    async def before(self, call: Call) -> None:
        """Fill `call.deployment`; raises RequestRefused 404."""
        found = self._fleet.of(call.body["model"])
        found.hold()
        call.deployment = found
        call.http.extra.append((b"x-potstill-artifact", found.artifact.encode()))

    async def end(self, call: Call) -> None:
        if call.deployment is not None:
            call.deployment.release()


def make(server: Server) -> Step:
    return Route(server)

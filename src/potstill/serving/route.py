"""Which version answers: the current one of the model that the request names, held until the call has ended.

Where a canary of the model is deployed, it takes its share (`serve.canary`), a conversation staying with one version;
a request that names the canary's version gets it. A canary that fails costs nobody an answer: the current version is
asked then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill.serving.call import Call
from potstill.serving.constrain import constrain
from potstill.serving.engine_step import ask
from potstill.serving.errors import RequestRefused
from potstill.serving.fleet import Deployment
from potstill.serving.prompt_step import strip_instructions
from potstill.serving.routing import drawn
from potstill.serving.routing_meter import RoutingMeter
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.server import Server

ARTIFACT = b"x-potstill-artifact"


class Route(Step):
    def __init__(self, server: Server) -> None:
        self._fleet, self._settings = server.fleet, server.settings
        self._meter = RoutingMeter.of(server.meter)

    async def before(self, call: Call) -> None:
        """Fill `call.deployment`; raises RequestRefused 404."""
        current = self._fleet.of(call.body["model"])
        canary = self._fleet.canary(current.name)
        if canary is not None and self._takes(call, canary, current):
            self._meter.canary.labels("took").inc()
            current = canary
        _hold(call, current)

    def _takes(self, call: Call, canary: Deployment, current: Deployment) -> bool:
        wanted = self._settings.canary
        if not canary.engine.ready:
            return False
        if "@" in canary.name and call.body["model"] == canary.name != current.name:
            return True
        return wanted is not None and drawn(call, wanted.by, wanted.share, "canary")

    async def failed(self, call: Call, refused: RequestRefused) -> None:
        """The current version's answer where the canary gave none; raises nothing."""
        canary = call.model
        if refused.status < 500 or self._fleet.canary(canary.name) is not canary:
            return
        self._meter.canary.labels("failed").inc()
        _hold(call, self._fleet.of(canary.name))
        served = call.model.served
        call.upstream = {}
        try:
            strip_instructions(call, served.rule)
            constrain(call, served.contract, served.task.constraint() if self._settings.constrain else None)
            await ask(call, call.model.engine, self._settings.request_timeout_s)
            call.answered_by = "engine"
        except RequestRefused:
            return  # what comes behind may still help; else the client hears of the first refusal

    async def end(self, call: Call) -> None:
        if call.deployment is not None:
            call.deployment.release()


def _hold(call: Call, deployment: Deployment) -> None:
    """Make this the call's version, in place of the one that it held."""
    deployment.hold()
    if call.deployment is not None:
        call.deployment.release()
    call.deployment = deployment
    call.http.extra[:] = [each for each in call.http.extra if each[0] != ARTIFACT]
    call.http.extra.append((ARTIFACT, deployment.artifact.encode()))


def make(server: Server) -> Step:
    return Route(server)

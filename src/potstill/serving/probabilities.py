"""The probabilities of the labels in the answer, when the client asks for `logprobs` of a classification.

`choices[0].logprobs.label_probabilities` holds each possible label's probability, the likeliest first, and
`choices[0].logprobs.confidence` the probability that the answer is right, where a calibration tells it (openai's
client keeps both as extra fields). Only in whole answers: a stream's tokens go before its label is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill.calibration.confidence import TOP, LabelScorer
from potstill.records import Json
from potstill.serving.call import Call
from potstill.serving.escalate import CONFIDENCE
from potstill.serving.fleet import Deployment
from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.server import Server


class Probabilities(Step):
    def __init__(self) -> None:
        self._scorers: dict[str, LabelScorer] = {}

    async def before(self, call: Call) -> None:
        """Ask for the alternatives that the labels' probabilities are made of."""
        if not call.body.get("logprobs") or (call.stream and not call.plan.needs_whole(call)):
            return
        if call.model.served.task.kind == "classification":
            call.upstream |= {"logprobs": True, "top_logprobs": TOP}

    async def after(self, call: Call) -> None:
        """Leave of the log-probabilities what the client asked for, with the labels' beside them."""
        if call.answered_by != "engine" or call.http.status:
            return
        choice = call.response["choices"][0]
        found: Json | None = choice.get("logprobs")
        if found is None:
            return
        if not call.body.get("logprobs"):
            del choice["logprobs"]
            return
        content, most = found.get("content") or [], call.body.get("top_logprobs") or 0
        told = [each | {"top_logprobs": (each.get("top_logprobs") or [])[:most]} for each in content]
        choice["logprobs"] = {"content": told}
        labels = self._scorer(call.model).probabilities(content)
        if labels is not None:
            choice["logprobs"]["label_probabilities"] = labels
        if CONFIDENCE in call.marks:
            choice["logprobs"]["confidence"] = call.marks[CONFIDENCE]

    def _scorer(self, deployment: Deployment) -> LabelScorer:
        key = deployment.served.digest
        if key not in self._scorers:
            constraint = deployment.served.task.constraint()
            self._scorers[key] = LabelScorer(constraint.choices if constraint is not None else ())
        return self._scorers[key]


def make(server: Server) -> Step:
    return Probabilities()

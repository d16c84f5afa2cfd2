"""The figures of `serve.drift` from captured traffic: the same features, streams and promises, over any time span."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from potstill.contract import Contract
from potstill.errors import DamagedInput, PotstillError
from potstill.manifest import read_manifest
from potstill.prompt import PromptRule
from potstill.records import Exchange, Json
from potstill.serving.captured import join
from potstill.tasks import Task
from potstill.watching.features import seen_of
from potstill.watching.monitor import Monitor
from potstill.watching.opinions import judged_right
from potstill.watching.profile import PROFILE, Profile
from potstill.watching.settings import MonitorSettings


@dataclass(frozen=True, slots=True)
class Watched:
    """What is needed of an artifact to watch it; `digest` is what captured exchanges call it by (12 digits)."""

    profile: Profile
    task: Task
    rule: PromptRule
    digest: str


def watched(artifact: Path) -> Watched:
    """Raises PotstillError for an artifact from before there were profiles."""
    profile, contract = Profile.read(artifact), Contract.read(artifact)
    if profile is None:
        raise PotstillError(f"{artifact}: found no {PROFILE}, expected what the model was trained on; export it again")
    digest = read_manifest(artifact, "artifact", verify=False).digest[:12]
    return Watched(profile, contract.make_task(), contract.make_prompt_rule(), digest)


def captured_exchanges(folder: Path, since: str | None = None, until: str | None = None) -> list[Exchange]:
    """Captured exchanges with their feedback in the order of time; times are compared as ISO 8601 text (UTC)."""
    if not folder.is_dir():
        raise DamagedInput(f"{folder}: not a folder; captured traffic is expected there")
    found = [each for each in join(folder) if _within(each.time or "", since, until)]
    return sorted(found, key=lambda each: each.time or "")


def _within(time: str, since: str | None, until: str | None) -> bool:
    return (since is None or time >= since) and (until is None or time < until)


def figures(of: Watched, exchanges: Iterable[Exchange], settings: MonitorSettings, every: int = 100) -> Json:
    """Features with counts, PSI, evidence and alarms over a stream that is looked at every `every` exchanges.

    Only exchanges that this artifact answered say anything of its answers; all of them say what is asked.
    """
    monitor = Monitor(of.profile, of.task, settings)
    told: list[Json] = []
    total = own = 0
    for total, exchange in enumerate(exchanges, 1):
        own += count(monitor, of, exchange)
        if total % every == 0:
            told = monitor.look()
    told = monitor.look() if total % every or not told else told
    return {
        "artifact": of.digest,
        "exchanges": total,
        "of_this_artifact": own,
        "alpha": settings.alpha,
        "features": told,
        "drifted": [each["feature"] for each in told if each["alarm"]],
    }


def count(monitor: Monitor, of: Watched, exchange: Exchange) -> bool:
    """Count one exchange; returns whether this artifact answered it."""
    monitor.count_input(seen_of(of.rule.apply(exchange.messages)))
    if exchange.metadata.get("artifact") not in (of.digest, None):
        return False
    monitor.count_answer(of.task.text_of(exchange.answer), exchange.tools)
    if (probability := confidence_of(exchange.response)) is not None:
        monitor.count_confidence(probability)
    if (right := judged_right(exchange, of.task)) is not None:
        monitor.count_opinion(badly=not right)
    return True


def confidence_of(response: Json) -> float | None:
    """The probability of the whole answer, where its token probabilities were asked for; None elsewhere."""
    tokens = ((response["choices"][0].get("logprobs") or {}).get("content")) or []
    if not tokens:
        return None
    return math.exp(min(0.0, sum(float(each.get("logprob") or 0.0) for each in tokens)))


def lines_of(found: Json) -> Iterator[str]:
    """As a table for people."""
    yield (
        f"{found['exchanges']:,} exchanges, {found['of_this_artifact']:,} answered by artifact {found['artifact']}; "
        f"chance of any false alarm: {found['alpha']:g} at most"
    )
    yield f"{'feature':11s} {'counted':>8s} {'PSI':>7s} {'evidence':>9s} {'alarm at':>8s}  state"
    for each in found["features"]:
        psi = "-" if each.get("psi") is None else f"{each['psi']:.3f}"
        evidence = "-" if "evidence_log10" not in each else f"{10 ** min(each['evidence_log10'], 99):.2g}"
        limit = "-" if "alarm_at_log10" not in each else f"{10 ** each['alarm_at_log10']:.2g}"
        said = each["state"]
        if alarm := each["alarm"]:
            said += (
                f": {alarm['what']} was {alarm['share_before']:.1%} and is {alarm['share']:.1%} "
                f"since event {alarm['since']:,} (seen after {alarm['after']:,})"
            )
        yield f"{each['feature']:11s} {each['count']:8,d} {psi:>7s} {evidence:>9s} {limit:>8s}  {said}"

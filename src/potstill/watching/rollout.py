"""How a version comes before people: a share first, then all, and back. The watcher decides, a rollout does it.

`RegistryRollout` moves aliases of the registry: servers follow `champion` and give `challenger` their canary's share.
Every move carries a token in its reason, so that a move can be told from another that looks alike: one that a person
made, or one that was undone before the watcher, killed in between, could write it down.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from potstill.tracking import Tracking, open_tracking

BY = "potstill watch"


@dataclass(frozen=True, slots=True)
class Standing:
    """Version numbers as they stand now."""

    champion: str | None
    previous: str | None
    challenger: str | None


class Rollout(Protocol):
    """All of these may be asked again after a kill: what is done already stays done."""

    def standing(self) -> Standing: ...

    def artifact(self, version: str) -> str:
        """The first 12 digits of the digest of what this version serves, as captured exchanges name it."""

    def folder(self, version: str) -> Path:
        """The artifact's folder."""

    def canary(self, version: str | None, share: float) -> None:
        """Give this version the share of the traffic beside the champion; None: nobody."""

    def promote(self, version: str, *, expect: str, why: str) -> None:
        """Make it champion; raises PotstillError when another than `expect` is champion, GateRefused without a gate."""

    def rollback(self, *, expect: str, why: str) -> None:
        """Make the champion's predecessor champion again."""

    def moved(self, token: str) -> bool:
        """Whether a move with this token in its reason has happened."""


class RegistryRollout:
    """Aliases of a registered model. The share is what the servers' own settings give to the challenger."""

    def __init__(self, tracking_uri: str, model: str) -> None:
        self._uri, self.model = tracking_uri, model
        self._opened: Tracking | None = None

    @property
    def _tracking(self) -> Tracking:
        if self._opened is None:
            self._opened = open_tracking(self._uri)
        return self._opened

    def standing(self) -> Standing:
        from potstill.tracking_challenger import CHALLENGER
        from potstill.tracking_versions import CHAMPION, PREVIOUS, aliases

        found = aliases(self._tracking, self.model)
        return Standing(found.get(CHAMPION), found.get(PREVIOUS), found.get(CHALLENGER))

    def artifact(self, version: str) -> str:
        from potstill.tracking_versions import find_version

        return find_version(self._tracking, f"models:/{self.model}/{version}").tags["artifact"][:12]

    def folder(self, version: str) -> Path:
        from potstill.tracking_versions import resolve_model_uri

        return resolve_model_uri(self._tracking, f"models:/{self.model}/{version}").artifact

    def canary(self, version: str | None, share: float) -> None:
        from potstill.tracking_challenger import set_challenger

        set_challenger(self._tracking, self.model, version)

    def promote(self, version: str, *, expect: str, why: str) -> None:
        from potstill.tracking_moves import promote

        promote(self._tracking, self.model, version, by=BY, why=why, expect=expect)

    def rollback(self, *, expect: str, why: str) -> None:
        from potstill.tracking_moves import rollback

        rollback(self._tracking, self.model, by=BY, why=why, expect=expect)

    def moved(self, token: str) -> bool:
        from potstill.tracking_moves import history

        return any(token in each.why for each in history(self._tracking, self.model))

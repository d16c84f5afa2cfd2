"""The calibrations of the versions that a server answers with: found by the artifact's digest and format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from potstill.calibration.conformal import Bound
from potstill.calibration.record import Calibration, Scorer
from potstill.errors import PotstillError, RecipeError
from potstill.manifest import MANIFEST
from potstill.progress import say
from potstill.serving.fleet import Deployment, Fleet
from potstill.serving.routing import BoundSettings
from potstill.serving.start import Served


@dataclass(frozen=True, slots=True)
class Applied:
    """A calibration at work: the threshold of the bound that is wanted, and how a score is taken."""

    calibration: Calibration
    bound: Bound
    above: float
    scorer: Scorer


class Calibrations:
    """Those in a folder that is one itself, or holds several. Raises RecipeError where a version in `fleet` has none.

    A version that comes later (a hot swap, a canary) is looked up when it is first seen: `of` gives None for one
    without a calibration, and says so once.
    """

    def __init__(self, section: str, settings: BoundSettings, fleet: Fleet) -> None:
        assert settings.calibration is not None
        self._section, self._settings, self._folder = section, settings, Path(settings.calibration)
        self._known: dict[tuple[str, str], Applied | None] = {}
        self._seen: list[str] = []
        for each in fleet:
            found = self._read(each.served)
            if found is None:
                seen = f"; found there: {', '.join(self._seen)}" if self._seen else ""
                raise RecipeError(
                    [
                        f"serve.{section}.calibration: {self._folder} holds none of {each.name} (artifact "
                        f"{each.artifact}, {each.served.format}){seen}; run `potstill calibrate` for this artifact"
                    ]
                )
            self._known[each.served.digest, each.served.format] = found

    def of(self, deployment: Deployment) -> Applied | None:
        key = deployment.served.digest, deployment.served.format
        if key not in self._known:
            self._known[key] = self._late(deployment)
        return self._known[key]

    def _late(self, deployment: Deployment) -> Applied | None:
        """That of a version which came after the start: nobody's request fails for a folder that is damaged."""
        try:
            found, why = self._read(deployment.served), "has no calibration"
        except RecipeError as fault:
            found, why = None, f"has no calibration that can be read ({fault})"
        if found is None:
            say(f"serve: {deployment.name} ({deployment.artifact}) {why}: it is never held unsure")
        return found

    def _read(self, served: Served) -> Applied | None:
        one = (self._folder / MANIFEST).is_file()
        folders = [self._folder] if one else sorted(self._folder.glob(f"calibration-*/{MANIFEST}"))
        newest: Applied | None = None
        for path in folders:
            folder = path if one else path.parent
            try:
                found = Calibration.read(folder)
            except PotstillError as fault:
                raise RecipeError([f"serve.{self._section}.calibration: {fault}"]) from fault
            if (found.artifact, found.format) == (served.digest, served.format):
                bound = self._settings.bound(found)
                newest = Applied(found, bound, found.threshold(bound), Scorer(served.task, found.score))
            else:
                self._seen.append(f"artifact {found.artifact[:12]}, {found.format}")
        return newest

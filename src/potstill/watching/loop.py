"""The unattended loop: new traffic and feedback -> train -> gate -> canary -> champion, and back where it is worse.

What is to be done next follows from the journal alone. Every deed stands in it twice, before it is done and after, and
every deed may be done again; so a watcher that is killed anywhere goes on where it was, loses no decision, and moves
no champion twice (`Rollout.moved` tells whether a move that was announced has happened).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from potstill.errors import GateRefused, PotstillError
from potstill.progress import say
from potstill.records import Exchange, Json
from potstill.tasks import Task
from potstill.watching.intake import (
    Intake,
    feedback_keys,
    looked_at,
    new_of,
    refused_earlier,
    take,
    write_intake,
)
from potstill.watching.journal import Entry, Journal
from potstill.watching.offline import captured_exchanges, figures, watched
from potstill.watching.proportions import Share, verdict
from potstill.watching.rollout import Rollout
from potstill.watching.scores import live_scores
from potstill.watching.settings import WatchSettings
from potstill.watching.training import Train
from potstill.watching.webhooks import send_all

# What comes after an entry of each kind; entries of other kinds (waiting, refused) change nothing.
NEXT = {
    "intake": "train", "train": "train", "trained": "begin_canary", "canary": "begin_canary",
    "canary_began": "judge_canary", "promote": "promote", "promoted": "hold", "withdraw": "withdraw",
    "rollback": "roll_back", "train_failed": "look", "gate_refused": "look", "withdrawn": "look", "held": "look",
    "rolled_back": "look", "superseded": "look",
}  # fmt: skip
TOLD = ("train_failed", "gate_refused", "canary_began", "promoted", "withdrawn", "rolled_back", "refused", "superseded")
SET_ASIDE = ("withdrawn", "rolled_back")  # what was learnt then is not learnt again
ATTEMPTS = 3
Now = Callable[[], datetime]


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Place:
    """Where the watcher keeps its own things, where traffic is captured, and what its newest dataset is."""

    folder: Path
    captured: Path
    training_rows: Callable[[], list[tuple[str, str]]]

    def intake(self, cycle: int) -> Path:
        return self.folder / f"intake-{cycle:04d}"

    def refused(self, number: int) -> Path:
        return self.folder / f"refused-{number:04d}"


class Watcher:
    """One recipe's loop. `step` does the next thing and says whether there may be more to do at once."""

    def __init__(
        self, task: Task, settings: WatchSettings, place: Place, rollout: Rollout, train: Train, now: Now = utc_now
    ) -> None:
        self.task, self.settings, self.place = task, settings, place
        self.rollout, self.train, self.now = rollout, train, now
        self.journal = Journal(place.folder / "journal.jsonl")

    def step(self) -> bool:
        last = self.journal.newest(*NEXT)
        deed: Callable[[Entry | None], bool] = getattr(self, f"_{NEXT[last.kind] if last else 'look'}")
        return deed(last)

    def run_once(self) -> Entry | None:
        """Steps until nothing more can be done now; returns the newest entry."""
        while self.step():
            pass
        return self.journal.last

    def _write(
        self, kind: str, cycle: int, reason: str, *, inputs: dict[str, str] | None = None, figures: Json | None = None
    ) -> Entry:
        made = self.journal.append(kind, cycle, reason, inputs=inputs, figures=figures)
        say(f"watch: {kind}: {reason}")
        if kind in TOLD:
            told = {"cycle": cycle, "reason": reason, "figures": made.figures, "inputs": dict(made.inputs)}
            send_all(self.settings.webhooks, f"watch.{kind}", told)
        return made

    def _wait(self, reason: str, figures: Json | None = None) -> bool:
        """Nothing is done; said once for each reason."""
        last = self.journal.last
        if last is None or last.kind != "waiting" or last.reason != reason:
            self.journal.append("waiting", self._cycle(), reason, figures=figures)
            say(f"watch: waiting: {reason}")
        return False

    def _cycle(self) -> int:
        return max((each.cycle for each in self.journal.entries), default=0)

    # Looking for a reason to train

    def _look(self, _: Entry | None) -> bool:
        champion = self.rollout.standing().champion
        if champion is None:
            return self._wait("no version is champion yet: promote one first")
        exchanges = captured_exchanges(self.place.captured) if self.place.captured.is_dir() else []
        intake = self._intake(exchanges)
        if intake.screened.refused:
            return self._refuse(intake)
        drifted = self._drifted(champion, exchanges) if self.settings.on_drift else []
        why = self._reason(intake, drifted)
        counts: Json = {**intake.figures(), "drifted": drifted}
        if why is None:
            return self._wait("too little is new and nothing has drifted", counts)
        if len(intake.rows) < self.settings.least_rows:
            return self._wait("there is a reason to train, but too few new rows (watch.least_rows)", counts)
        if (held_up := self._held_up()) is not None:
            return self._wait(held_up, counts)
        cycle = self._cycle() + 1
        digest = write_intake(self.place.intake(cycle), intake)
        inputs = {"rows": digest, "champion": self.rollout.artifact(champion)}
        self._write("intake", cycle, why, inputs=inputs, figures={**counts, "champion": champion})
        return True

    def _intake(self, exchanges: list[Exchange]) -> Intake:
        folders = [*self.place.folder.glob("intake-*"), *self.place.folder.glob("refused-*")]
        done = {self.place.intake(each.cycle) for each in self.journal.entries if each.kind == "intake"}
        kept = [each for each in folders if each.name.startswith("refused-") or each in done]
        keys = feedback_keys(self.place.captured)
        new = new_of(exchanges, self.task, looked_at(kept), keys, large_answers=self.settings.large_answers)
        training = self.place.training_rows() if new else []
        return take(new, self.task, training, self.settings, refused_earlier(self.place.folder.glob("refused-*")))

    def _refuse(self, intake: Intake) -> bool:
        """Put what was refused where it is not looked at again, and name whose it was."""
        folder = self.place.refused(len(self.journal.entries) + 1)
        digest = write_intake(folder, replace(intake, rows=(), looked_at=tuple(intake.screened.refused)))
        keys = [each["key"] for each in intake.screened.keys if each["refused"]]
        reasons = f"{len(intake.screened.refused)} corrections refused"
        named = f"; every one of {', '.join(keys)}: they disagree with all others more than chance" if keys else ""
        counts = {"keys": intake.screened.keys, "refused": len(intake.screened.refused), "list": folder.name}
        self._write("refused", self._cycle(), reasons + named, inputs={"list": digest}, figures=counts)
        return True

    def _drifted(self, champion: str, exchanges: list[Exchange]) -> list[str]:
        try:
            of = watched(self.rollout.folder(champion))
        except PotstillError as fault:
            say(f"watch: drift is not looked at: {fault}")
            return []
        own = [each for each in exchanges if each.metadata.get("artifact") == of.digest]
        return list(figures(of, own, self.settings.drift)["drifted"])

    def _reason(self, intake: Intake, drifted: list[str]) -> str | None:
        enough = self.settings.new_feedback
        if enough is not None and intake.opinions >= enough:
            return f"{intake.opinions} new opinions of people, {enough} are enough (watch.new_feedback)"
        return f"drift: {', '.join(drifted)}" if drifted else None

    def _held_up(self) -> str | None:
        """What forbids a training now: the day's budget, quiet hours, the disk."""
        now = self.now()
        began = [each for each in self.journal.entries if each.kind == "intake"]
        today = sum(now - each.moment < timedelta(days=1) for each in began)
        if today >= self.settings.most_per_day:
            return f"{today} trainings in 24 hours, no more are allowed (watch.most_per_day)"
        if self.settings.quiet is not None and _within(now, self.settings.quiet):
            return f"quiet hours {self.settings.quiet} UTC (watch.quiet)"
        free = shutil.disk_usage(self.place.folder).free / 1e9
        if free < self.settings.free_gb:
            return f"{free:.1f} GB of the disk are free, expected {self.settings.free_gb:g} (watch.free_gb)"
        return None

    # Training

    def _train(self, last: Entry | None) -> bool:
        assert last is not None
        cycle = last.cycle
        before = sum(each.kind == "train" and each.cycle == cycle for each in self.journal.entries)
        if before >= ATTEMPTS:
            self._write("train_failed", cycle, f"begun {before} times and never ended")
            return True
        files = self._files(cycle)
        what = f"potstill run, with {len(files)} batches of new traffic"
        self._write("train", cycle, what, figures={"attempt": before + 1})
        ended = self.train(files, self.settings.longest_train_h * 3600)
        if ended.fault is not None:
            self._write("train_failed", cycle, ended.fault)
            return True
        version, artifact = str(ended.told["version"]["version"]), str(ended.told["artifact"]["digest"])
        told: Json = {"version": version, "gate": ended.told.get("gate")}
        inputs = {noun: str(ended.told[noun]["digest"]) for noun in ("dataset", "adapter", "artifact", "report")}
        if ended.gate_refused:
            self._write("gate_refused", cycle, f"version {version} did not pass its gate", inputs=inputs, figures=told)
        elif artifact[:12] == self._artifact_of_champion():
            self._write("train_failed", cycle, f"version {version} is what the champion serves", inputs=inputs)
        else:
            self._write("trained", cycle, f"version {version} passed its gate", inputs=inputs, figures=told)
        return True

    def _files(self, cycle: int) -> list[Path]:
        """The rows of every batch that was learnt from or is to be; those that made things worse are left out."""
        aside = {each.cycle for each in self.journal.entries if each.kind in SET_ASIDE and each.figures.get("worse")}
        begun = [each.cycle for each in self.journal.entries if each.kind == "intake" and each.cycle not in aside]
        return [next(self.place.intake(each).glob("exchanges-*.jsonl")) for each in begun if each <= cycle]

    def _artifact_of_champion(self) -> str:
        champion = self.rollout.standing().champion
        return self.rollout.artifact(champion) if champion is not None else ""

    # Before people: the canary, the champion, and back

    def _begin_canary(self, last: Entry | None) -> bool:
        assert last is not None
        champion = self.rollout.standing().champion
        if last.kind == "trained":
            if champion is None:
                return self._supersede(last, "there is no champion any more")
            figures = {"version": last.figures["version"], "champion": champion, "share": self.settings.canary.share}
            what = f"version {last.figures['version']} beside {champion}"
            last = self._write("canary", last.cycle, what, figures=figures)
        if champion != last.figures["champion"]:
            return self._supersede(last, f"somebody made {champion} champion")
        self.rollout.canary(last.figures["version"], self.settings.canary.share)
        what = f"version {last.figures['version']} answers a share"
        self._write("canary_began", last.cycle, what, figures=last.figures)
        return True

    def _judge_canary(self, last: Entry | None) -> bool:
        assert last is not None
        version, champion = last.figures["version"], last.figures["champion"]
        standing = self.rollout.standing()
        if standing.champion != champion:
            return self._supersede(last, f"somebody made {standing.champion} champion")
        if standing.challenger != version:
            return self._supersede(last, f"somebody took the share away from version {version}")
        word, told = self._verdict(version, champion, last.moment)
        few = min(told["version"]["judged"], told["champion"]["judged"]) < self.settings.canary.least_opinions
        figures = {**last.figures, "live": told}
        if word == "not_worse" and not few:
            why = f"version {version} is not worse than {champion} live: {_words(told)}"
            self._write("promote", last.cycle, why, figures=figures)
            return True
        if word == "worse" and not few:
            self._write("withdraw", last.cycle, f"worse live: {_words(told)}", figures={**figures, "worse": True})
            return True
        if self.now() - last.moment > timedelta(hours=self.settings.canary.longest_h):
            why = f"undecided after {self.settings.canary.longest_h:g} h: {_words(told)}"
            self._write("withdraw", last.cycle, why, figures={**figures, "worse": False})
            return True
        return self._wait(f"version {version} is being tried beside {champion}", told)

    def _promote(self, last: Entry | None) -> bool:
        assert last is not None
        version, champion, token = last.figures["version"], last.figures["champion"], _token(last)
        if not self.rollout.moved(token):
            try:
                self.rollout.promote(version, expect=champion, why=f"{last.reason} {token}")
            except GateRefused as fault:
                return self._supersede(last, f"the registry refuses it: {'; '.join(fault.reasons)}")
            except PotstillError as fault:
                return self._supersede(last, str(fault))
        what = f"version {version} is champion, {champion} stays ready"
        self._write("promoted", last.cycle, what, figures=last.figures)
        return True

    def _hold(self, last: Entry | None) -> bool:
        """The version before keeps the share for a while, so that a worse score is seen against its own day."""
        assert last is not None
        version, before = last.figures["version"], last.figures["champion"]
        standing = self.rollout.standing()
        if standing.champion != version:
            return self._supersede(last, f"somebody made {standing.champion} champion")
        over = self.now() - last.moment > timedelta(hours=self.settings.canary.hold_h)
        self.rollout.canary(None if over else before, self.settings.canary.share)
        word, told = self._verdict(version, before, last.moment)
        few = min(told["version"]["judged"], told["champion"]["judged"]) < self.settings.canary.least_opinions
        if word == "worse" and not few:
            figures = {**last.figures, "live": told, "worse": True}
            self._write("rollback", last.cycle, f"worse live than {before}: {_words(told)}", figures=figures)
            return True
        if over:
            self._write("held", last.cycle, f"version {version} stays champion: {_words(told)}", figures=last.figures)
            return True
        return self._wait(f"version {version} is champion, {before} keeps a share to compare with", told)

    def _roll_back(self, last: Entry | None) -> bool:
        assert last is not None
        version, token = last.figures["version"], _token(last)
        if not self.rollout.moved(token):
            try:
                self.rollout.rollback(expect=version, why=f"{last.reason} {token}")
            except PotstillError as fault:
                return self._supersede(last, str(fault))
        self.rollout.canary(None, 0.0)
        back = last.figures["champion"]
        self._write("rolled_back", last.cycle, f"{back} is champion again: {last.reason}", figures=last.figures)
        return True

    def _withdraw(self, last: Entry | None) -> bool:
        assert last is not None
        self.rollout.canary(None, 0.0)
        self._write("withdrawn", last.cycle, last.reason, figures=last.figures)
        return True

    def _supersede(self, last: Entry, why: str) -> bool:
        """Somebody else acts: their word counts; what was under way is given up, the share taken back."""
        if self.rollout.standing().challenger in (last.figures.get("version"), last.figures.get("champion")):
            self.rollout.canary(None, 0.0)
        self._write("superseded", last.cycle, why, figures=last.figures)
        return True

    def _verdict(self, version: str, other: str, since: datetime) -> tuple[str, Json]:
        """How the version stands live against the other since a moment."""
        first, second = self.rollout.artifact(version), self.rollout.artifact(other)
        exchanges = captured_exchanges(self.place.captured) if self.place.captured.is_dir() else []
        keys = feedback_keys(self.place.captured)
        found = live_scores(exchanges, self.task, (first, second), since, keys, self.settings.poison)
        canary = self.settings.canary
        word, low, high = verdict(found[first], found[second], canary.margin, canary.alpha)
        told = {"version": _told(found[first]), "champion": _told(found[second])}
        return word, {**told, "low": round(low, 4), "high": round(high, 4), "margin": canary.margin}


def _token(entry: Entry) -> str:
    """What a move is known by: its cycle, its entry and when that was written."""
    return f"[watch {entry.cycle}.{entry.number} {entry.at}]"


def _told(share: Share) -> Json:
    return {"right": share.right, "judged": share.judged}


def _words(told: Json) -> str:
    first, second = told["version"], told["champion"]
    return (
        f"{first['right']} of {first['judged']} right against {second['right']} of {second['judged']}, "
        f"difference [{told['low']:+.3f}, {told['high']:+.3f}]"
    )


def _within(now: datetime, span: str) -> bool:
    """Whether a moment lies in a span of the day, which may go over midnight."""
    begin, end = span.split("-")
    clock = now.astimezone(UTC).strftime("%H:%M")
    return begin <= clock < end if begin <= end else clock >= begin or clock < end

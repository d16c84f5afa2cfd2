"""The journal of a registered model: every move of `champion` in one order that all readers agree on.

MLflow's registry has no compare-and-set: an alias is overwritten whatever it was. What it does enforce is that the
versions of a registered model are numbered by a unique key, each made whole (tags included) in one transaction, and
that no number is given twice. So a move is first appended as a version of the model `NAME.history`. Each entry names
the entry that its author saw last; the first that names the one that stands is accepted and stands from then on, any
other is refused. Entry N is visible only when all before it are, so everybody who reads up to N judges N alike, and a
move has happened exactly when its entry is there: there is no lock that a killed process could leave behind.

Aliases only follow the journal (`tracking_moves.settle`). They may lag behind it while a move is under way or after a
kill; Potstill itself goes by the journal.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from potstill.errors import PotstillError
from potstill.tracking import Tracking, client

ENDING = ".history"
SOURCE = "potstill:/history"  # MLflow asks every version for a source; an entry holds no files
MOVE, SETTLED = "potstill.move", "potstill.settled"
FOREIGN = json.dumps(
    {"action": "promote", "version": None, "before": None, "previous": None, "by": "somebody", "parent": -1,
     "why": "made in MLflow, not by Potstill", "under": 0, "born": 0}
)  # fmt: skip
PAGE = 20  # entries read at once when looking for the one that stands
WHOLE = 1000
PATIENCE_S = 30.0  # how long a busy database is asked again
BUSY = ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "RESOURCE_CONFLICT", "ABORTED")
Action = Literal["promote", "rollback", "prune"]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry, and how the model stands after it if it is accepted.

    `parent` is the entry that its author saw standing (0: none). `under` is the entry whose state a rollback returns
    to (0: none): its `version` is this one's `previous`. `born` is the registered model's creation time, so that a
    model deleted and made anew does not inherit champions. `found` is where the alias `champion` pointed when it was
    somewhere else than the journal says. `pruned` lists the versions whose files this entry gives up.
    """

    action: Action
    version: str | None
    before: str | None
    previous: str | None
    by: str
    why: str
    parent: int
    under: int
    born: int
    nonce: str = ""
    found: str | None = None
    pruned: tuple[str, ...] = ()
    number: int = 0
    at: str = ""
    accepted: bool = False
    settled: bool = False

    def told(self) -> str:
        """The entry as a sentence: who did what, when and why."""
        what = {
            "promote": f"made version {self.version} champion",
            "rollback": f"rolled back to version {self.version}",
            "prune": f"gave up the files of {', '.join(self.pruned)}",
        }[self.action]
        return f"{self.by} {what} at {self.at} ({self.why!r}, entry {self.number})"


_NOT_STORED = ("number", "at", "accepted", "settled")


def patiently(call: Callable[[], Result]) -> Result:
    """What `call` gives; asked again, with growing rests, while the database is busy with somebody else.

    For calls that may safely happen twice. Other faults are raised at once.
    """
    from mlflow.exceptions import MlflowException

    until = time.monotonic() + PATIENCE_S
    rest = 0.05
    while True:
        try:
            return call()
        except MlflowException as fault:
            if fault.error_code not in BUSY or time.monotonic() > until:
                raise
        time.sleep(rest * random.uniform(0.5, 1.5))
        rest = min(2.0, 2 * rest)


def entries(tracking: Tracking, model: str) -> list[Entry]:
    """The whole journal, oldest first, each entry judged from the first one on; empty when there is none.

    Raises PotstillError when an entry in between is gone: MLflow never leaves a number out, so somebody deleted it.
    """
    found = _pages(tracking, model, WHOLE, enough=lambda page: False)
    gone = sorted(set(range(1, found[-1].number + 1 if found else 1)) - {each.number for each in found})
    if gone:
        raise PotstillError(
            f"{model}{ENDING}: entries {gone} are gone, expected 1 to {found[-1].number} without a gap: somebody "
            "deleted them in MLflow; restore that database from a backup, since nothing else knows what they said"
        )
    return judged(found, 0)


def judged(found: Iterable[Entry], standing: int) -> list[Entry]:
    """Entries (oldest first) with `accepted` decided: each must name the one that stood when it came."""
    out = []
    for each in found:
        accepted = each.parent == standing
        standing = each.number if accepted else standing
        out.append(replace(each, accepted=accepted))
    return out


def last_accepted(tracking: Tracking, model: str) -> Entry | None:
    """The entry that stands; None for a model that nobody has moved. Reads a page, not the whole journal.

    Who finishes a move marks its entry, so judging can start there. `settled` says that it is so marked.
    """
    found = _pages(tracking, model, PAGE, enough=lambda page: any(each.accepted for each in page))
    marked = max((at for at, each in enumerate(found) if each.accepted), default=None)
    if marked is None:
        return next((each for each in reversed(judged(found, 0)) if each.accepted), None)
    later = [each for each in judged(found[marked + 1 :], found[marked].number) if each.accepted]
    return later[-1] if later else found[marked]


def entry(tracking: Tracking, model: str, number: int) -> Entry:
    """One entry by its number."""
    return _entry(tracking, patiently(lambda: client(tracking).get_model_version(model + ENDING, str(number))))


def _pages(tracking: Tracking, model: str, size: int, enough: Callable[[Sequence[Entry]], bool]) -> list[Entry]:
    """Entries from the newest page back to the one that is enough, oldest first."""
    api, token = client(tracking), None
    found: dict[int, Entry] = {}
    while True:
        page = patiently(
            lambda token=token: api.search_model_versions(  # type: ignore[misc]
                f"name = '{model}{ENDING}'", max_results=size, order_by=["version_number DESC"], page_token=token
            )
        )
        read = [_entry(tracking, each) for each in page]
        found |= {each.number: each for each in read}  # a page is an offset: new entries shift it, by repeating some
        token = page.token
        if not token or enough(read):
            return [found[number] for number in sorted(found)]


def _entry(tracking: Tracking, version: Any) -> Entry:
    """One version as an entry. One without a move in it is read once more by itself.

    MLflow reads a page and then, limited anew, the tags of a page: an entry that comes in between takes the tags of
    the oldest one away. What has no move even then was made by somebody else and is never accepted.
    """
    if MOVE not in version.tags:
        version = patiently(lambda: client(tracking).get_model_version(version.name, str(version.version)))
    known = {each.name for each in fields(Entry)}
    stored = {key: value for key, value in json.loads(version.tags.get(MOVE, FOREIGN)).items() if key in known}
    stored["pruned"] = tuple(stored.get("pruned") or ())
    at = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="milliseconds")
    settled = SETTLED in version.tags
    return Entry(**stored, accepted=settled, settled=settled, number=int(version.version), at=at)


def append(tracking: Tracking, model: str, draft: Entry) -> Entry:
    """The entry as accepted; raises PotstillError, saying who was first, when another stands in its place.

    An answer that got lost is looked for by the entry's nonce, so that a move is made once however often it is sent.
    """
    draft = replace(draft, nonce=uuid.uuid4().hex)
    stored = {key: value for key, value in asdict(draft).items() if key not in _NOT_STORED}
    _send(tracking, model, draft, json.dumps(stored, ensure_ascii=False))
    since = _since(tracking, model, draft.parent)
    ours = next((each for each in since if each.nonce == draft.nonce and each.accepted), None)
    if ours is not None:
        return ours
    first = next((each for each in since if each.accepted), None)
    raise overtaken(model, draft.action, first)


def overtaken(model: str, action: str, first: Entry | None) -> PotstillError:
    """What the slower of two people is told."""
    who = first.told() if first is not None else "the journal does not say who"
    return PotstillError(
        f"{model}: this {action} was refused and has changed nothing: somebody else moved first: {who}; look at "
        f"`potstill history {model}` and decide again"
    )


def _since(tracking: Tracking, model: str, parent: int) -> list[Entry]:
    """The entries after `parent`, judged by it."""
    found = _pages(tracking, model, PAGE, enough=lambda page: any(each.number <= parent for each in page))
    return judged((each for each in found if each.number > parent), parent)


def _send(tracking: Tracking, model: str, draft: Entry, stored: str) -> None:
    """Append, making the journal where there is none; sent again only when the entry is not there."""
    from mlflow.exceptions import MlflowException

    api = client(tracking)
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            api.create_model_version(
                model + ENDING, SOURCE, tags={MOVE: stored}, description=_description(draft), await_creation_for=None
            )
            return
        except MlflowException as fault:
            if time.monotonic() > until:
                raise
            if fault.error_code == "RESOURCE_DOES_NOT_EXIST":
                _make(tracking, model)
                continue
            if fault.error_code not in BUSY:
                raise
        time.sleep(random.uniform(0.05, 0.3))
        if any(each.nonce == draft.nonce for each in _since(tracking, model, draft.parent)):
            return


def _make(tracking: Tracking, model: str) -> None:
    from mlflow.exceptions import MlflowException

    about = f"Who moved the champion of {model}, when and why; `potstill history {model}` reads it. Delete nothing."
    try:
        client(tracking).create_registered_model(model + ENDING, tags={"potstill.journal_of": model}, description=about)
    except MlflowException as fault:
        if fault.error_code not in ("RESOURCE_ALREADY_EXISTS", *BUSY):
            raise


def _description(draft: Entry) -> str:
    """What MLflow's own pages show of an entry."""
    return f"{draft.action} {draft.before or 'nothing'} -> {draft.version or 'nothing'}, {draft.by}: {draft.why}"[:4000]


def mark_settled(tracking: Tracking, model: str, entry: Entry) -> None:
    """Note that the aliases follow this entry."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    patiently(lambda: client(tracking).set_model_version_tag(model + ENDING, str(entry.number), SETTLED, now))

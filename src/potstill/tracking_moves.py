"""Moving `champion`: promote and rollback as compare-and-set, the aliases that follow, and the history.

A move is one entry of the model's journal (`tracking_journal`): it has happened when the entry is accepted, and not
before. Then the aliases `previous` and `champion` are written. Whoever is killed in between leaves a move that the
next one to move anything finishes first; Potstill's own readers go by the journal and see it finished already.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from potstill.errors import GateRefused, PotstillError, RecipeError
from potstill.progress import say
from potstill.tracking import Tracking, client
from potstill.tracking_journal import (
    ENDING,
    Action,
    Entry,
    append,
    entries,
    entry,
    last_accepted,
    mark_settled,
    overtaken,
    patiently,
)
from potstill.tracking_versions import (
    CANDIDATE,
    CHAMPION,
    PREVIOUS,
    PRUNED,
    find_version,
    refusals,
    resolve_model_uri,
    stored_aliases,
)

WHY_CHARACTERS = 2000
SETTLINGS = 50  # times that somebody else may move champion while the aliases are being written


@dataclass(frozen=True, slots=True)
class Move:
    """One line of the history: who did what to `champion`, when (ISO 8601, UTC, MLflow's clock), and why.

    `version` is champion after it, `before` was champion before. `entry` counts the journal's entries, refused ones
    included. `found` is where the alias was if somebody had moved it outside Potstill. `pruned`: versions whose files
    were given up.
    """

    action: Action
    version: str | None
    before: str | None
    by: str
    why: str
    at: str = ""
    entry: int = 0
    accepted: bool = True
    found: str | None = None
    pruned: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Standing:
    """How a model stands: the entry that says so (None: nobody has moved anything) and the aliases that follow."""

    entry: Entry | None
    champion: str | None
    previous: str | None
    born: int
    parent: int
    found: str | None = None


def standing(tracking: Tracking, model: str) -> Standing:
    """How the model stands by its journal; by its aliases where the journal knows nothing of this model yet."""
    last = last_accepted(tracking, model)
    for _ in range(SETTLINGS):
        stored, born = stored_aliases(tracking, model)
        if last is None or last.born != born:
            return Standing(None, stored.get(CHAMPION), stored.get(PREVIOUS), born, last.number if last else 0)
        if not last.settled or stored.get(CHAMPION) == last.version:
            return Standing(last, last.version, last.previous, born, last.number)
        now = last_accepted(tracking, model)
        if now is not None and now.number == last.number:  # nobody is moving it, and yet it is elsewhere
            return Standing(last, last.version, last.previous, born, last.number, stored.get(CHAMPION) or "none")
        last = now
    raise PotstillError(f"{model}: others moved champion {SETTLINGS} times while it was looked at; try again")


def promote(
    tracking: Tracking, model: str, version: str | None = None, *, by: str, why: str, expect: str | None = None
) -> Move:
    """Make a version (default: the candidate) champion, the old champion `previous`.

    `expect` is the champion that the person saw when deciding (`none` for no champion). Raises GateRefused unless the
    report on that very artifact passed its gate, and PotstillError, saying who was first, when champion has moved since
    it was looked at. Promoting the champion again changes nothing but finishes a move that was cut off.
    """
    _short(why)
    seen = standing(tracking, model)
    _expected(model, seen, expect)
    wanted = find_version(tracking, f"models:/{model}/{version}" if version else f"models:/{model}@{CANDIDATE}")
    reasons = refusals(tracking, wanted)
    if reasons:
        raise GateRefused(f"{wanted.uri} was not promoted", reasons)
    if wanted.version == seen.champion:
        settle(tracking, model)
        last = (seen.entry.at, seen.entry.number) if seen.entry else ("", 0)
        return Move("promote", seen.champion, seen.champion, by, why, *last)
    under = seen.entry.number if seen.entry else 0
    return _move(tracking, model, seen, "promote", wanted.version, seen.champion, under, by, why)


def rollback(tracking: Tracking, model: str, *, by: str, why: str, expect: str | None = None) -> Move:
    """Make `previous` champion again, and its own predecessor `previous`; undoes the last promotion.

    The version left behind keeps its number. Raises PotstillError when there is nothing to go back to or somebody else
    was first, and ManifestMismatch when the earlier version's files have been damaged since. A move that was cut off
    is finished, and nothing more done: who asks again may not know that the first time had gone through.
    """
    _short(why)
    seen = standing(tracking, model)
    _expected(model, seen, expect)
    if seen.entry is not None and not seen.entry.settled and seen.entry.action != "prune":
        settle(tracking, model)
        raise PotstillError(
            f"{model}: a move was under way or had been cut off, and is finished now: {seen.entry.told()}; nothing "
            "else was changed; roll back again if you want to go further back"
        )
    if seen.champion is None or seen.previous is None:
        raise PotstillError(f"{model}: found no `{PREVIOUS}` version, so nothing to roll back to; promote another")
    resolve_model_uri(tracking, f"models:/{model}/{seen.previous}")
    previous, under = _behind(tracking, model, seen)
    return _move(tracking, model, seen, "rollback", seen.previous, previous, under, by, why)


def _behind(tracking: Tracking, model: str, seen: Standing) -> tuple[str | None, int]:
    """The version that was champion before `previous` was, and the entry with its state; pruned ones left out."""
    under = seen.entry.under if seen.entry else 0
    while under:
        state = entry(tracking, model, under)
        if state.born != seen.born or state.previous is None:
            return None, 0
        if PRUNED not in find_version(tracking, f"models:/{model}/{state.previous}").tags:
            return state.previous, state.under
        under = state.under
    return None, 0


def _move(
    tracking: Tracking, model: str, seen: Standing, action: Action, version: str, previous: str | None, under: int,
    by: str, why: str,
) -> Move:  # fmt: skip
    """Append the move, unless the model stands otherwise than it was seen to, and let the aliases follow."""
    now = standing(tracking, model)
    if now.parent != seen.parent and now.entry is not None:
        raise overtaken(model, action, now.entry)
    if now.champion != seen.champion or now.found != seen.found:
        raise PotstillError(
            f"{model}: somebody else moved `{CHAMPION}` outside Potstill before this change: found version "
            f"{now.found or now.champion or 'none'}, expected {seen.found or seen.champion or 'none'}; look and decide "
            "again"
        )
    draft = Entry(action, version, seen.champion, previous, by, why, seen.parent, under, seen.born, found=seen.found)
    with _allowed(model):
        made = append(tracking, model, draft)
        settle(tracking, model, made)
    return _as_move(made)


def give_up(tracking: Tracking, model: str, versions: tuple[str, ...], seen: Standing, *, by: str, why: str) -> None:
    """Enter into the journal that these versions' files go; raises PotstillError when champion moved meanwhile."""
    under = seen.entry.under if seen.entry else 0
    draft = Entry(
        "prune", seen.champion, seen.champion, seen.previous, by, why, seen.parent, under, seen.born, pruned=versions
    )
    with _allowed(model):
        settle(tracking, model, append(tracking, model, draft))


def settle(tracking: Tracking, model: str, last: Entry | None = None) -> None:
    """Let the aliases follow the journal, whoever wrote its last entry (`last`, where it was just read).

    `previous` first: stopped in between, the alias that a rollback by hand would use goes no further back than it
    should. Looked at again afterwards: who writes late writes what stands by then.
    """
    last = last or last_accepted(tracking, model)
    for _ in range(SETTLINGS):
        stored, born = stored_aliases(tracking, model)
        if last is None or last.born != born:
            return
        for alias, version in ((PREVIOUS, last.previous), (CHAMPION, last.version)):
            if stored.get(alias) != version:
                patiently(lambda alias=alias, version=version: _write_alias(tracking, model, alias, version))  # type: ignore[misc]
        now = last_accepted(tracking, model)
        if now is not None and now.number == last.number:
            if not last.settled:
                mark_settled(tracking, model, last)
            return
        last = now
    raise PotstillError(f"{model}: others moved champion {SETTLINGS} times while its aliases were written; try again")


def _write_alias(tracking: Tracking, model: str, alias: str, version: str | None) -> None:
    from mlflow.exceptions import MlflowException

    api = client(tracking)
    if version is None:
        api.delete_registered_model_alias(model, alias)
        return
    try:
        api.set_registered_model_alias(model, alias, version)
    except MlflowException as fault:
        if fault.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        say(f"{model}: version {version} was deleted in MLflow, so `{alias}` points nowhere")
        api.delete_registered_model_alias(model, alias)


def history(tracking: Tracking, model: str, *, refused: bool = False) -> list[Move]:
    """Every change of champion, oldest first; with `refused` also the moves of those who came second."""
    stored_aliases(tracking, model)
    return [_as_move(each) for each in entries(tracking, model) if each.accepted or refused]


def _as_move(made: Entry) -> Move:
    return Move(
        made.action, made.version, made.before, made.by, made.why, made.at, made.number, made.accepted, made.found,
        made.pruned,
    )  # fmt: skip


def _expected(model: str, seen: Standing, expect: str | None) -> None:
    if expect is None or expect == (seen.champion or "none"):
        return
    who = f"; {seen.entry.told()}" if seen.entry is not None else ""
    raise PotstillError(
        f"{model}: found version {seen.champion or 'none'} as `{CHAMPION}`, expected {expect}{who}; nothing was changed"
    )


@contextmanager
def _allowed(model: str) -> Iterator[None]:
    """Turn a server's 'permission denied' into a sentence that says which permission is missing."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as fault:
        if fault.error_code != "PERMISSION_DENIED" and "Permission denied" not in str(fault):
            raise
        raise PotstillError(
            f"{model}: this MLflow user may not move it; an administrator has to give EDIT on the registered models "
            f"{model} and {model}{ENDING} (once that exists)"
        ) from fault


def _short(why: str) -> None:
    if len(why) > WHY_CHARACTERS:
        raise RecipeError([f"--why: {len(why)} characters, expected at most {WHY_CHARACTERS}"])

"""Promote and rollback as compare-and-set: races, deaths in between, moves made elsewhere, and the history."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest

from potstill import cli
from potstill.errors import PotstillError, RecipeError
from potstill.tracking import client, default_uri, open_tracking
from potstill.tracking_journal import ENDING, last_accepted
from potstill.tracking_moves import history, promote, rollback
from potstill.tracking_versions import aliases, find_version
from tests.racing import assert_whole, check_race, outcomes, race
from tests.stages.registry_workshop import Workshop

WRITES = (
    "create_model_version",
    "create_registered_model",
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_model_version_tag",
)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    work = tmp_path_factory.mktemp("work")
    return Workshop(work, open_tracking(default_uri(work)))


def stored(workshop: Workshop, model: str) -> dict[str, str]:
    """The aliases as MLflow itself has them, `candidate` left out."""
    found = client(workshop.tracking).get_registered_model(model).aliases
    return {alias: str(version) for alias, version in found.items() if alias != "candidate"}


def settled(workshop: Workshop, model: str) -> bool:
    last = last_accepted(workshop.tracking, model)
    return last is not None and last.settled


def three_versions(workshop: Workshop, model: str) -> None:
    """Versions 1 to 3, the second champion after the first."""
    for weights in (b"1", b"2", b"3"):
        workshop.version(model, weights)
    for version in ("1", "2"):
        promote(workshop.tracking, model, version, by="ann", why=f"version {version}")


def test_processes_that_promote_at_once_have_one_winner_and_the_others_are_told_who(workshop: Workshop) -> None:
    versions = [workshop.version("race", str(n).encode()) for n in range(1, 7)]
    promote(workshop.tracking, "race", "1", by="ann", why="the first")
    rounds = race(workshop.tracking.uri, "race", versions, racers=4, rounds=2, killed=0.0, seed=1)
    assert outcomes(rounds) == {"won": 2, "refused": 6}
    check_race(workshop.tracking, "race", rounds, before=1)


def test_killed_promoters_leave_nothing_half_done_behind(workshop: Workshop) -> None:
    versions = [workshop.version("killed", str(n).encode()) for n in range(1, 7)]
    promote(workshop.tracking, "killed", "1", by="ann", why="the first")
    rounds = race(workshop.tracking.uri, "killed", versions, racers=4, rounds=2, killed=0.7, seed=2)
    check_race(workshop.tracking, "killed", rounds, before=1)


def test_who_looked_before_somebody_else_moved_is_told_who_when_and_why(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_versions(workshop, "late")
    tracking = workshop.tracking

    def meanwhile(*_: object) -> list[str]:
        monkeypatch.undo()
        promote(tracking, "late", "3", by="bob", why="bob's reason")
        return []

    monkeypatch.setattr("potstill.tracking_moves.refusals", meanwhile)
    with pytest.raises(PotstillError, match=r"bob made version 3 champion at 20.*\"bob's reason\", entry 3"):
        promote(tracking, "late", "1", by="ann", why="the same moment")
    assert stored(workshop, "late") == {"champion": "3", "previous": "2"}
    assert [move.by for move in history(tracking, "late")] == ["ann", "ann", "bob"]


def test_expect_refuses_when_champion_is_not_what_the_person_saw(workshop: Workshop) -> None:
    three_versions(workshop, "expect")
    for move in (lambda: promote(workshop.tracking, "expect", "3", by="bob", why="x", expect="1"),
                 lambda: rollback(workshop.tracking, "expect", by="bob", why="x", expect="none")):  # fmt: skip
        with pytest.raises(PotstillError, match=r"found version 2 as `champion`, expected .*ann made version 2"):
            move()
    assert promote(workshop.tracking, "expect", "3", by="bob", why="x", expect="2").before == "2"


class Killed(BaseException):
    """The process is gone: nothing of it runs any more."""


@contextmanager
def dying_at(monkeypatch: pytest.MonkeyPatch, nth: int, *, done: bool) -> Iterator[list[str]]:
    """Die at the nth write to MLflow, before or after it is done; the list names the write that was met."""
    from mlflow import MlflowClient

    numbers, met = count(1), list[str]()

    def dying(name: str) -> Callable[..., Any]:
        real = getattr(MlflowClient, name)

        def call(*words: Any, **more: Any) -> Any:
            if next(numbers) != nth:
                return real(*words, **more)
            met.append(name)
            if done:
                real(*words, **more)
            raise Killed

        return call

    with monkeypatch.context() as patch:
        for name in WRITES:
            patch.setattr(MlflowClient, name, dying(name))
        yield met


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("action", ["promote", "rollback"])
def test_a_move_cut_off_at_any_write_is_whole_or_not_there_and_the_next_one_finishes_it(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, action: str, done: bool
) -> None:
    model, tracking = f"cut-{action}-{done}", workshop.tracking
    three_versions(workshop, model)
    moves: dict[str, Callable[[], object]] = {
        "promote": lambda: promote(tracking, model, "3", by="bob", why="forward"),
        "rollback": lambda: rollback(tracking, model, by="bob", why="back"),
    }
    states = [{"champion": "2", "previous": "1"}, {"champion": "3", "previous": "2"}]
    if action == "rollback":
        moves["promote"]()
        states.reverse()
    met_all = []
    for nth in range(1, 20):
        told = len(history(tracking, model))
        with dying_at(monkeypatch, nth, done=done) as met:
            try:
                moves[action]()
            except Killed:
                met_all += met
        after = {alias: version for alias, version in aliases(tracking, model).items() if alias != "candidate"}
        happened = len(history(tracking, model)) - told
        assert after == states[happened]
        if action == "rollback" and happened and not settled(workshop, model):
            with pytest.raises(PotstillError, match="finished now: bob rolled back to version 2"):
                moves[action]()  # a second one would go back too far
        elif action == "promote" or not happened:
            moves[action]()
        assert stored(workshop, model) == states[1]
        assert len(history(tracking, model)) == told + 1
        moves["rollback" if action == "promote" else "promote"]()
        if not met:
            break
    assert {"create_model_version", "set_registered_model_alias", "set_model_version_tag"} <= set(met_all)


def test_many_moves_stay_in_one_order_and_every_rollback_undoes_the_last_promotion(workshop: Workshop) -> None:
    three_versions(workshop, "cycles")
    tracking = workshop.tracking
    for number in range(8):
        promote(tracking, "cycles", "3", by="ann", why=f"cycle {number}")
        rollback(tracking, "cycles", by="bob", why=f"cycle {number}")
    told = history(tracking, "cycles")
    assert_whole(told)
    assert [(move.action, move.version, move.why) for move in told[2:]] == [
        entry
        for number in range(8)
        for entry in (("promote", "3", f"cycle {number}"), ("rollback", "2", f"cycle {number}"))
    ]
    assert stored(workshop, "cycles") == {"champion": "2", "previous": "1"}
    assert [move.at for move in told] == sorted(move.at for move in told)


def test_an_alias_moved_by_hand_is_not_believed_and_is_kept_in_the_history(workshop: Workshop) -> None:
    three_versions(workshop, "by-hand")
    client(workshop.tracking).set_registered_model_alias("by-hand", "champion", "3")
    assert find_version(workshop.tracking, "models:/by-hand@champion").version == "2"
    move = promote(workshop.tracking, "by-hand", "3", by="ann", why="now with its gate read")
    assert (move.before, move.version, move.found) == ("2", "3", "3")
    assert history(workshop.tracking, "by-hand")[-1].found == "3"


def test_a_model_deleted_and_made_anew_inherits_no_champion(workshop: Workshop) -> None:
    three_versions(workshop, "anew")
    client(workshop.tracking).delete_registered_model("anew")
    assert workshop.version("anew", b"9") == "1"
    assert aliases(workshop.tracking, "anew") == {"candidate": "1"}
    with pytest.raises(PotstillError, match="nothing to roll back to"):
        rollback(workshop.tracking, "anew", by="bob", why="x")
    assert promote(workshop.tracking, "anew", by="bob", why="x").before is None
    assert [move.by for move in history(workshop.tracking, "anew")] == ["ann", "ann", "bob"]


def test_an_entry_deleted_from_the_journal_is_noticed(workshop: Workshop) -> None:
    three_versions(workshop, "gap")
    promote(workshop.tracking, "gap", "3", by="ann", why="third")
    client(workshop.tracking).delete_model_version("gap" + ENDING, "2")
    with pytest.raises(PotstillError, match=r"entries \[2\] are gone"):
        history(workshop.tracking, "gap")


def test_a_version_made_by_hand_in_the_journal_is_no_move(workshop: Workshop) -> None:
    three_versions(workshop, "foreign")
    client(workshop.tracking).create_model_version("foreign" + ENDING, "potstill:/history")
    assert promote(workshop.tracking, "foreign", "3", by="ann", why="third").entry == 4
    assert [move.entry for move in history(workshop.tracking, "foreign")] == [1, 2, 4]
    assert [move.accepted for move in history(workshop.tracking, "foreign", refused=True)] == [True, True, False, True]


def test_a_page_whose_oldest_entry_came_without_its_tags_is_read_aright(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    three_versions(workshop, "torn")
    real = MlflowClient.search_model_versions

    def torn(*words: Any, **more: Any) -> Any:
        page = real(*words, **more)
        if len(page):
            page[-1]._tags = {}
        return page

    monkeypatch.setattr(MlflowClient, "search_model_versions", torn)
    assert [move.version for move in history(workshop.tracking, "torn")] == ["1", "2"]
    assert promote(workshop.tracking, "torn", "3", by="ann", why="third").before == "2"


def test_no_model_may_take_a_journals_name(workshop: Workshop) -> None:
    with pytest.raises(RecipeError, match="names that end in"):
        aliases(workshop.tracking, "x.history")


def test_history_command_prints_every_move_as_text_and_json(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    three_versions(workshop, "shown")
    rollback(workshop.tracking, "shown", by="bob", why="slow\nanswers")
    capsys.readouterr()
    where = ["--tracking-uri", workshop.tracking.uri]
    assert cli.main(["history", "shown", *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[-1].endswith("rollback  2 -> 1  bob: slow answers")
    assert cli.main(["history", "models:/shown@champion", "--json", *where]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(each["action"], each["by"], each["version"]) for each in found] == [
        ("promote", "ann", "1"),
        ("promote", "ann", "2"),
        ("rollback", "bob", "1"),
    ]

"""What the unattended loop promises: a reason for every deed, no deed twice, nobody's poison, and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import DamagedInput
from potstill.watching.journal import Journal
from potstill.watching.settings import ChallengerSettings, WatchSettings
from tests.unit.watch_place import World

CANARY = ChallengerSettings(margin=0.1, least_opinions=40, hold_h=2.0, longest_h=48.0)
SETTINGS = WatchSettings(new_feedback=200, least_rows=100, canary=CANARY, free_gb=0.0, on_drift=False)


def world(folder: Path, **changes: Any) -> World:
    return World(folder, SETTINGS.model_copy(update=changes))


def kinds(at: World) -> list[str]:
    found = Journal(at.folder / "watch" / "journal.jsonl").entries
    return [each.kind for each in found if each.kind != "waiting"]


def test_new_feedback_leads_to_training_canary_promotion_and_a_quiet_end(tmp_path: Path) -> None:
    at = world(tmp_path)
    at.answer(300, "1", right=0.8)
    watcher = at.watcher()
    watcher.run_once()
    assert kinds(at) == ["intake", "train", "trained", "canary", "canary_began"]
    assert at.rollout.standing().challenger == "2"
    at.answer(600, "2", right=0.92)
    at.answer(600, "1", right=0.80)
    watcher.run_once()
    assert kinds(at)[5:] == ["promote", "promoted"]
    assert (at.rollout.standing().champion, at.rollout.standing().challenger) == ("2", "1")
    at.hours = 3
    watcher.run_once()
    assert kinds(at)[7:] == ["held"]
    assert at.rollout.standing().challenger is None
    assert at.rollout.moves == ["2"]


def test_too_little_news_trains_nothing_and_says_so_once(tmp_path: Path) -> None:
    at = world(tmp_path)
    at.answer(50, "1")
    for _ in range(3):
        at.watcher().run_once()
    told = Journal(tmp_path / "watch" / "journal.jsonl").entries
    assert [each.kind for each in told] == ["waiting"]
    assert told[0].figures["rows"] == 50
    assert at.trainings == []


def test_a_gate_that_refuses_leaves_the_champion(tmp_path: Path) -> None:
    at = world(tmp_path)
    at.gate = False
    at.answer(300, "1")
    at.watcher().run_once()
    assert kinds(at) == ["intake", "train", "gate_refused"]
    assert at.rollout.moves == []


def test_a_worse_canary_is_withdrawn_and_what_it_learnt_set_aside(tmp_path: Path) -> None:
    at = world(tmp_path, most_per_day=5)
    at.answer(300, "1", right=0.9)
    at.watcher().run_once()
    at.answer(400, "2", right=0.5)
    at.answer(400, "1", right=0.9)
    at.watcher().run_once()
    assert kinds(at)[5:7] == ["withdraw", "withdrawn"]
    assert at.rollout.moves == []
    assert [len(each) for each in at.trainings] == [1, 1]  # the second training has the second batch alone


def test_a_champion_that_turns_out_worse_is_rolled_back(tmp_path: Path) -> None:
    at = world(tmp_path, most_per_day=1)
    at.answer(300, "1", right=0.8)
    at.watcher().run_once()
    at.answer(600, "2", right=0.9)
    at.answer(600, "1", right=0.8)
    at.watcher().run_once()
    assert at.rollout.standing().champion == "2"
    at.answer(300, "2", right=0.3)
    at.answer(300, "1", right=0.8)
    at.watcher().run_once()
    assert kinds(at)[7:] == ["rollback", "rolled_back"]
    assert at.rollout.standing().champion == "1"
    assert at.rollout.moves == ["2", "1"]
    assert at.rollout.standing().challenger is None


def test_an_undecided_canary_does_not_stay_for_ever(tmp_path: Path) -> None:
    at = world(tmp_path)
    at.answer(300, "1")
    at.watcher().run_once()
    at.hours = 49
    at.watcher().run_once()
    assert kinds(at)[5:] == ["withdraw", "withdrawn"]


def test_somebody_elses_promotion_counts_and_ends_the_canary(tmp_path: Path) -> None:
    at = world(tmp_path)
    at.answer(300, "1")
    at.watcher().run_once()
    at.rollout.promote("3", expect="1", why="by hand")
    at.watcher().run_once()
    assert kinds(at)[5:] == ["superseded"]
    assert at.rollout.standing().champion == "3"
    assert at.rollout.standing().challenger is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"quiet": "00:00-23:59"}, "quiet hours"), ({"free_gb": 1e9}, "GB of the disk"), ({"least_rows": 10_000}, "rows")],
)
def test_budgets_hold_a_training_up(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    at = world(tmp_path, **changes)
    at.answer(300, "1")
    last = at.watcher().run_once()
    assert last is not None
    assert last.kind == "waiting"
    assert reason in last.reason
    assert at.trainings == []


def test_a_second_training_on_the_same_day_waits_for_the_next(tmp_path: Path) -> None:
    at = world(tmp_path)
    at.gate = False
    at.answer(300, "1")
    at.watcher().run_once()
    at.answer(300, "1")
    last = at.watcher().run_once()
    assert last is not None
    assert "trainings in 24 hours" in last.reason
    at.hours = 25
    at.watcher().run_once()
    assert kinds(at).count("train") == 2


def test_flipped_corrections_of_one_key_are_refused_by_name_and_train_nothing(tmp_path: Path) -> None:
    at = world(tmp_path)
    at.answer(190, "1")
    at.answer(10, "1", key="mallory", flip=True)  # one in twenty
    at.watcher().run_once()
    refused = Journal(tmp_path / "watch" / "journal.jsonl").newest("refused")
    assert refused is not None
    assert "mallory" in refused.reason
    assert [each["key"] for each in refused.figures["keys"] if each["refused"]] == ["mallory"]
    assert kinds(at) == ["refused"]  # what is left is not enough to train on
    assert at.trainings == []
    assert at.rollout.standing().champion == "1"


def test_what_was_refused_is_in_no_later_batch(tmp_path: Path) -> None:
    at = world(tmp_path)
    at.answer(300, "1")
    at.answer(20, "1", key="mallory", flip=True)
    at.watcher().run_once()
    assert kinds(at)[:2] == ["refused", "intake"]
    rows = [json.loads(line) for line in at.trainings[0][0].read_text().splitlines()]
    assert len(rows) == 300
    assert all(each["feedback"][0]["value"] for each in rows)


def test_one_key_gives_no_more_than_its_share_of_what_is_learnt(tmp_path: Path) -> None:
    at = world(tmp_path)
    at.answer(200, "1")
    at.answer(200, "1", key="busy")
    at.watcher().run_once()
    intake = Journal(tmp_path / "watch" / "journal.jsonl").newest("intake")
    assert intake is not None
    assert intake.figures["over_the_cap"] == 200 - 22
    assert intake.figures["rows"] == 222  # 22 of them are one tenth


def test_one_key_alone_cannot_roll_back(tmp_path: Path) -> None:
    at = world(tmp_path)
    at.answer(300, "1", right=0.8)
    at.watcher().run_once()
    at.answer(600, "2", right=0.9)
    at.answer(600, "1", right=0.8)
    at.watcher().run_once()
    at.answer(300, "2", right=0.9)
    at.answer(300, "1", right=0.85)
    at.answer(3000, "2", right=0.0, key="mallory")
    at.watcher().run_once()
    assert at.rollout.standing().champion == "2"


def test_drift_is_a_reason_to_train(tmp_path: Path) -> None:
    at = world(tmp_path, on_drift=True, new_feedback=100_000)
    at.answer(300, "1")
    assert at.watcher().run_once().kind == "waiting"  # type: ignore[union-attr]
    rows = [json.loads(line) for path in at.captured.glob("exchanges-*") for line in path.read_text().splitlines()]
    for each in rows:
        each["id"] += "-long"
        each["request"]["messages"][0]["content"] += " and " * 300
    (at.captured / "exchanges-long.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    at.watcher().run_once()
    intake = Journal(tmp_path / "watch" / "journal.jsonl").newest("intake")
    assert intake is not None
    assert "length" in intake.figures["drifted"]


def test_a_journal_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    at = world(tmp_path)
    at.answer(300, "1")
    at.watcher().run_once()
    path = tmp_path / "watch" / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0].replace('"cycle": 1', '"cycle": 2'), *lines[1:]]))
    with pytest.raises(DamagedInput, match="lines were changed or are gone"):
        at.watcher()
    path.write_text("".join([lines[0], *lines[2:]]))
    with pytest.raises(DamagedInput):
        at.watcher()


def test_half_a_line_of_a_killed_watcher_is_cut_off(tmp_path: Path) -> None:
    at = world(tmp_path)
    at.answer(300, "1")
    at.watcher().run_once()
    path = tmp_path / "watch" / "journal.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"number": 99, "kind": "prom')
    assert at.watcher().journal.entries[-1].kind == "waiting"
    assert path.read_bytes() == whole


class Killed(BaseException):
    """The process is gone."""


def test_a_watcher_killed_at_any_point_goes_on_and_promotes_once(tmp_path: Path) -> None:
    """Dies at the n-th of all points (before and after every entry, move and training), for every n; then goes on."""

    def lived(folder: Path, dies_at: int) -> tuple[World, int]:
        passed = 0

        def point(_: str) -> None:
            nonlocal passed
            passed += 1
            if passed == dies_at:
                raise Killed

        at = World(folder, SETTINGS, point)
        at.answer(210, "1", right=0.8)
        for phase in range(4):
            for _ in range(3):
                try:
                    at.watcher().run_once()
                    break
                except Killed:
                    continue
            if phase == 0:
                at.answer(250, "2", right=0.96)
                at.answer(250, "1", right=0.80)
            if phase == 1:
                at.hours = 3
        return at, passed

    whole, points = lived(tmp_path / "whole", -1)
    assert whole.rollout.moves == ["2"]
    for dies_at in range(1, points + 1):
        at, _ = lived(tmp_path / str(dies_at), dies_at)
        assert at.rollout.moves == ["2"], dies_at
        done = kinds(at)
        assert done[-1] == "held", (dies_at, done)
        for once in ("intake", "trained", "canary_began", "promote", "promoted", "held"):
            assert done.count(once) == 1, (dies_at, done)
    assert points > 20

"""What the screen of corrections promises: poison is refused by name, honest keys are not, and nobody teaches alone."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from potstill.records import Exchange, Feedback, Json
from potstill.watching.caps import most_of_a_key
from potstill.watching.intake import Intake, feedback_keys, looked_at, new_of, refused_earlier, take, write_intake
from potstill.watching.opinions import judged_right
from potstill.watching.screen import Correction, screen
from potstill.watching.settings import PoisonSettings, WatchSettings
from tests.unit.watch_place import LABELS, exchange, task, text_of, training_rows

SETTINGS = PoisonSettings()


def corrections(count: int, keys: int, *, wrong: float, seed: int) -> list[Correction]:
    """Honest corrections, a share of them wrong all the same, given by so many keys."""
    draw = random.Random(seed)
    found = []
    for at in range(count):
        text, label = text_of(at * 7 + seed)
        wanted = draw.choice(LABELS) if draw.random() < wrong else label
        found.append(Correction(f"c{at}", f"key-{draw.randrange(keys)}", text, wanted, "card"))
    return found


def poisoned(count: int, name: str = "p") -> list[Correction]:
    """Wrong corrections, all by one key."""
    return [
        Correction(f"{name}{at}", "mallory", text_of(at)[0], LABELS[(LABELS.index(text_of(at)[1]) + 1) % 6], "card")
        for at in range(count)
    ]


def test_honest_keys_that_err_alike_are_hardly_ever_refused() -> None:
    refused = 0
    for seed in range(40):
        found = screen(corrections(300, 10, wrong=0.15, seed=seed), training_rows(), SETTINGS)
        refused += sum(each["refused"] for each in found.keys)
    assert refused <= 1  # 40 screens at one in a thousand each


@pytest.mark.parametrize("keys", [1, 3, 20])
def test_a_poisoner_is_refused_whole_however_many_others_there_are(keys: int) -> None:
    honest = corrections(190, keys, wrong=0.05, seed=1)
    poison = poisoned(10)
    found = screen([*honest, *poison], training_rows(), SETTINGS)
    assert [each["key"] for each in found.keys if each["refused"]] == ["mallory"]
    assert {each.id for each in poison} <= found.refused.keys()
    assert not {each.id for each in poison} & set(found.kept)


def test_a_poisoner_that_was_refused_cannot_begin_again_in_small_batches() -> None:
    honest = corrections(190, 5, wrong=0.05, seed=1)
    few = [*honest, *poisoned(3)]
    assert not screen(few, training_rows(), SETTINGS).refused  # three by themselves are too few to tell
    found = screen(few, training_rows(), SETTINGS, {"mallory": (6, 6), "who-is-away": (9, 9)})
    assert set(found.refused) == {"p0", "p1", "p2"}
    (line,) = [each for each in found.keys if each["key"] == "mallory"]
    assert (line["new"], line["corrections"], line["new_contradict"]) == (3, 9, 3)


def test_a_key_that_was_refused_by_bad_luck_is_heard_again_once_it_gave_enough_that_is_right() -> None:
    honest = corrections(190, 5, wrong=0.05, seed=1)
    found = screen(honest, training_rows(), SETTINGS, {"key-1": (9, 5)})
    assert not any(each["refused"] for each in found.keys)


def test_what_was_refused_before_is_read_from_the_lists_each_batch_once(tmp_path: Path) -> None:
    for number, batch in enumerate((poisoned(8), poisoned(2, "q")), 1):
        earlier = refused_earlier(tmp_path.glob("refused-*"))
        screened = screen([*corrections(190, 5, wrong=0.05, seed=1), *batch], training_rows(), SETTINGS, earlier)
        write_intake(tmp_path / f"refused-{number:04d}", Intake((), screened, tuple(screened.refused)))
    found = refused_earlier(tmp_path.glob("refused-*"))
    assert found.keys() == {"mallory"}
    given, contradicted = found["mallory"]
    assert given == 10
    assert 8 <= contradicted <= 10  # a wrong answer may be one that the training rows find possible


def test_one_correction_against_a_majority_of_others_is_left_out_alone() -> None:
    same = [Correction(f"c{at}", f"key-{at}", "is my card there", "card", "pin") for at in range(3)]
    odd = Correction("odd", "key-9", "Is my card there?", "fee", "pin")
    found = screen([*same, odd], [], SETTINGS)
    assert list(found.refused) == ["odd"]
    assert set(found.kept) == {"c0", "c1", "c2"}


def test_reasons_hold_no_words_of_the_traffic() -> None:
    secret = [Correction(f"c{at}", f"key-{at}", "a very private question", "a private answer", "x") for at in range(3)]
    odd = Correction("odd", "key-9", "a very private question", "another private answer", "x", large="private too")
    assert "private" not in json.dumps(dict(screen([*secret, odd], [], SETTINGS).refused))


@pytest.mark.parametrize(
    ("given", "most"),
    [({"a": 500}, 500), ({"a": 100, "b": 100, "c": 100, "d": 100}, 100),
     ({**{f"k{n}": 10 for n in range(20)}, "m": 5000}, 22), ({f"k{n}": 3 for n in range(40)}, 10)],
)  # fmt: skip
def test_nobody_is_more_than_a_share_of_what_counts(given: dict[str, int], most: int) -> None:
    found = most_of_a_key(given, SETTINGS)
    assert found == most
    counted = sum(min(each, found) for each in given.values())
    assert min(max(given.values()), found) <= max(10, counted * max(0.1, 1.5 / len(given)))


def test_trusted_keys_are_not_capped() -> None:
    many = [Correction(f"r{at}", "review", text_of(at)[0], text_of(at)[1], "x") for at in range(200)]
    few = corrections(60, 12, wrong=0.0, seed=3)
    found = screen([*many, *few], training_rows(), PoisonSettings(trusted=("review",)))
    assert sum(each.startswith("r") for each in found.kept) == 200
    assert sum(each.startswith("r") for each in screen([*many, *few], training_rows(), SETTINGS).kept) < 60


# What is taken in


def captured(identity: str, said: str, *opinions: Feedback, **metadata: object) -> Exchange:
    row = exchange(identity, "2026-03-01T00:00:00+00:00", "where is my card", said, "a" * 12)
    row["metadata"] |= metadata
    row["feedback"] = [each.to_json() for each in opinions]
    return Exchange.from_json(row)


def test_an_answer_of_the_students_own_teaches_nothing_unless_a_person_stands_for_it() -> None:
    up, down = Feedback("thumbs", "", True), Feedback("thumbs", "", False)
    rows = [
        captured("alone", "card"), captured("approved", "card", up), captured("rejected", "card", down),
        captured("corrected", "pin", Feedback("correction", "", "card")),
        captured("large", "card", answered_by="large"),
        captured("confirmed", "card", Feedback("correction", "", "card")), captured("broken", "no label", up),
    ]  # fmt: skip
    found = new_of(rows, task(), set(), {}, large_answers=True)
    assert [each.exchange.id for each in found] == ["approved", "corrected", "large", "confirmed"]
    assert [each.correction for each in found] == [None, "card", None, None]
    assert [each.exchange.id for each in new_of(rows, task(), set(), {}, large_answers=False)] == [
        "approved", "corrected", "confirmed"
    ]  # fmt: skip


def test_the_newest_opinion_counts() -> None:
    up, fix = Feedback("thumbs", "", True), Feedback("correction", "", "pin")
    assert judged_right(captured("a", "card", up, fix), task()) is False
    assert judged_right(captured("a", "card", fix, up), task()) is True
    assert judged_right(captured("a", "card", Feedback("score", "", 7.0)), task()) is None
    assert judged_right(captured("a", "card", Feedback("score", "", 0.9)), task()) is True


def test_who_said_it_is_told_by_the_key_that_the_server_saw_not_by_what_the_client_calls_itself(tmp_path: Path) -> None:
    time = "2026-03-01T00:00:01+00:00"
    line: Json = {"id": "x", "key": "key-7", "feedback": Feedback("correction", "", "pin", time, "the boss").to_json()}
    (tmp_path / "feedback-1.jsonl").write_text(json.dumps(line) + "\n")
    keys = feedback_keys(tmp_path)
    row = captured("x", "card", Feedback("correction", "", "pin", time, "the boss"))
    assert new_of([row], task(), set(), keys, large_answers=True)[0].key == "key-7"
    assert new_of([row], task(), set(), {}, large_answers=True)[0].key == "the boss"


def test_an_intake_is_written_whole_with_what_it_looked_at(tmp_path: Path) -> None:
    rows = [captured(f"c{at}", "pin", Feedback("correction", "", "card", by=f"k{at}")) for at in range(12)]
    rows.append(captured("odd", "pin", Feedback("correction", "", "fee", by="odd")))
    new = new_of(rows, task(), set(), {}, large_answers=True)
    intake = take(new, task(), [], WatchSettings())
    folder = tmp_path / "intake-0001"
    write_intake(folder, intake)
    lines = [json.loads(line) for line in next(folder.glob("exchanges-*.jsonl")).read_text().splitlines()]
    assert [each["id"] for each in lines] == [f"c{at}" for at in range(12)]
    known = looked_at([folder])
    assert len(known) == 13
    assert new_of(rows, task(), known, {}, large_answers=True) == []
    more = captured("c0", "pin", Feedback("correction", "", "card"), Feedback("thumbs", "", True))
    assert len(new_of([more], task(), known, {}, large_answers=True)) == 1  # somebody said something new

"""Promises of relabelling against a real teacher on loopback, live and in batches."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from distillation.relabel import RelabelRow, relabel
from distillation.relabel.batch import parts
from distillation.relabel.ledger import PICO, Ledger
from distillation.relabel.request import Ask, ask_for
from distillation.relabel.throttle import Throttle
from potstill.errors import PotstillError, RecipeError
from tests.local_teacher import Fault, LocalTeacher

from .relabel_rows import TASK, row, say, settings_for

Start = Callable[..., LocalTeacher]


@pytest.fixture
def teacher(tmp_path: Path) -> Iterator[Start]:
    started: list[LocalTeacher] = []

    def start(**how: Any) -> LocalTeacher:
        started.append(LocalTeacher(tmp_path / "bill", **how).start())
        return started[-1]

    yield start
    for each in started:
        each.close()


def billed(tmp_path: Path) -> Counter[str]:
    return Counter(json.loads(line)["key"] for line in (tmp_path / "bill").read_text().splitlines())


# The whole of it, against a teacher


def test_samples_are_asked_decided_and_cached(teacher: Start, tmp_path: Path) -> None:
    server = teacher(reply=say("praise", "refund", "praise", "no idea", "no idea", "hm"))
    settings = settings_for(server.url, concurrency=1)
    rows = [row("a", "refund", "praise"), row("b")]
    results, facts = relabel(settings, TASK, rows, tmp_path / "cache")
    assert [(each.id, each.answer, each.asked) for each in results] == [("a", "praise", 3), ("b", None, 3)]
    assert results[0].samples == ("praise", "refund", "praise")
    assert results[0].share == pytest.approx(2 / 3)
    assert "not one of" in str(results[1].reason)
    assert facts["agreement_with_corrections"]["new"]["rate"] == 1.0
    assert facts["agreement_with_corrections"]["old"]["rate"] == 0.0
    assert (facts["run"]["asked"], facts["run"]["from_cache"], facts["changed"]) == (6, 0, 1)
    assert facts["cost_usd"] == facts["run"]["paid_usd"] == facts["run"]["ledger_counted_usd"] > 0
    again, later = relabel(settings, TASK, rows, tmp_path / "cache")
    assert again == results
    assert (later["run"]["asked"], later["run"]["from_cache"], later["run"]["paid_usd"]) == (0, 6, 0)
    assert {name: later[name] for name in later if name != "run"} == {n: facts[n] for n in facts if n != "run"}
    assert set(billed(tmp_path).values()) == {1}


def test_the_instructions_can_be_replaced_and_equal_prompts_are_paid_once(teacher: Start, tmp_path: Path) -> None:
    server = teacher(reply=say("praise"))
    (tmp_path / "prompt.txt").write_text("New instructions.\n")
    logged = [{"role": "system", "content": "Old."}, {"role": "user", "content": "mail"}]
    settings = settings_for(server.url, samples=1, system_prompt=str(tmp_path / "prompt.txt"))
    rows = [RelabelRow(name, logged, [], None, None) for name in "ab"]
    results, _ = relabel(settings, TASK, rows, tmp_path / "cache")
    assert [each.answer for each in results] == ["praise", "praise"]
    [(_, _, body)] = server.seen
    assert [each["content"] for each in body["messages"]] == ["New instructions.", "mail"]
    with pytest.raises(RecipeError, match="absent"):
        relabel(settings.model_copy(update={"system_prompt": "absent"}), TASK, rows, tmp_path / "cache")


def test_faults_that_pass_are_asked_again_under_the_same_key(teacher: Start, tmp_path: Path) -> None:
    faults = [Fault(429, {"Retry-After": "0.01"}, "busy"), Fault(500, {"Retry-After": "0"}, "x"), Fault(reset=True)]
    server = teacher(reply=say("praise"), fault=lambda key, nth: faults[nth - 1] if nth <= 3 else None)
    results, facts = relabel(settings_for(server.url, samples=1), TASK, [row()], tmp_path / "cache")
    assert results[0].answer == "praise"
    assert facts["run"]["failures"] == {"HTTP 429": 1, "HTTP 500": 1, "RemoteProtocolError": 1}
    assert len({headers["Idempotency-Key"] for _, headers, _ in server.seen}) == 1
    assert billed(tmp_path).total() == 1
    assert facts["run"]["ledger_doubtful_usd"] == 0


def test_a_slow_answer_is_given_up_but_counted_where_keys_are_ignored(teacher: Start, tmp_path: Path) -> None:
    server = teacher(
        reply=say("praise"), ignore_keys=True, fault=lambda key, nth: Fault(slow_s=0.6) if nth == 1 else None
    )
    settings = settings_for(server.url, honoured=False, samples=1, timeout_s=0.2)
    results, facts = relabel(settings, TASK, [row()], tmp_path / "cache")
    assert results[0].answer == "praise"
    assert facts["run"]["failures"] == {"ReadTimeout": 1}
    assert facts["run"]["ledger_doubtful_usd"] > 0
    assert facts["run"]["ledger_counted_usd"] > facts["cost_usd"]


def test_an_invalid_answer_is_a_paid_sample_and_a_billed_error_too(teacher: Start, tmp_path: Path) -> None:
    faults = {1: Fault(text="<html>", billed=True), 2: Fault(500, billed=True)}
    server = teacher(reply=say("praise"), fault=lambda key, nth: faults.get(len(server.seen)))
    settings = settings_for(server.url, concurrency=1)
    results, facts = relabel(settings, TASK, [row()], tmp_path / "cache")
    assert (results[0].answer, results[0].samples, results[0].asked) == ("praise", ("praise",), 3)
    assert facts["unmetered_answers"] == 1
    assert facts["run"]["failures"] == {"HTTP 500, billed": 1}
    relabel(settings, TASK, [row()], tmp_path / "cache")
    assert len(server.seen) == 3


def test_a_request_that_is_refused_costs_nothing_and_the_others_decide(teacher: Start, tmp_path: Path) -> None:
    server = teacher(
        reply=say("praise"), fault=lambda key, nth: Fault(400, text="no") if len(server.seen) == 1 else None
    )
    settings = settings_for(server.url, concurrency=1)
    results, facts = relabel(settings, TASK, [row()], tmp_path / "cache")
    assert (results[0].answer, results[0].asked) == ("praise", 2)
    assert facts["unsettled"] == 1
    assert facts["run"]["ledger_counted_usd"] == facts["cost_usd"]


def test_a_refused_api_key_stops_the_run_and_keeps_what_was_paid(teacher: Start, tmp_path: Path) -> None:
    server = teacher(
        reply=say("praise"), fault=lambda key, nth: Fault(401, text="no key") if len(server.seen) > 2 else None
    )
    rows = [row(str(n)) for n in range(50)]
    settings = settings_for(server.url, samples=1, concurrency=1)
    with pytest.raises(PotstillError, match=r"401.*run again"):
        relabel(settings, TASK, rows, tmp_path / "cache")
    assert len(server.seen) == 3
    server.fault = lambda key, nth: None
    _, facts = relabel(settings, TASK, rows, tmp_path / "cache")
    assert facts["run"]["from_cache"] == 2


def test_a_missing_key_variable_is_named_before_anything_is_sent(tmp_path: Path) -> None:
    about = settings_for().teacher.model_copy(update={"api_key_env": "POTSTILL_TEST_ABSENT"})
    with pytest.raises(RecipeError, match="POTSTILL_TEST_ABSENT"):
        relabel(settings_for(teacher=about), TASK, [row()], tmp_path / "cache")


def test_the_budget_stops_hard_and_a_larger_one_goes_on_where_it_stopped(teacher: Start, tmp_path: Path) -> None:
    server = teacher(reply=say("praise"))
    rows = [row(str(n)) for n in range(30)]
    settings = settings_for(server.url)
    worst = ask_for(settings, settings.teacher, row("10").messages, temperature=0.7).worst
    small = settings.model_copy(update={"budget_usd": 4 * worst / PICO})
    results, facts = relabel(small, TASK, rows, tmp_path / "cache")
    bill = billed(tmp_path)
    assert 4 <= bill.total() < 90
    assert facts["run"]["ledger_counted_usd"] <= small.budget_usd
    # A lost answer keeps its reservation, so it is asked for again whatever the budget: paid for is answered.
    assert set(bill.values()) == {1}, (bill, facts["run"])
    assert (facts["answered"], facts["refused_by_budget"]) == (bill.total(), 90 - bill.total()), (bill, facts["run"])
    assert {each.reason for each in results if each.answer is None} == {"out of budget"}
    results, _ = relabel(settings, TASK, rows, tmp_path / "cache")
    assert all(each.answer == "praise" for each in results)
    assert (billed(tmp_path).total(), set(billed(tmp_path).values())) == (90, {1})


def test_the_judge_overrules_the_vote_and_is_measured_on_corrections(teacher: Start, tmp_path: Path) -> None:
    def reply(body: dict[str, Any], key: str) -> str:
        text = body["messages"][-1]["content"]
        if "Candidate answers" not in text:
            return "refund"
        shown = json.loads(text.split("Candidate answers:\n")[1].split("\n\n")[0])
        return next(letter for letter, answer in shown.items() if answer == "praise")

    server = teacher(reply=reply)
    rows = [row("a", "praise", "praise"), row("b", "praise", "refund"), row("c", "refund", "refund")]
    results, facts = relabel(settings_for(server.url, decide="judge"), TASK, rows, tmp_path / "cache")
    assert [(each.answer, each.share) for each in results] == [("praise", 0.0), ("praise", 0.0), ("refund", 1.0)]
    judged = facts["judge"]
    assert (judged["shown"], judged["undecided"]) == (2, 0)
    assert (judged["agreement_with_corrections"]["hits"], judged["agreement_with_corrections"]["of"]) == (1, 2)
    assert judged["vote_on_the_same_rows"]["hits"] == 1
    low, high = (judged["agreement_with_corrections"][name] for name in ("low", "high"))
    assert (low, high) == (pytest.approx(0.0945, abs=1e-3), pytest.approx(0.9055, abs=1e-3))


def test_a_throttle_keeps_to_its_rates() -> None:
    started, stop = time.monotonic(), threading.Event()
    by_requests, by_tokens = Throttle(6000, None), Throttle(None, 60_000)
    for _ in range(11):
        by_requests.wait(1, stop)
    assert time.monotonic() - started >= 0.1
    started = time.monotonic()
    for _ in range(3):
        by_tokens.wait(50, stop)
    assert time.monotonic() - started >= 0.1
    stop.set()
    started = time.monotonic()
    by_tokens.hold(30)
    by_tokens.wait(1, stop)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("batch", [False, True])
def test_two_runs_at_once_share_the_work_and_pay_once(teacher: Start, tmp_path: Path, batch: bool) -> None:
    server = teacher(ignore_keys=True, delay_s=0.005, batch_delay_s=0.1)
    settings = settings_for(server.url, honoured=False, batch=batch)
    rows = [row(str(n)) for n in range(20)]
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(relabel, settings, TASK, rows, tmp_path / "cache") for _ in range(2)]
        (first, _), (second, facts) = [each.result() for each in runs]
    assert first == second
    assert all(each.asked == 3 for each in first)
    assert (billed(tmp_path).total(), set(billed(tmp_path).values())) == (60, {1})
    assert facts["run"]["ledger_counted_usd"] == facts["cost_usd"]


# Batches


def test_a_batch_is_settled_at_its_discount_and_its_refused_lines_cost_nothing(teacher: Start, tmp_path: Path) -> None:
    server = teacher(reply=say("praise"), batch_delay_s=0.05)
    rows = [row(str(n)) for n in range(5)]
    settings = settings_for(server.url, batch=True)
    refused = ask_for(settings, settings.teacher, rows[0].messages, temperature=0.7).key
    server.fault = lambda key, nth: Fault(400, text="no") if key == refused else None
    results, facts = relabel(settings, TASK, rows, tmp_path / "cache")
    assert all(each.answer == "praise" for each in results)
    assert (facts["answered"], facts["unsettled"]) == (14, 1)
    assert facts["run"]["failures"] == {"HTTP 400": 1}
    bill = sum(json.loads(line)["usd"] for line in (tmp_path / "bill").read_text().splitlines())
    assert facts["cost_usd"] == pytest.approx(bill)
    assert facts["run"]["ledger_counted_usd"] == pytest.approx(bill)
    server.fault = lambda key, nth: None
    _, later = relabel(settings, TASK, rows, tmp_path / "cache")
    assert (later["run"]["asked"], later["answered"], len(server.batches)) == (1, 15, 2)


def test_a_batch_made_just_before_a_kill_is_found_by_its_metadata(teacher: Start, tmp_path: Path) -> None:
    server = teacher(reply=say("praise"), ignore_keys=True)
    settings, rows = settings_for(server.url, honoured=False, batch=True), [row(str(n)) for n in range(4)]
    relabel(settings, TASK, rows, tmp_path / "cache")
    for name in ("x", "y", "z"):  # others' batches, more than a page of the listing
        server.files[name] = ""
        server.make_batch(name, {"input_file_id": name, "metadata": {}})
    with Ledger(tmp_path / "cache" / "relabel.sqlite", PICO) as ledger, ledger.transaction() as db:
        # As the ledger stood when the batch was made but its id not yet remembered.
        db.execute("UPDATE request SET batch = (SELECT key FROM batch), response = NULL, paid = 0, reserved = 9")
        db.execute("UPDATE batch SET remote_id = NULL, owner = 'dead', state = 'open'")
    _, facts = relabel(settings, TASK, rows, tmp_path / "cache")
    assert facts["answered"] == 12
    assert len(server.batches) == 4
    assert set(billed(tmp_path).values()) == {1}


def test_a_batch_that_was_never_made_is_undone_and_made(teacher: Start, tmp_path: Path) -> None:
    server = teacher(reply=say("praise"))
    settings, rows = settings_for(server.url, batch=True), [row("a")]
    asks = [ask_for(settings, settings.teacher, row("a").messages, temperature=0.7, sample=n) for n in range(3)]
    with Ledger(tmp_path / "cache" / "relabel.sqlite", PICO) as ledger, ledger.transaction() as db:
        for ask in asks:
            assert ledger.reserve_in(db, ask.key, ask.worst, True, "b-0") == "reserved"
        db.execute("INSERT INTO batch (key, base_url, made_at, owner) VALUES ('b-0', ?, 0, 'dead')", (server.url,))
    results, facts = relabel(settings, TASK, rows, tmp_path / "cache")
    assert results[0].answer == "praise"
    assert facts["run"]["ledger_counted_usd"] == facts["cost_usd"]
    assert len(server.batches) == 1


def test_a_batch_that_failed_frees_its_money_and_says_why(teacher: Start, tmp_path: Path) -> None:
    server = teacher(reply=say("praise"))
    shown = server.shown
    server.shown = lambda batch: (
        shown(batch)
        | {  # type: ignore[method-assign]
            "status": "failed",
            "output_file_id": None,
            "errors": {"data": [{"message": "too many enqueued tokens"}]},
        }
    )
    results, facts = relabel(settings_for(server.url, batch=True), TASK, [row()], tmp_path / "cache")
    assert results[0].reason == "batch failed: too many enqueued tokens"
    assert facts["run"]["ledger_counted_usd"] == 0


def test_answers_of_an_unfinished_batch_are_awaited_when_batches_are_switched_off(
    teacher: Start, tmp_path: Path
) -> None:
    server = teacher(reply=say("praise"))
    settings = settings_for(server.url, batch=True)
    relabel(settings, TASK, [row()], tmp_path / "cache")
    with Ledger(tmp_path / "cache" / "relabel.sqlite", PICO) as ledger, ledger.transaction() as db:
        db.execute("UPDATE request SET batch = (SELECT key FROM batch), response = NULL, paid = 0, reserved = 9")
        db.execute("UPDATE batch SET state = 'open'")
    results, _ = relabel(settings.model_copy(update={"batch": False}), TASK, [row()], tmp_path / "cache")
    assert results[0].answer == "praise"
    assert [path for path, _, _ in server.seen] == ["/v1/batches"]


def test_a_batch_holds_no_more_than_the_api_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    asks = [Ask(str(n), {"text": "x" * (10 if n else 5000)}, 1, 1) for n in range(10)]
    monkeypatch.setattr("distillation.relabel.batch.MOST_REQUESTS", 4)
    assert [len(part) for part in parts(asks)] == [4, 4, 2]
    monkeypatch.setattr("distillation.relabel.batch.MOST_BYTES", 4000)
    assert [len(part) for part in parts(asks)] == [1, 4, 4, 1]
    assert list(parts([])) == []

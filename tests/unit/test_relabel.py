"""Promises of relabelling: money first, then votes and judges; against a real teacher on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from distillation.relabel import Relabel, RelabelRow, relabel
from distillation.relabel.batch import parts
from distillation.relabel.judge import judge_asks, letter_in, orders, verdict
from distillation.relabel.ledger import PICO, Ledger, Paid
from distillation.relabel.owners import Owner
from distillation.relabel.request import Ask, ask_for, cost_of, paid_for
from distillation.relabel.settings import Price
from distillation.relabel.throttle import Throttle
from distillation.relabel.vote import candidates, read_answer, same, vote
from potstill.errors import PotstillError, RecipeError
from potstill.tasks import task_from
from tests.local_teacher import LABELS, PRICE, Fault, LocalTeacher

TASK = task_from({"kind": "classification", "labels": list(LABELS)})
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


def settings_for(url: str = "http://127.0.0.1:9/v1", honoured: bool = True, **more: Any) -> Relabel:
    about = {"base_url": url, "model": "t", "price": PRICE, "max_tokens": 16, "honours_idempotency_keys": honoured}
    given: dict[str, Any] = {"teacher": about, "budget_usd": 1.0, "batch_poll_s": 0.02, "concurrency": 4} | more
    return Relabel.model_validate(given)


def row(identity: str = "a", old: str | None = None, correction: str | None = None) -> RelabelRow:
    return RelabelRow(identity, [{"role": "user", "content": f"mail {identity}"}], [], old, correction)


def say(*texts: str) -> Callable[[dict[str, Any], str], str]:
    """A teacher's answers in the order asked (with concurrency 1), the last one again and again."""
    left = list(texts)
    return lambda body, key: left.pop(0) if len(left) > 1 else left[0]


def paid(text: str, finish: str = "stop") -> Paid:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return Paid(200, json.dumps({"choices": [choice]}), 1)


# The ledger


STEP = st.tuples(
    st.sampled_from(["reserve", "settle", "release", "lose", "die", "batch"]),
    st.integers(0, 5),
    st.integers(1, 60),
    st.booleans(),
)


@given(st.lists(STEP, max_size=60))
def test_the_purse_never_holds_more_than_the_budget_whatever_happens_in_what_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int, bool]]
) -> None:
    """Two owners (one dies and comes back), with answers that cost at most what was reserved."""
    path, budget = tmp_path_factory.mktemp("purse") / "l.sqlite", 100
    ledgers = [Ledger(path, budget), Ledger(path, budget)]
    flights: dict[str, tuple[int, int]] = {}
    for what, number, amount, second in steps:
        key, at = f"k{number}", int(second)
        ledger = ledgers[at]
        if what in ("reserve", "batch"):
            before = ledger.sums()
            honoured = number % 2 == 0
            if what == "batch":
                with ledger.transaction() as db:
                    found = ledger.reserve_in(db, key, amount, honoured, "b")
            else:
                found = ledger.reserve(key, amount, honoured)
            if found == "reserved":
                flights[key] = (at if what == "reserve" else -1, amount)
            else:
                assert ledger.sums() == before
        elif what == "die":
            ledger.close()
            ledgers[at] = Ledger(path, budget)
            flights = {each: flight for each, flight in flights.items() if flight[0] != at}
        elif key in flights:
            _, held = flights.pop(key)
            if what == "settle":
                ledger.settle(key, Paid(200, "x", min(amount, held)))
            else:
                (ledger.release if what == "release" else ledger.lose)(key)
        sums = ledgers[0].sums()
        assert sums.counted <= budget
        assert sums.counted == ledgers[0].read("SELECT coalesce(sum(counted), 0) FROM request")[0][0]
        assert sums.paid + sums.reserved <= sums.counted
        assert sums.reserved == sum(held for _, held in flights.values())
    for ledger in ledgers:
        ledger.close()


def test_a_lost_send_counts_until_settled_where_keys_are_honoured_and_for_good_where_not(tmp_path: Path) -> None:
    for honoured, left in [(True, 7), (False, 7 + 40)]:
        with Ledger(tmp_path / f"{honoured}.sqlite", 100) as ledger:
            assert ledger.reserve("k", 40, honoured) == "reserved"
            ledger.lose("k")
            assert ledger.sums().counted == 40
            assert ledger.reserve("other", 70, honoured) == "refused"
            assert ledger.reserve("k", 40, honoured) == "reserved"
            assert ledger.sums().counted == (40 if honoured else 80)
            ledger.settle("k", Paid(200, "x", 7))
            assert ledger.sums().counted == left


def test_what_was_paid_for_is_never_asked_or_charged_again(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite", 100) as ledger:
        ledger.reserve("k", 40, False)
        ledger.settle("k", Paid(200, "first", 7))
        ledger.settle("k", Paid(200, "second", 9))
    with Ledger(tmp_path / "l.sqlite", 100) as ledger:
        assert ledger.reserve("k", 40, False) == "answered"
        assert ledger.answer("k") == Paid(200, "first", 7)
        assert ledger.sums().counted == 7


RESERVES = """
import sys
from pathlib import Path
from distillation.relabel.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), 1000)
print(sum(ledger.reserve(f"{sys.argv[2]}-{n}", 3, False) == "reserved" for n in range(400)), flush=True)
sys.stdin.read()
"""


def test_two_processes_share_one_budget_and_a_dead_ones_sends_are_lost_not_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", RESERVES, str(path), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in "ab"
    ]
    counts = [int(each.stdout.readline()) for each in both if each.stdout]
    assert sum(counts) == 333
    with Ledger(path, 1000) as ledger:
        assert (ledger.sums().reserved, ledger.sums().doubtful) == (999, 0)
        assert ledger.reserve("a-0" if counts[0] else "b-0", 1, False) == "elsewhere"
        for each in both:
            each.kill()
            each.communicate()
        ledger.sweep()
        assert (ledger.sums().reserved, ledger.sums().doubtful) == (0, 999)
        assert [ledger.orphaned([f"{name}-{n}" for n in range(400)]) for name in "ab"] == counts


def test_an_owner_is_alive_until_it_closes(tmp_path: Path) -> None:
    first, second = Owner(tmp_path), Owner(tmp_path)
    assert second.alive(first.name)
    assert first.alive(first.name)
    first.close()
    assert not second.alive(first.name)


def test_prices_are_exact_and_rounded_up() -> None:
    assert cost_of(Price(input=0.15, output=0.6), 1000, 100, 1.0) == 210 * 10**6
    assert cost_of(Price(input=1e-7, output=0), 1, 0, 1.0) == 1
    assert cost_of(Price(input=2, output=8), 3, 1, 0.5) * 2 == 14 * 10**6


@given(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=5), st.integers(1, 50))
def test_the_reservation_covers_a_prompt_of_one_token_a_byte_and_the_longest_answer(
    texts: list[str], most: int
) -> None:
    settings = settings_for(teacher=settings_for().teacher.model_copy(update={"max_tokens": most}))
    messages = [{"role": "user", "content": text} for text in texts]
    ask = ask_for(settings, settings.teacher, messages, temperature=0.7)
    tokens = sum(len(text.encode()) for text in texts)
    assert ask.worst >= cost_of(settings.teacher.price, tokens, most, 1.0)


def test_the_key_names_body_and_sample_and_nothing_else() -> None:
    settings, other = settings_for(), settings_for("http://127.0.0.1:10/v1", budget_usd=2.0)
    keys = [ask_for(s, s.teacher, row().messages, temperature=0.7, sample=0).key for s in (settings, other)]
    assert keys[0] == keys[1]
    changed = [
        ask_for(settings, settings.teacher, row().messages, temperature=0.7, sample=1),
        ask_for(settings, settings.teacher, row().messages, temperature=0.8),
        ask_for(settings, settings.teacher, row("b").messages, temperature=0.7),
    ]
    assert len({keys[0], *(each.key for each in changed)}) == 4


def test_a_schema_goes_along_as_response_format_and_null_temperature_is_not_sent() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    task = task_from({"kind": "extraction", "schema": schema})
    about = settings_for().teacher.model_copy(update={"limit_field": "max_completion_tokens"})
    settings = settings_for(temperature=None)
    body = ask_for(settings, about, row().messages, constraint=task.constraint(), temperature=None).body
    assert body["response_format"]["json_schema"]["schema"] == schema
    assert body["max_completion_tokens"] == 16
    assert {"temperature", "max_tokens"} & set(body) == set()


def test_an_answer_without_usage_counts_at_its_worst_and_an_error_only_if_it_names_usage() -> None:
    ask, about = Ask("k", {}, 99, 1), settings_for().teacher
    usage = json.dumps({"usage": {"prompt_tokens": 1, "completion_tokens": 1}})
    assert paid_for(ask, about, 1.0, 200, "<html>") == Paid(200, "<html>", 99)
    assert paid_for(ask, about, 1.0, 500, "oops") is None
    assert paid_for(ask, about, 1.0, 500, usage) == Paid(500, usage, 10 * 10**6, 1, 1)


def test_samples_that_cannot_differ_are_refused_before_money_is_spent() -> None:
    with pytest.raises(ValidationError, match="paid for several times"):
        settings_for(samples=3, temperature=0)
    with pytest.raises(ValidationError, match="decide"):
        settings_for(judge=settings_for().teacher.model_dump())


# Votes and judges


def test_the_vote_takes_most_samples_and_a_tie_goes_to_the_old_answer_then_the_first() -> None:
    def voted(*values: str, old: str | None = None) -> str | None:
        found = vote(TASK, candidates(TASK, values, old), old)
        return found and found.text

    assert voted("refund", "praise", "praise") == "praise"
    assert voted("refund", "praise") == "refund"
    assert voted("refund", "praise", old="praise") == "praise"
    assert voted("refund", "refund", "praise", old="praise") == "refund"
    assert voted(old="praise") is None


def test_equal_objects_vote_together_however_they_were_written() -> None:
    task = task_from({"kind": "extraction", "schema": {"type": "object", "properties": {"a": {}, "b": {}}}})
    values = [task.parse(text).value for text in ('{"a":1,"b":2}', '{ "b": 2, "a": 1 }', '{"a":3}')]
    assert [each.votes for each in candidates(task, values, None)] == [2, 1]
    assert same(task, values[0], values[1])
    assert not same(task, values[0], values[2])


def test_answers_that_were_cut_off_or_are_no_json_are_invalid() -> None:
    assert read_answer(TASK, paid("refund"), []).value == "refund"
    assert "length" in str(read_answer(TASK, paid("refund", "length"), []).reason)
    assert read_answer(TASK, Paid(200, "<html>", 1), []).reason == "the response is not JSON"
    assert read_answer(TASK, Paid(200, "[]", 1), []).valid is False
    assert read_answer(TASK, Paid(500, "{}", 1), []).reason == "HTTP 500"


def test_the_judge_sees_two_answers_in_both_orders_and_more_in_one_drawn_by_the_row() -> None:
    first, second = orders("a", 2)
    assert first == second[::-1]
    assert {orders(str(n), 2)[0] for n in range(50)} == {(0, 1), (1, 0)}
    [order] = orders("a", 5)
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert orders("a", 5) == [order]
    assert len({orders(str(n), 5)[0] for n in range(50)}) > 20


def test_the_letters_shown_are_the_letters_counted() -> None:
    found = candidates(TASK, ["refund", "praise", "delivery"], None)
    [ask] = judge_asks(settings_for(decide="judge"), row(), found)
    shown = json.loads(ask.body["messages"][1]["content"].split("Candidate answers:\n")[1].split("\n\n")[0])
    for letter, text in shown.items():
        picked = verdict(row(), found, [paid(f"**{letter}.**")])
        assert picked is not None
        assert picked.text == text


def test_a_judge_that_follows_the_position_has_not_decided() -> None:
    found = candidates(TASK, ["refund", "praise"], None)
    assert verdict(row(), found, [paid("A"), paid("A")]) is None
    assert verdict(row(), found, [paid("A"), None]) is None
    assert verdict(row(), found, [paid("A"), paid("both are fine")]) is None
    assert verdict(row(), found, [paid("A"), paid("B")]) in found


@pytest.mark.parametrize(
    ("text", "at"),
    [("B", 1), (" (b) ", 1), ("Answer: A", 0), ("C", None), ("A or B", None), ("", None), ("Apple", None)],
)
def test_a_reply_is_a_letter_or_nothing(text: str, at: int | None) -> None:
    assert letter_in(text, 2) == at


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
    paid_first = billed(tmp_path).total()
    assert 4 <= paid_first < 90
    assert facts["run"]["ledger_counted_usd"] <= small.budget_usd
    assert facts["refused_by_budget"] == 90 - paid_first
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

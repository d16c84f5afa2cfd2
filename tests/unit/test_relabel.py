"""Promises of relabelling: money first, then votes and judges."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from distillation.relabel.judge import judge_asks, letter_in, orders, verdict
from distillation.relabel.ledger import Ledger, Paid
from distillation.relabel.owners import Owner
from distillation.relabel.request import Ask, ask_for, cost_of, paid_for
from distillation.relabel.settings import Price
from distillation.relabel.vote import candidates, read_answer, same, vote
from potstill.tasks import task_from

from .relabel_rows import TASK, paid, row, settings_for

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

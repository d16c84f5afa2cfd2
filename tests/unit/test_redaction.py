"""Promises of redaction: personal data and secrets go, everything else stays to the letter."""

from __future__ import annotations

import ipaddress
import json
import re
import string
import time
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stdnum import iban, luhn

from potstill.records import Json
from potstill.redaction import KINDS, Redactor
from potstill.redaction.rules import find

# What may stand around a finding: ordinary words and the punctuation of sentences and of JSON.
befores = st.sampled_from(["", "Please use ", "mail: ", "(", "It is\n", '{"v": "', "«", "to="])
afters = st.sampled_from(["", " thanks", ", please", ")", ".", "\nBye", '"}', "?"])
names = st.text(string.ascii_letters + string.digits, min_size=1, max_size=10)
domains = st.builds(
    lambda labels, end: ".".join([*labels, end]),
    st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=8), min_size=1, max_size=3),
    st.sampled_from(["com", "org", "de", "co.uk", "example"]),
)
emails = st.builds(lambda a, mark, b, domain: f"{a}{mark}{b}@{domain}", names, st.sampled_from("._+-"), names, domains)
separators = st.sampled_from(["", " ", "-"])


@st.composite
def card_numbers(draw: st.DrawFn) -> str:
    """16 digits of a card that Luhn's check accepts."""
    body = draw(st.sampled_from(["4", "51", "6011", "2221", "3530"])) + draw(
        st.text("0123456789", min_size=14, max_size=14)
    )
    return body[:15] + str(luhn.calc_check_digit(body[:15]))


@st.composite
def ibans(draw: st.DrawFn) -> str:
    """An IBAN of a country whose account numbers have no check of their own, or Britain's."""
    country, shape = draw(
        st.sampled_from([("DE", "9" * 18), ("AT", "9" * 16), ("LT", "9" * 16), ("GB", "AAAA" + "9" * 14)])
    )
    bban = "".join(draw(st.sampled_from(string.digits if each == "9" else string.ascii_uppercase)) for each in shape)
    return f"{country}{iban.calc_check_digits(f'{country}00{bban}')}{bban}"


letters = string.ascii_letters + string.digits
api_keys = st.one_of(
    st.builds("sk-{}".format, st.text(letters, min_size=20, max_size=40)),
    st.builds("sk-proj-{}".format, st.text(letters, min_size=20, max_size=40)),
    st.builds("sk_live_{}".format, st.text(letters, min_size=16, max_size=30)),
    st.builds("ghp_{}".format, st.text(letters, min_size=36, max_size=36)),
    st.builds("hf_{}".format, st.text(letters, min_size=30, max_size=34)),
    st.builds("AKIA{}".format, st.text(string.ascii_uppercase + string.digits, min_size=16, max_size=16)),
    st.builds("AIza{}".format, st.text(letters, min_size=35, max_size=35)),
    st.builds("eyJ{}.eyJ{}.{}".format, *[st.text(letters, min_size=10, max_size=20)] * 3),
)
secret_urls = st.one_of(
    st.builds("https://{}/p?id=3&token={}".format, domains, st.text(letters, min_size=8, max_size=30)),
    st.builds("https://{}/reset?access_token={}&next=1".format, domains, st.text(letters, min_size=8, max_size=30)),
    st.builds("postgresql://{}:{}@{}/db".format, names, names, domains),
    st.builds("https://{}/cb#sig={}".format, domains, st.text(letters, min_size=8, max_size=30)),
)
ips = st.builds(lambda n: str(ipaddress.IPv4Address(n)), st.integers(2**24, 2**32 - 1)) | st.builds(
    lambda n: str(ipaddress.IPv6Address(n)), st.integers(2**120, 2**128 - 1)
).filter(lambda text: len(text.replace(":", "")) >= 4)


def unnumbered(text: str) -> str:
    """The text with <KIND> for every placeholder."""
    return re.sub(r"<([A-Z_]+)_\d{8}>", r"<\1>", text)


def assert_replaced(kind: str, value: str, before: str, after: str) -> None:
    redactor = Redactor()
    assert unnumbered(redactor.text(before + value + after)) == f"{before}<{kind}>{after}"
    assert redactor.found == {kind: 1}


@given(emails, befores, afters)
def test_email_is_replaced_and_the_words_around_it_stay(value: str, before: str, after: str) -> None:
    assert_replaced("EMAIL", value, before, after)


@given(card_numbers(), separators, befores, afters)
def test_card_is_replaced_however_it_is_spaced(number: str, separator: str, before: str, after: str) -> None:
    assert_replaced("CARD", separator.join(re.findall("....", number)), before, after)


@given(card_numbers(), st.integers(1, 9))
def test_number_that_fails_the_card_check_is_kept(number: str, shift: int) -> None:
    wrong = number[:-1] + str((int(number[-1]) + shift) % 10)
    text = f"order {wrong} has shipped"
    assert Redactor().text(text) == text


@given(ibans(), st.booleans(), befores, afters)
def test_iban_is_replaced_with_and_without_spaces(value: str, spaced: bool, before: str, after: str) -> None:
    assert_replaced("IBAN", " ".join(re.findall("..?.?.?", value)) if spaced else value, before, after)


@given(ibans(), st.integers(1, 96))
def test_iban_with_wrong_check_digits_is_kept_by_the_iban_rule(value: str, shift: int) -> None:
    check = 2 + (int(value[2:4]) - 2 + shift) % 97
    wrong = f"{value[:2]}{check:02d}{value[4:]}"
    assert Redactor(("IBAN",)).text(wrong) == wrong


@given(ips, befores, afters)
def test_ip_address_is_replaced(value: str, before: str, after: str) -> None:
    assert_replaced("IP", value, before, after)


@given(api_keys, befores, afters)
def test_api_key_is_replaced(value: str, before: str, after: str) -> None:
    assert_replaced("API_KEY", value, before, after)


@given(secret_urls, st.sampled_from(["", "Open ", "see\n"]), st.sampled_from(["", " now", "\nBye"]))
def test_url_that_carries_a_secret_is_replaced_whole(value: str, before: str, after: str) -> None:
    assert_replaced("URL", value, before, after)


@pytest.mark.parametrize(
    "text",
    [
        "https://example.com/help?page=2&lang=en",
        "see http://localhost:8080/docs#keys",
        "version 1.2.3, build 10.20.30",
        "Bearer of good news",
        "task-force, risk-averse, disk-based",
        "a ratio of 16:9, at 12:30:45",
        "std::vector and std::map",
        "@mention and e@home",
    ],
)
def test_what_only_looks_alike_stays(text: str) -> None:
    assert Redactor().text(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("call +49 30 901820 today", "call <PHONE> today"),
        ("call (212) 736-5000 today", "call <PHONE> today"),
        ("Authorization: Bearer abcdefghij0123456789xyz", "Authorization: Bearer <API_KEY>"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "<API_KEY>"),
    ],
)
def test_telephone_numbers_and_long_secrets_are_replaced(text: str, expected: str) -> None:
    assert unnumbered(Redactor().text(text)) == expected


@given(
    st.datetimes(datetime(1990, 1, 1), datetime(2039, 1, 1)),
    st.sampled_from(
        ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M", "%d/%m/%Y", "%m/%d/%Y", "%H:%M:%S", "%d %B %Y, %I:%M %p"]
    ),
)
def test_dates_and_times_stay(moment: datetime, form: str) -> None:
    text = f"Arriving {moment.strftime(form)}, is that fine?"
    assert Redactor().text(text) == text


@given(st.decimals(0, 999_999, places=2), st.sampled_from(["${:,}", "{} EUR", "£{}", "{} %"]), st.integers(0, 99_999))
def test_prices_and_quantities_stay(price: Any, form: str, quantity: int) -> None:
    text = f"{quantity} pieces at {form.format(price)} each"
    assert Redactor().text(text) == text


@given(
    st.builds("1Z{}".format, st.text("ABCDEFGHJKLM0123456789", min_size=16, max_size=16)).filter(
        lambda text: not text[2:].isdigit()
    )
    | st.builds("RB{}DE".format, st.text(string.digits, min_size=9, max_size=9))
    | st.builds("#{}".format, st.integers(1, 999_999))
    | st.builds("ORD-{:06d}".format, st.integers(0, 999_999))
)
def test_tracking_and_order_numbers_stay(number: str) -> None:
    text = f"Where is {number} now?"
    assert Redactor().text(text) == text


@given(st.lists(emails, min_size=1, max_size=4, unique_by=str.casefold), st.data())
def test_same_value_has_the_same_placeholder_within_a_conversation(values: list[str], data: st.DataObject) -> None:
    turns = data.draw(st.lists(st.sampled_from(values), min_size=1, max_size=8))
    shown = [Redactor(key=b"k").text(f"it is {turn}", "c") for turn in turns]
    for a, first in zip(turns, shown, strict=True):
        for b, second in zip(turns, shown, strict=True):
            assert (a == b) == (first == second)
    assert unnumbered(shown[0]) == "it is <EMAIL>"
    assert Redactor(key=b"k").text(f"it is {turns[0]}", "another conversation") != shown[0]
    assert Redactor(key=b"another key").text(f"it is {turns[0]}", "c") != shown[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ann@Example.com", "ann@example.com"),
        ("4111 1111 1111 1111", "4111-1111-1111-1111"),
        ("DE89 3704 0044 0532 0130 00", "de89370400440532013000"),
        ("(212) 736-5000", "212-736-5000"),
    ],
)
def test_spelling_of_the_same_value_does_not_matter(one: str, other: str) -> None:
    assert Redactor().text(one) == Redactor().text(other)


@given(emails, card_numbers(), st.text(max_size=30))
def test_redacting_twice_changes_nothing_more(email: str, card: str, text: str) -> None:
    once = Redactor().text(f"{text} {email} {card}")
    assert Redactor().text(once) == once


def test_only_the_kinds_asked_for_are_replaced() -> None:
    text = "a@b.org, 4111111111111111, 10.1.2.3"
    assert unnumbered(Redactor(("EMAIL",)).text(text)) == "<EMAIL>, 4111111111111111, 10.1.2.3"
    assert Redactor(()).text(text) == text
    assert set(KINDS) == {"API_KEY", "URL", "EMAIL", "IBAN", "CARD", "NATIONAL_ID", "IP", "PHONE"}


def exchange(identity: str, conversation: str | None, email: str, **metadata: Any) -> Json:
    """An exchange that carries one address in every place that can hold text."""
    function = {"name": "mail", "arguments": json.dumps({"to": email})}
    return {
        "id": identity,
        "request": {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": f"I am {email}"}]},
                {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": function}]},
            ],
            "tools": [{"type": "function", "function": {"name": "mail", "description": f"like {email}"}}],
        },
        "response": {"choices": [{"message": {"role": "assistant", "content": f"Wrote to {email}."}}]},
        "metadata": {"conversation": conversation, "split": "test", "tags": {"who": email}} | metadata,
        "feedback": [{"kind": "correction", "value": f"Mailed {email}.", "by": email}],
    }


@given(emails, st.text(max_size=8))
def test_no_place_of_an_exchange_keeps_personal_data_and_ids_stay(email: str, identity: str) -> None:
    given_exchange = exchange(identity, "4111111111111111", email, user=email)
    before = json.dumps(given_exchange)
    redacted = Redactor().exchange(given_exchange)
    assert email not in json.dumps(redacted)
    assert redacted["id"] == identity
    assert redacted["metadata"]["conversation"].startswith("<CONVERSATION_")
    assert redacted["metadata"]["conversation"] == Redactor().exchange(given_exchange)["metadata"]["conversation"]
    assert redacted["metadata"]["split"] == "test"
    who = json.loads(redacted["request"]["messages"][2]["tool_calls"][0]["function"]["arguments"])["to"]
    assert unnumbered(who) == "<EMAIL>"
    assert redacted["request"]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert redacted["response"]["choices"][0]["message"]["content"] == f"Wrote to {who}."
    assert redacted["feedback"][0]["value"] == f"Mailed {who}."
    assert json.dumps(given_exchange) == before, "the exchange that was given is not changed"


def test_users_named_by_personal_data_are_neither_merged_nor_divided() -> None:
    """A placeholder counts within a conversation; were it the user's name, one user would be many."""
    redactor = Redactor()
    users = [
        redactor.exchange(exchange(f"x{at}", f"c{at}", "z@z.org", user=user))["metadata"]["user"]
        for at, user in enumerate(["ann@a.org", "bob@b.org", "ann@a.org", "user-17"])
    ]
    assert users[0] == users[2] != users[1]
    assert users[3] == "user-17"
    assert not any("@" in user for user in users)
    # Another process (the server's capture makes a new Redactor a line) must name her the same.
    assert Redactor().exchange(exchange("y", "c9", "z@z.org", user="ann@a.org"))["metadata"]["user"] == users[0]


@pytest.mark.parametrize(
    "unit", ["1", "4111 ", "1.1.", "a@b.co ", ":", "?token", "\\", "GB82WEST12345698765432 ", "12-34-", "token=a1b2 "]
)
def test_a_text_four_times_as_long_costs_about_four_times_as_much(unit: str) -> None:
    def seconds(length: int) -> float:
        text = "http://" + unit * (length // len(unit))
        began = time.process_time()
        find(text, KINDS, "US")
        return time.process_time() - began

    short = min(seconds(20_000) for _ in range(2))
    assert seconds(80_000) < 10 * max(short, 0.003)


def test_two_ibans_beside_one_another_are_both_found() -> None:
    text = "DE89370400440532013000 GB82WEST12345698765432 DE89370400440532013000"
    assert [each[2] for each in find(text, KINDS, "US")] == ["IBAN"] * 3

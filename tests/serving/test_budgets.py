"""Promises of budgets at the door: what is refused and how, what is billed, and what gives a budget back."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.records import Json
from potstill.serving.authenticate import Keys
from potstill.serving.call import Asked, Call
from potstill.serving.costs import Most, completion_bound, cost_of, prompt_bound, saved_usd
from potstill.serving.http import Http
from potstill.serving.key_records import Key, sha256_of
from potstill.serving.ledger import SqliteLedger
from potstill.serving.settings import ServeSettings
from potstill.serving.steps import Plan
from tests.serving.paid_server import CountingEngine, paid_server
from tests.serving.test_keys import asked

CHAT = "/v1/chat/completions"
NANO = 1_000_000_000
PRICES = {
    "prices": {"student": {"input": 1, "output": 2}, "baseline": {"input": 50, "output": 100}},
    "large": {"url": "http://127.0.0.1:9/v1", "model": "big", "price": {"input": 10, "output": 30, "cached": 1}},
}


def body(max_tokens: int) -> Json:
    return {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": max_tokens}


def standing(folder: Path, account: str) -> tuple[float, float]:
    ledger = SqliteLedger(folder)
    spent, allowed = ledger.standing(account)
    ledger.close()
    return spent / NANO, allowed / NANO


async def run(folder: Path, sizes: list[int], keys: Keys | None = None, key: str = "", **settings: Any) -> list[Any]:
    """One request a size, in turn, by a server that then ends."""
    server = paid_server(await CountingEngine().start(), folder, keys, **settings)
    await server.start()
    said = [await asked(server, CHAT, key, body(each)) for each in sizes]
    await server.close()
    return said


def test_a_request_that_might_not_fit_is_refused_and_one_that_does_is_billed_what_it_used(tmp_path: Path) -> None:
    # A token is 0.001 dollars, an answer half of what was reserved.
    said = asyncio.run(run(tmp_path, [1000, 1000, 1000, 400], budgets={"key": {"total_usd": 1.9}}))
    assert [each[0] for each in said] == [200, 200, 429, 200]  # 0.5, 1.0; 1.0 + 1.0 may be too much; 1.2
    _, headers, refused = said[2]
    assert refused["error"]["code"] == "insufficient_quota"
    assert refused["error"]["type"] == "insufficient_quota"
    assert "of 1.9 USD, 1 USD are spent, this request may need 1 USD" in refused["error"]["message"]
    assert headers["x-should-retry"] == "false"
    assert standing(tmp_path, "key:usd:total::") == (1.2, 0)


def test_a_daily_budget_says_when_it_begins_anew_and_is_a_days_own(tmp_path: Path) -> None:
    said = asyncio.run(run(tmp_path, [400, 400], budgets={"key": {"daily_usd": 0.5}}))
    assert [each[0] for each in said] == [200, 429]
    midnight = (datetime.now(UTC) + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    left_s = (midnight - datetime.now(UTC)).total_seconds()
    assert abs(int(said[1][1]["retry-after"]) - left_s) < 60
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert standing(tmp_path, f"key:usd:daily::{today}")[0] == 0.2


def test_keys_share_the_budget_of_their_tenant_and_others_do_not(tmp_path: Path) -> None:
    keys = Keys(
        {sha256_of(name): Key(name, tenant, sha256_of(name)) for name, tenant in (("a", "t"), ("b", "t"), ("c", "u"))}
    )
    tenants = {"tenants": {"t": {"total_usd": 1.0}}, "tenant": {"total_usd": 9.0}}

    async def main() -> list[int]:
        server = paid_server(await CountingEngine().start(), tmp_path, keys, budgets=tenants)
        await server.start()
        said = [(await asked(server, CHAT, name, body(800)))[0] for name in ("a", "b", "a", "c", "c")]
        await server.close()
        return said

    assert asyncio.run(main()) == [200, 429, 429, 200, 200]
    assert standing(tmp_path, "tenant:usd:total:t:") == (0.4, 0)


def test_a_stored_keys_own_budget_holds_without_any_in_the_settings(tmp_path: Path) -> None:
    class Stored:
        """Keys as `potstill keys` would have stored them."""

        def version(self) -> int:
            return 1

        def all(self) -> list[Key]:
            return [Key("a", "a", sha256_of("a"), total_usd=0.5), Key("b", "b", sha256_of("b"))]

        def close(self) -> None: ...

    keys = Keys(store=Stored())  # type: ignore[arg-type]  # nothing is changed here
    assert [each[0] for each in asyncio.run(run(tmp_path, [400, 400], keys, "a"))] == [200, 429]
    assert [each[0] for each in asyncio.run(run(tmp_path, [400, 400], keys, "b"))] == [200, 200]


def test_tokens_can_be_budgeted_too(tmp_path: Path) -> None:
    said = asyncio.run(run(tmp_path, [100, 100, 10**4], budgets={"key": {"total_tokens": 1000}}))
    assert [each[0] for each in said] == [200, 200, 429]
    ledger = SqliteLedger(tmp_path)
    assert ledger.standing("key:tokens:total::") == (2 * 55, 0)  # five of the prompt, fifty of the answer
    ledger.close()


def test_what_is_reserved_for_others_is_said_to_be_worth_another_try(tmp_path: Path) -> None:
    async def main() -> None:
        server = paid_server(await CountingEngine(hold_s=0.4).start(), tmp_path, budgets={"key": {"total_usd": 1.0}})
        await server.start()
        first = asyncio.create_task(asked(server, CHAT, "", body(900)))
        await asyncio.sleep(0.2)
        status, headers, refused = await asked(server, CHAT, "", body(200))
        assert (status, refused["error"]["type"], headers["retry-after"]) == (429, "budget_reserved", "1")
        assert "x-should-retry" not in headers
        assert (await first)[0] == 200
        assert (await asked(server, CHAT, "", body(200)))[0] == 200
        await server.close()

    asyncio.run(main())


def test_budgets_outlast_new_settings_and_the_server(tmp_path: Path) -> None:
    async def main() -> None:
        server = paid_server(await CountingEngine().start(), tmp_path, budgets={"key": {"total_usd": 1.0}})
        await server.start()
        assert (await asked(server, CHAT, "", body(900)))[0] == 200
        assert (await asked(server, CHAT, "", body(900)))[0] == 429
        more = server.settings.model_dump() | {"budgets": {"key": {"total_usd": 2.0}}}
        await server.reload(ServeSettings.model_validate(more))
        assert (await asked(server, CHAT, "", body(900)))[0] == 200
        await server.close()

    asyncio.run(main())
    assert asyncio.run(run(tmp_path, [1500], budgets={"key": {"total_usd": 2.0}}))[0][0] == 429
    assert standing(tmp_path, "key:usd:total::") == (0.9, 0)


def call_with(*asked: Asked, answered: Json | None = None) -> Call:
    call = Call(Http({"headers": []}, None, None), Plan.of([]))
    call.body, call.asked = body(100), list(asked)
    call.response = {"usage": answered} if answered else {}
    return call


def test_a_call_costs_what_was_asked_on_its_account_by_whom_it_was_asked() -> None:
    settings = ServeSettings.model_validate(PRICES)
    usage = {"prompt_tokens": 1000, "completion_tokens": 100}
    known = usage | {"prompt_tokens_details": {"cached_tokens": 400}}
    call = call_with(
        Asked("student", "m", usage, 0.1), Asked("repair", "m", usage, 0.1), Asked("large", "big", known, 1.0),
        Asked("hedge", "big", usage, 1.0), Asked("student", "m", {}, 0.0, "context_length_exceeded"),
        answered=usage,
    )  # fmt: skip
    student, large, cached = 0.0012, 0.013, 0.0094
    assert cost_of(call, settings) == pytest.approx(2 * student + large + cached)
    assert saved_usd(call, settings) == pytest.approx(0.06 - (2 * student + large + cached))


def test_a_question_without_usage_costs_its_bound() -> None:
    settings = ServeSettings.model_validate(PRICES | {"escalate": {}})
    call = call_with(Asked("student", "m", {}, 0.1, "left_early"), Asked("large", "big", {}, 0.1, "timeout"))
    assert cost_of(call, settings) == pytest.approx((prompt_bound(call.body) * 11 + 100 * 32) / 1e6)
    assert cost_of(call, settings) <= Most.of(settings).usd(call)


@given(texts=st.lists(st.text(max_size=200), min_size=1, max_size=4), n=st.integers(1, 3))
def test_no_prompt_has_more_tokens_than_its_bound(texts: list[str], n: int) -> None:
    call = call_with()
    call.body = body(7) | {"messages": [{"role": "user", "content": each} for each in texts], "n": n}
    most = sum(len(each.encode()) for each in texts) + 10 * len(texts)
    assert prompt_bound(json.loads(json.dumps(call.body))) >= most
    assert completion_bound(call) == 7 * n


def test_a_call_without_a_budget_opens_nothing(tmp_path: Path) -> None:
    keys = Keys({sha256_of("a"): Key("a", "a", sha256_of("a"))})
    began = time.monotonic()
    assert asyncio.run(run(tmp_path, [10], keys, "a"))[0][0] == 200
    assert time.monotonic() - began < 5
    assert not [each.name for each in tmp_path.iterdir() if "budget" in each.name or "ledger" in each.name]

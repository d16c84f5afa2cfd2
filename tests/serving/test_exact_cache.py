"""Promises of the exact cache: the same request, the same answer, once asked; and never anybody else's."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.errors import RecipeError
from potstill.serving.caches.cache_control import control_of
from potstill.serving.caches.kept import Kept
from potstill.serving.caches.key import WITHOUT_EFFECT, canonical, digest
from potstill.serving.caches.memory import OVERHEAD_BYTES, Memory
from potstill.serving.call import Call
from potstill.serving.steps import Step
from tests.serving.cached import QUESTIONS, TENANTS, Cached, InProcessEngine, Tenant, deployment, leaks

EXACT: Any = {"exact": {}}
LABELS = {"kind": "classification", "labels": ["yes", "no"]}


def echo(body: Any) -> str:
    """An answer that says what it is an answer to."""
    return f"{body['messages'][-1]['content']}!"


def run(test: Callable[[], Any]) -> None:
    asyncio.run(test())


def test_a_repeated_request_is_answered_under_a_fresh_id_without_the_engine() -> None:
    async def main() -> None:
        async with Cached(InProcessEngine(echo), cache=EXACT) as server:
            first, second = await server.ask("a"), await server.ask("a", user="someone else", metadata={"x": "y"})
            assert (first.cache, second.cache, second.headers["age"]) == ("miss", "hit", "0")
            assert len(server.engine.got) == 1
            assert first.body["id"] != second.body["id"]
            assert {**first.body, "id": ""} == {**second.body, "id": ""}
            streamed = await server.ask("a", stream=True)
            assert (streamed.cache, streamed.text) == ("hit", "a!")
            assert server.metric("potstill_cache_total", cache="exact", outcome="hit") == 2

    run(main)


def test_a_streamed_answer_is_kept_too() -> None:
    async def main() -> None:
        async with Cached(InProcessEngine(echo), cache=EXACT) as server:
            assert (await server.ask("a", stream=True)).text == "a!"
            again = await server.ask("a")
            assert (again.cache, again.text, len(server.engine.got)) == ("hit", "a!", 1)

    run(main)


def test_off_leaves_no_trace() -> None:
    async def main() -> None:
        async with Cached(InProcessEngine(echo)) as server:
            assert [(await server.ask("a")).cache for _ in range(2)] == [None, None]
            assert len(server.engine.got) == 2

    run(main)


@pytest.mark.parametrize(
    ("engine", "task"),
    [
        (InProcessEngine(lambda _: "maybe"), LABELS),
        (InProcessEngine(lambda _: "cut", finish="length"), None),
        (InProcessEngine(lambda _: None), None),
    ],
    ids=["invalid", "truncated", "broken"],
)
def test_what_is_not_a_whole_valid_answer_is_never_kept(engine: InProcessEngine, task: Any) -> None:
    async def main() -> None:
        async with Cached(engine, task=task, cache=EXACT) as server:
            assert [(await server.ask("a")).cache for _ in range(3)] == ["miss"] * 3
            assert len(engine.got) == 3

    engine.got.clear()
    run(main)


def test_truncated_answers_and_sampled_ones_are_kept_when_asked_for() -> None:
    async def main() -> None:
        wanted: Any = {"exact": {"truncated": True, "any_temperature": True}}
        async with Cached(InProcessEngine(echo, finish="length"), cache=wanted) as server:
            assert [(await server.ask("a", temperature=0.7)).cache for _ in range(2)] == ["miss", "hit"]
        async with Cached(InProcessEngine(echo), cache=EXACT) as server:
            assert [(await server.ask("a", temperature=0.7)).cache for _ in range(2)] == ["bypass"] * 2

    run(main)


def test_what_is_kept_is_what_went_out_after_later_steps() -> None:
    class Blacken(Step):
        async def after(self, call: Call) -> None:
            call.response["choices"][0]["message"]["content"] = "***"

    async def main() -> None:
        async with Cached(InProcessEngine(echo), cache=EXACT, after=[lambda _: Blacken()]) as server:
            assert [(await server.ask("secret")).text for _ in range(2)] == ["***", "***"]
            assert len(server.engine.got) == 1

    run(main)


def test_cache_control_of_the_client_is_kept() -> None:
    async def main() -> None:
        async with Cached(InProcessEngine(echo), cache=EXACT) as server:
            await server.ask("a", {"cache-control": "no-store"})
            assert (await server.ask("a")).cache == "miss"
            assert (await server.ask("a", {"cache-control": "no-cache"})).cache == "bypass"
            assert (await server.ask("a", {"cache-control": "max-age=60"})).cache == "hit"
            assert (await server.ask("a", {"cache-control": "max-age=0"})).cache == "bypass"
            assert len(server.engine.got) == 4

    run(main)
    assert control_of("max-age=nonsense").read is False
    assert control_of("private, no-transform").read is True


def test_answers_age_and_the_least_used_go_first() -> None:
    memory = Memory(ttl_s=10, max_entries=2, max_bytes=10_000)
    for name in (b"a", b"b"):
        memory.put(name, Kept(b"x", time.time()))
    assert memory.get(b"a") is not None
    memory.put(b"c", Kept(b"x", time.time()))
    assert (memory.get(b"b"), len(memory)) == (None, 2)
    memory.put(b"old", Kept(b"x", time.time() - 11))
    assert memory.get(b"old") is None
    memory.put(b"large", Kept(b"x" * 9_000, time.time()))
    memory.put(b"larger", Kept(b"x" * 9_500, time.time()))
    assert memory.get(b"large") is None
    memory.put(b"too large", Kept(b"x" * 10_000, time.time()))
    assert memory.get(b"larger") is not None
    assert memory.size_bytes == 9_500 + OVERHEAD_BYTES


# Single-flight.


def test_a_thousand_identical_requests_ask_the_engine_once() -> None:
    async def main() -> None:
        async with Cached(InProcessEngine(echo, after_s=0.05), cache=EXACT) as server:
            got = await asyncio.gather(*(server.ask("a", stream=at % 3 == 0) for at in range(1000)))
            assert {each.text for each in got} == {"a!"}
            assert len(server.engine.got) == 1
            assert sorted(each.cache or "" for each in got) == ["miss"] + ["shared"] * 999

    run(main)


def test_a_leader_that_fails_or_leaves_hands_on_to_one_that_waits() -> None:
    async def main() -> None:
        answers = iter([None, None, "ok", "not asked"])
        async with Cached(InProcessEngine(lambda _: next(answers), after_s=0.02), cache=EXACT) as server:
            got = await asyncio.gather(*(server.ask("a") for _ in range(20)))
            assert sorted(each.status for each in got) == [200] * 18 + [503] * 2
            assert len(server.engine.got) == 3
        async with Cached(InProcessEngine(echo, after_s=0.1), cache=EXACT) as server:
            left = asyncio.Event()
            raw = json.dumps({"model": "m", "messages": [{"role": "user", "content": "b"}]}).encode()
            leader = asyncio.create_task(server.send(raw, left=left))
            await asyncio.sleep(0.05)
            others = [asyncio.create_task(server.ask("b")) for _ in range(10)]
            await asyncio.sleep(0.01)
            left.set()
            assert (await leader).status == 0
            assert {(await each).text for each in others} == {"b!"}
            assert (len(server.engine.got), server.engine.left) == (2, 1)

    run(main)


def test_one_that_waits_and_leaves_harms_nobody() -> None:
    async def main() -> None:
        async with Cached(InProcessEngine(echo, after_s=0.15), cache=EXACT) as server:
            left = asyncio.Event()
            raw = json.dumps({"model": "m", "messages": [{"role": "user", "content": "b"}]}).encode()
            leader = asyncio.create_task(server.send(raw, left=left))
            await asyncio.sleep(0.01)
            waiters = [asyncio.create_task(server.send(raw, left=left)) for _ in range(5)]
            stayer = asyncio.create_task(server.ask("b"))
            await asyncio.sleep(0.05)
            left.set()
            assert (await stayer).text == "b!"
            assert {each.status for each in await asyncio.gather(leader, *waiters)} == {0}
            assert (await server.ask("b")).cache == "hit"

    run(main)


def test_nobody_waits_past_the_deadline_and_a_stuck_leader_is_joined() -> None:
    async def main() -> None:
        async with Cached(InProcessEngine(echo, after_s=5), cache=EXACT, request_timeout_s=0.2) as server:
            began = time.monotonic()
            got = await asyncio.gather(*(server.ask("a") for _ in range(50)))
            assert {each.status for each in got} == {504}
            assert time.monotonic() - began < 1.5
        slow = iter([1.0, *[0.0] * 9])
        engine = InProcessEngine(echo)
        post = engine.post

        async def first_is_stuck(path: str, body: bytes, deadline: float) -> Any:
            await asyncio.sleep(next(slow))
            return await post(path, body, deadline)

        engine.post = first_is_stuck  # type: ignore[method-assign]
        async with Cached(engine, cache={"exact": {"wait_s": 0.1}}) as server:
            stuck = asyncio.create_task(server.ask("a"))
            await asyncio.sleep(0.01)
            began = time.monotonic()
            got = await asyncio.gather(*(server.ask("a") for _ in range(50)))
            assert {each.text for each in got} == {"a!"}
            assert time.monotonic() - began < 0.8
            assert (await stuck).text == "a!"
            assert len(engine.got) == 2

    run(main)


# The key.

texts = st.text(max_size=6)
fields = {
    "messages": st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": texts}),
        min_size=1, max_size=3,
    ),
    "temperature": st.sampled_from([0.0, 0.5, 1.0]),
    "top_p": st.sampled_from([0.3, 1.0]),
    "max_tokens": st.integers(1, 3),
    "seed": st.integers(0, 2),
    "stop": st.lists(texts, min_size=1, max_size=2),
    "n": st.integers(1, 2),
    "presence_penalty": st.sampled_from([0.5, 1.0]),
    "frequency_penalty": st.sampled_from([0.5, 1.0]),
    "logit_bias": st.dictionaries(st.sampled_from(["1", "2"]), st.just(1.0), min_size=1),
    "logprobs": st.just(True),
    "top_logprobs": st.integers(1, 2),
    "tools": st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": st.just({"name": "f"})}),
                      min_size=1, max_size=2),
    "tool_choice": st.sampled_from(["none", "required"]),
    "parallel_tool_calls": st.booleans(),
    "response_format": st.sampled_from([{"type": "json_object"}, {"type": "json_schema", "json_schema": {"a": 1}}]),
    "something_new": st.integers(0, 1),
}  # fmt: skip
bodies = st.fixed_dictionaries(
    {"messages": fields["messages"]}, optional={name: each for name, each in fields.items() if name != "messages"}
)


@settings(max_examples=400, deadline=None)
@given(bodies, st.sampled_from(sorted(fields)), st.data())
def test_requests_that_differ_in_what_counts_never_share_a_key(body: Any, name: str, data: st.DataObject) -> None:
    other = {**body, name: data.draw(fields[name])}
    same_as_absent = {"temperature": 0.0, "top_p": 1.0, "n": 1}
    values = [each.get(name, same_as_absent.get(name)) for each in (body, other)]
    assert (digest(canonical(body)) == digest(canonical(other))) == (values[0] == values[1])


@settings(max_examples=200, deadline=None)
@given(bodies, st.randoms(), st.sampled_from(sorted(WITHOUT_EFFECT)), st.text())
def test_the_order_of_keys_and_fields_without_effect_make_no_other_key(
    body: Any, draw: random.Random, name: str, value: str
) -> None:
    def reordered(found: Any) -> Any:
        if isinstance(found, dict):
            keys = list(found)
            draw.shuffle(keys)
            return {key: reordered(found[key]) for key in keys}
        return [reordered(each) for each in found] if isinstance(found, list) else found

    if name == "stream":
        body.pop("logprobs", None)  # a stream has not all that a whole answer has
    assert digest(canonical(body)) == digest(canonical(reordered({**body, name: value})))


def test_one_request_in_two_forms_has_one_key() -> None:
    plain: Any = {"messages": [{"role": "user", "content": "a\nb"}], "max_tokens": 3, "stop": ["x"]}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    other: Any = {
        "messages": [{"role": "user", "content": parts, "name": None}], "max_completion_tokens": 3, "stop": "x",
        "temperature": 0, "n": 1, "top_p": 1, "tools": None, "response_format": {"type": "text"}, "logprobs": False,
    }  # fmt: skip
    assert digest(canonical(plain)) == digest(canonical(other))
    assert digest(["ab", "c"]) != digest(["a", "bc"])


def test_another_version_another_policy_another_tenant_share_nothing() -> None:
    async def main() -> None:
        engine = InProcessEngine(echo)
        async with Cached(engine, cache=EXACT, first=[Tenant.make]) as server:
            assert (await server.ask("a", {"x-tenant": "one"})).cache == "miss"
            assert (await server.ask("a", {"x-tenant": "two"})).cache == "miss"
            await server.server.reload(server.server.settings.model_copy(update={"slots": 7}))
            assert (await server.ask("a", {"x-tenant": "one"})).cache == "hit"
            await server.server.reload(server.server.settings.model_copy(update={"constrain": False}))
            assert (await server.ask("a", {"x-tenant": "one"})).cache == "miss"
            await server.server.fleet.swap(deployment(engine, name="m@2", digest="e"))
            assert (await server.ask("a", {"x-tenant": "one"})).cache == "miss"
            assert len(engine.got) == 4

    run(main)


@pytest.mark.parametrize("shared", [False, True], ids=["memory", "sqlite"])
def test_ten_thousand_probes_across_tenants_leak_nothing(shared: bool, tmp_path: Path) -> None:
    async def main() -> None:
        engine = InProcessEngine(echo, after_s=0.002)
        wanted: Any = {"exact": {"shared": shared}}
        async with Cached(engine, cache=wanted, first=[Tenant.make], state_dir=tmp_path) as server:
            assert await leaks(server, 10_000) == 0
            assert len(engine.got) == TENANTS * QUESTIONS

    run(main)


def test_answers_in_sqlite_survive_a_restart_and_reach_other_workers(tmp_path: Path) -> None:
    async def main() -> None:
        wanted: Any = {"exact": {"shared": True}}
        async with Cached(InProcessEngine(echo), cache=wanted, state_dir=tmp_path) as server:
            assert (await server.ask("a")).cache == "miss"
        first, second = InProcessEngine(echo), InProcessEngine(echo)
        async with (
            Cached(first, cache=wanted, state_dir=tmp_path) as one,
            Cached(second, cache=wanted, state_dir=tmp_path) as two,
        ):
            assert (await one.ask("a")).cache == "hit"
            assert (await one.ask("b")).cache == "miss"
            await asyncio.sleep(0.1)
            assert (await two.ask("b")).cache == "hit"
            assert (len(first.got), len(second.got)) == (1, 0)

    run(main)


def test_sqlite_stays_within_its_bounds(tmp_path: Path) -> None:
    from potstill.serving.caches import behind

    async def main() -> None:
        store = behind.SqliteStore(tmp_path / "x.sqlite", 3600, 500, 10_000_000)
        await store.start()
        for at in range(2 * behind.PRUNE_EVERY):
            store.put(digest(at), Kept(b"{}", time.time()))
            if at % 500 == 499:
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)
        count = store._write_to.execute("SELECT count(*) FROM answers").fetchone()[0]
        await store.close()
        assert 0 < count <= 500

    run(main)


def test_a_file_that_is_no_database_is_named_at_start(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "exact-cache.sqlite").write_bytes(b"no database at all" * 100)
        with pytest.raises(RecipeError, match=r"exact-cache\.sqlite: cannot be used as a cache"):
            async with Cached(InProcessEngine(echo), cache={"exact": {"shared": True}}, state_dir=tmp_path):
                pass

    run(main)


def test_a_reply_that_belongs_to_another_key_is_a_miss() -> None:
    mine, other = digest("mine"), digest("other")
    packed = Kept(b"{}", 5.0).packed(other)
    assert Kept.unpacked(mine, packed) is None
    assert Kept.unpacked(other, packed) == Kept(b"{}", 5.0)
    assert Kept.unpacked(mine, b"short") is None
    assert Kept.unpacked(mine, None) is None


def test_the_engines_own_prefix_reuse_is_counted_and_said() -> None:
    async def main() -> None:
        async with Cached(InProcessEngine(echo, cached_tokens=6), cache=EXACT) as server:
            got = await server.ask("a")
            assert got.headers["x-potstill-prefix-cached"] == "6"
            assert got.body["usage"]["prompt_tokens_details"] == {"cached_tokens": 6}
            await server.ask("a")  # answered from the cache: no prompt was read
            assert server.metric("potstill_engine_prompt_tokens_total", how="reused") == 6
            assert server.metric("potstill_engine_prompt_tokens_total", how="computed") == 3

    run(main)

"""Promises of the semantic cache: an error rate within its bound, what is learnt is kept, and nobody else's answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potstill.errors import RecipeError
from potstill.serving.caches.kept import Kept
from potstill.serving.caches.nearest import Points, search
from potstill.serving.caches.verified import AUDIT, Beliefs, features, fit, refit, share_given
from tests.serving.cached import Cached, InProcessEngine, Tenant

pytest.importorskip("wordllama", reason="the embeddings are not installed (extra: semantic)")

SUBJECTS = ("card", "transfer", "refund", "exchange rate", "password", "top-up", "cash withdrawal", "statement")
OPENINGS = (
    "please tell me about my", "I have a question on the", "can you help with my", "what about the", "hello, my",
    "something is wrong with my", "I need information on the", "could someone look at my", "help me with the",
    "about my",
)  # fmt: skip
ENDINGS = ("", "please", "thanks", "as soon as possible", "today", "now", "if you can", "it is urgent", "again", "!")
TASK = {"kind": "classification", "labels": list(SUBJECTS)}
LEARNING: Any = {"semantic": {"delta": 0.1, "bound": "answers"}}


def paraphrases(count: int, seed: int) -> Iterator[str]:
    draw = random.Random(seed)
    for _ in range(count):
        yield f"{draw.choice(OPENINGS)} {draw.choice(SUBJECTS)} {draw.choice(ENDINGS)}"


def subject_of(body: Any) -> str:
    text = body["messages"][-1]["content"]
    return next((each for each in SUBJECTS if each in text), SUBJECTS[0])


SHARES = subject_of


async def learn(server: Cached, count: int = 400) -> None:
    for text in paraphrases(count, seed=1):
        await server.ask(text)
        await asyncio.sleep(0)
    await asyncio.sleep(0.3)


def run(test: Callable[[], Any]) -> None:
    asyncio.run(test())


def test_paraphrases_are_answered_without_the_engine_once_it_is_known_what_is_the_same() -> None:
    async def main() -> None:
        async with Cached(InProcessEngine(subject_of), task=TASK, cache=LEARNING) as server:
            await learn(server)
            before = len(server.engine.got)
            hits = wrong = 0
            for text in paraphrases(300, seed=2):
                got = await server.ask(text)
                hits += got.cache == "hit"
                wrong += got.text != subject_of({"messages": [{"content": text}]})
                if got.cache == "hit":
                    assert 0 < float(got.headers["x-potstill-similarity"]) <= 1
            assert hits >= 100
            assert len(server.engine.got) - before == 300 - hits
            assert wrong <= 0.1 * 300
            assert server.metric("potstill_cache_explored_total", equal="true") > 0

    run(main)


def test_nothing_is_given_before_anything_is_known() -> None:
    async def main() -> None:
        async with Cached(InProcessEngine(subject_of), task=TASK, cache=LEARNING) as server:
            for text in paraphrases(90, seed=3):
                assert (await server.ask(text)).cache == "miss"
            assert len(server.engine.got) == 90

    run(main)


def test_never_across_tenants_versions_frames_nor_where_it_was_not_asked_for() -> None:
    async def main() -> None:
        async with Cached(InProcessEngine(subject_of), task=TASK, cache=LEARNING, first=[Tenant.make]) as server:
            await learn(server)
            text = next(paraphrases(1, seed=4))
            seen = [await server.ask(text) for _ in range(30)]
            assert any(each.cache == "hit" for each in seen)
            earlier = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "card"}]
            system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": text}
            others: list[dict[str, Any]] = [
                {"text": text, "headers": {"x-tenant": "another"}},
                {"text": text, "temperature": 0.5},
                {"text": text, "logprobs": True},
                {"text": text, "max_tokens": 3},
                {"text": text, "headers": {"cache-control": "no-cache"}},
                {"messages": [*earlier, user]},
                {"messages": [system, user]},
                {"text": text + " and so on" * 300},
            ]
            for other in others:
                for _ in range(10):
                    assert (await server.ask(**other)).cache != "hit", other

    run(main)


def test_five_thousand_probes_across_tenants_leak_nothing() -> None:
    """Every tenant's engine gives answers of its own to the same words; half the tenants have been learnt by heart."""

    async def main() -> None:
        tenants = [f"tenant{at}" for at in range(5)]
        labels = [f"{subject} of {tenant}" for tenant in tenants for subject in SUBJECTS]

        def answer(body: Any) -> str:
            return f"{subject_of(body)} of {body['messages'][0]['content']}"

        from potstill.serving.call import Call
        from potstill.serving.steps import Plan, Step

        class Told(Step):
            async def before(self, call: Call) -> None:
                call.upstream["messages"].insert(0, {"role": "system", "content": call.tenant})

        engine = InProcessEngine(answer)
        task = {"kind": "classification", "labels": labels}
        async with Cached(engine, task=task, cache=LEARNING, first=[Tenant.make]) as server:
            steps = list(server.server.plan.steps)
            at = next(at for at, each in enumerate(steps) if type(each).__name__ == "Constrain")
            server.server.plan = Plan.of([*steps[:at], Told(), *steps[at:]])
            draw, hits, leaked = random.Random(5), 0, 0

            async def probe(text: str) -> tuple[bool, bool]:
                tenant = draw.choice(tenants)
                got = await server.ask(text, {"x-tenant": tenant})
                return got.cache == "hit", not got.text.endswith(f" of {tenant}")

            for start in range(0, 5_000, 200):
                found = await asyncio.gather(*(probe(text) for text in paraphrases(200, seed=start)))
                hits, leaked = hits + sum(hit for hit, _ in found), leaked + sum(wrong for _, wrong in found)
            assert leaked == 0
            assert hits > 1_500

    run(main)


def test_what_was_learnt_survives_a_restart_and_reaches_other_workers(tmp_path: Path) -> None:
    async def main() -> None:
        wanted: Any = {"semantic": {"delta": 0.1, "bound": "answers", "shared": True}}
        one = Cached(InProcessEngine(subject_of), task=TASK, cache=wanted, state_dir=tmp_path)
        async with one:
            await learn(one)
        async with Cached(InProcessEngine(subject_of), task=TASK, cache=wanted, state_dir=tmp_path) as two:
            await two.ask("the first finds what was learnt before")
            await asyncio.sleep(0.5)
            got = [(await two.ask(text)).cache for text in paraphrases(60, seed=9)]
            assert got.count("hit") >= 20

    run(main)


def test_other_settings_do_not_make_it_forget_unless_they_change_answers() -> None:
    async def main() -> None:
        async with Cached(InProcessEngine(subject_of), task=TASK, cache=LEARNING) as server:
            await learn(server)
            texts, now = list(paraphrases(40, seed=6)), server.server.settings
            await server.server.reload(now.model_copy(update={"slots": 7}))
            assert [(await server.ask(text)).cache for text in texts].count("hit") >= 10
            await server.server.reload(now.model_copy(update={"constrain": False}))
            assert [(await server.ask(text)).cache for text in texts].count("hit") == 0

    run(main)


def test_an_invalid_answer_teaches_nothing() -> None:
    async def main() -> None:
        async with Cached(InProcessEngine(lambda _: "nonsense"), task=TASK, cache=LEARNING) as server:
            await learn(server, 150)
            assert server.metric("potstill_cache_explored_total", equal="true") == 0
            assert len(server.engine.got) == 150

    run(main)


def test_without_the_package_the_server_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from potstill.serving.caches import embedding

    monkeypatch.setattr(embedding, "PACKAGE", "no_such_package_at_all")
    with pytest.raises(RecipeError, match="potstill\\[semantic\\]"):
        Cached(InProcessEngine(subject_of), cache=LEARNING)


# What is learnt.


def drawn(draw: np.random.Generator, theta: Any, sd: float, rows: int, entries: int) -> tuple[Any, Any, Any]:
    """Observations of the model itself."""
    similarity = draw.uniform(0.4, 0.99, rows)
    other = similarity - draw.uniform(0, 0.3, rows)
    x = np.stack([features(s, o) for s, o in zip(similarity, other, strict=True)])
    entry = draw.integers(0, entries, rows)
    eta = x @ np.array(theta) + sd * draw.standard_normal(entries)[entry]
    return x, (draw.random(rows) < 1 / (1 + np.exp(-eta))).astype(float), entry


def test_the_fit_finds_the_parameters_that_made_the_observations() -> None:
    truth, sd = [-2.0, 1.5, 2.0], 0.8
    x, right, entry = drawn(np.random.default_rng(0), truth, sd, 12_000, 800)
    found = fit(x, right, entry, len(x))
    spread = np.sqrt(np.diag(found.cov))
    assert np.all(np.abs(found.theta - truth) < 4 * spread)
    assert np.all(spread < 0.25)
    assert abs(found.sd - sd) < 0.2


@pytest.mark.parametrize("bound", ["answers", "hits"])
@pytest.mark.parametrize("delta", [0.02, 0.1])
def test_errors_stay_within_the_bound_where_the_model_holds(delta: float, bound: str) -> None:
    """Over several streams of the model's own making, fits included, the share of wrong answers is delta at most."""
    given = wrong = asked = 0
    for seed in range(3):
        draw = np.random.default_rng(seed)
        x, right, entry = drawn(draw, [-2.0, 1.5, 2.0], 0.8, 4_000, 200)
        beliefs = Beliefs()
        for row, truth, of in zip(x, right, entry, strict=True):
            alpha = beliefs.sure(int(of), row)
            if draw.random() < share_given(alpha, delta, bound):
                given, wrong = given + 1, wrong + int(truth == 0)
                continue
            asked += 1
            beliefs.observe(int(of), row, bool(truth), 1 - alpha if alpha >= 1 - delta else None)
            if beliefs.due:
                beliefs.fit = refit(*beliefs.material())
    of_all = given + asked if bound == "answers" else given
    assert given > 400
    assert wrong <= delta * of_all


def test_an_entry_that_was_wrong_is_believed_less_than_one_that_was_right() -> None:
    beliefs = Beliefs()
    x, right, entry = drawn(np.random.default_rng(3), [-2.0, 1.5, 2.0], 1.5, 3_000, 200)
    for row, truth, of in zip(x, right, entry, strict=True):
        beliefs.observe(int(of), row, bool(truth))
    beliefs.fit = refit(*beliefs.material())
    for _ in range(5):
        beliefs.observe(1000, features(0.9, 0.6), True)
        beliefs.observe(1001, features(0.9, 0.6), False)
    right_one, new_one, wrong_one = (beliefs.sure(of, features(0.9, 0.6)) for of in (1000, 1002, 1001))
    assert wrong_one < new_one < right_one


def test_an_audit_that_finds_more_errors_than_foreseen_lowers_what_is_believed() -> None:
    beliefs = Beliefs()
    for row, truth, of in zip(*drawn(np.random.default_rng(4), [-2.0, 1.5, 2.0], 0.5, 3_000, 200), strict=True):
        beliefs.observe(int(of), row, bool(truth))
    beliefs.fit = refit(*beliefs.material())
    x = features(0.99, 0.3)
    before = beliefs.sure(-1, x)
    for at in range(10):
        beliefs.observe(5000 + at, x, False, 1 - before)
    assert 1 - beliefs.sure(-1, x) > 3 * (1 - before)
    assert share_given(1.0, 0.01, "hits") == 1 - AUDIT


def test_memory_of_what_is_learnt_is_bounded() -> None:
    from potstill.serving.caches import verified

    beliefs = Beliefs()
    x = features(0.9, 0.5)
    for at in range(2 * verified.MOST + 10):
        beliefs.observe(at % 7, x, at % 3 > 0)
    assert beliefs.count == 2 * verified.MOST + 10
    assert len(beliefs._x) <= 4 * verified.MOST
    assert len(beliefs.material()[0]) == verified.MOST
    assert all(len(each) <= verified.MOST_OF_ONE for each in beliefs._of_entry.values())
    beliefs.fit = refit(*beliefs.material())
    assert 0 < beliefs.sure(3, x) < 1


# The search.


def unit(draw: np.random.Generator, rows: int) -> Any:
    found = draw.standard_normal((rows, 256), dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_the_search_in_blocks_finds_what_a_look_at_all_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    from potstill.serving.caches import nearest

    monkeypatch.setattr(nearest, "BLOCK_ROWS", 7)
    draw = np.random.default_rng(0)
    for rows in (1, 6, 7, 8, 100):
        vectors, codes = unit(draw, rows), draw.integers(0, 3, rows)
        for vector in unit(draw, 20):
            cosines = vectors @ vector
            row, similarity, other = search(vectors, codes, vector)
            if cosines.max() <= 0:
                assert row == -1
                continue
            assert row == int(cosines.argmax())
            rest = cosines[codes != codes[row]]
            assert similarity == pytest.approx(float(cosines.max()), abs=1e-6)
            assert other == pytest.approx(max(0.0, float(rest.max())) if len(rest) else 0.0, abs=1e-6)


def test_points_forget_the_oldest_and_what_is_too_old() -> None:
    import time

    async def main() -> None:
        draw = np.random.default_rng(1)
        points, vectors, now = Points(100), unit(draw, 250), time.time()
        numbers = [points.add(b"", each, 0, Kept(b"", now)).number for each in vectors]
        assert len(points) == 100
        assert [points.get(number) is not None for number in numbers] == [False] * 150 + [True] * 100
        near = await points.nearest(vectors[200], 60)
        assert near is not None
        assert (near.entry, round(near.similarity, 5)) == (numbers[200], 1.0)
        aged = Points(100)
        for at, each in enumerate(vectors[:80]):
            aged.add(b"", each, 0, Kept(b"", now - (100 if at < 50 else 0)))
        near = await aged.nearest(vectors[10], 60)
        assert near is None or aged.get(near.entry) is not None
        assert len(aged) == 30
        aged.add(b"", vectors[90], 0, Kept(b"", now))
        found = await aged.nearest(vectors[90], 60)
        assert found is not None
        assert found.similarity > 0.999

    run(main)

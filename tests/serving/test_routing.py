"""Promises of direct routes, canaries and shadow mode: who is asked is settled by what the recipe says."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from potstill.calibration import learned
from potstill.calibration.conformal import Bound
from potstill.calibration.record import Calibration
from potstill.errors import RecipeError
from potstill.manifest import write_manifest
from potstill.records import Json
from potstill.serving.capture import CaptureLog
from potstill.serving.meter import Meter
from potstill.serving.routing import Condition

from .scripted import INSTRUCTIONS, Scripted, asked, deployment, said, says, serving


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


@pytest.mark.parametrize(
    ("rule", "body", "by"),
    [
        ({"when": [{"field": "metadata.tier", "equals": "gold"}]}, {"metadata": {"tier": "gold"}}, "large"),
        ({"when": [{"field": "metadata.tier", "equals": "gold"}]}, {"metadata": {"tier": "tin"}}, "engine"),
        ({"when": [{"field": "metadata.tier", "equals": "gold"}]}, {}, "engine"),
        ({"when": [{"field": "model", "starts": "m"}, {"field": "user", "exists": False}]}, {}, "large"),
        ({"when": [{"field": "characters", "over": 50}]}, {}, "large"),
        ({"when": [{"field": "characters", "over": 50, "under": 60}]}, {}, "engine"),
        ({"when": [{"field": "user", "one_of": ["a", "b"]}]}, {"user": "b"}, "large"),
        ({"share": 0.0}, {}, "engine"),
        ({"share": 1.0}, {}, "large"),
    ],
)
def test_a_rule_sends_what_it_describes_to_the_large_model(rule: Json, body: Json, by: str) -> None:
    async def main() -> None:
        async with Scripted(says(said("refund"))) as student, Scripted(says("card_lost")) as large:
            answer = await asked(serving(student, large, direct={"rules": [rule]}, escalate={}), **body)
            assert answer.by == by
            assert (len(student.got), len(large.got)) == ((0, 1) if by == "large" else (1, 0))

    run(main())


def test_the_first_rule_that_takes_a_request_decides() -> None:
    async def main() -> None:
        rules = [{"when": [{"field": "user", "equals": "a"}], "to": "student"}, {}]
        async with Scripted(says(said("refund"))) as student, Scripted(says("card_lost")) as large:
            server = serving(student, large, direct={"rules": rules}, escalate={})
            assert (await asked(server, user="a")).by == "engine"
            assert (await asked(server, user="b")).by == "large"

    run(main())


def test_a_condition_that_tests_nothing_or_an_unknown_field_is_refused() -> None:
    for wrong in ({"field": "model"}, {"field": "headers.cookie", "equals": "x"}):
        with pytest.raises(ValidationError):
            Condition.model_validate(wrong)


def test_a_share_keeps_conversations_together_and_a_larger_one_only_adds() -> None:
    async def main() -> None:
        async with Scripted(says(said("refund"))) as student, Scripted(says("card_lost")) as large:
            taken: dict[float, set[int]] = {}
            for share in (0.2, 0.5):
                server = serving(student, large, direct={"rules": [{"share": share}]}, escalate={})
                answers = {}
                for conversation in range(60):
                    metadata = {"conversation": str(conversation)}
                    both = {(await asked(server, metadata=metadata)).by for _ in range(2)}
                    assert len(both) == 1
                    answers[conversation] = both.pop()
                taken[share] = {at for at, by in answers.items() if by == "large"}
            assert taken[0.2] < taken[0.5]
            assert 4 <= len(taken[0.2]) <= 22
            assert 18 <= len(taken[0.5]) <= 42

    run(main())


@pytest.mark.parametrize("large_says", [(500, {}, "no"), "not a label"])
def test_a_large_model_that_gives_nothing_leaves_the_request_to_the_student_or_refuses_it(large_says: Any) -> None:
    async def main() -> None:
        async with Scripted(says(said("refund"))) as student, Scripted(says(large_says)) as large:
            settings: Json = {"retries": None, "escalate": {}}
            answer = await asked(serving(student, large, direct={"rules": [{}]}, **settings))
            assert (answer.text, answer.by) == ("refund", "engine")
            answer = await asked(serving(student, large, direct={"rules": [{}], "on_fault": "refuse"}, **settings))
            assert (answer.status, answer.body["error"]["code"]) == (503, "large_unavailable")

    run(main())


def routed(folder: Path) -> Path:
    """A calibration whose learned router thinks that the student knows refunds and nothing else."""
    texts = ["a refund please", "my refund"] * 40 + ["where is my card", "card lost"] * 40
    losses = [0.0] * 80 + [1.0] * 80
    router = learned.fit(texts, losses, strength=100.0)
    points = [(router.probability(text), loss) for text, loss in zip(texts, losses, strict=True)]
    found = Calibration(
        "a" * 64, "scripted", "d" * 64, "classification", "label", "answer", points, Bound(0.05), points, router
    )
    folder.mkdir()
    found.write(folder)
    write_manifest(folder, "calibration", settings_passed={}, settings_used={}, inputs=[], facts=found.facts())
    return folder


def test_a_learned_router_decides_before_the_student_is_asked(tmp_path: Path) -> None:
    async def main() -> None:
        folder = str(routed(tmp_path / "c"))
        async with Scripted(says(said("refund"))) as student, Scripted(says("card_lost")) as large:
            server = serving(student, large, direct={"calibration": folder}, escalate={})
            system = {"role": "system", "content": INSTRUCTIONS}
            easy = [system, {"role": "user", "content": "a refund please"}]
            assert (await asked(server, messages=easy)).by == "engine"
            hard = [system, {"role": "user", "content": "where is my card"}]
            assert (await asked(server, messages=hard)).by == "large"
            assert len(student.got) == 1

    run(main())


def test_a_calibration_without_a_learned_router_is_refused_for_direct(tmp_path: Path) -> None:
    from .test_escalation import calibrated

    async def main() -> None:
        folder = str(calibrated(tmp_path / "c"))
        async with Scripted(says(said("refund"))) as student, Scripted(says("x")) as large:
            with pytest.raises(RecipeError, match="holds no learned router"):
                serving(student, large, direct={"calibration": folder})

    run(main())


def test_a_canary_takes_its_share_and_a_conversation_stays_with_one_version() -> None:
    async def main() -> None:
        async with Scripted(says(said("refund"))) as old, Scripted(says(said("card_lost"))) as new:
            server = serving(old, canary={"share": 0.3})
            await server.fleet.set_canary("m", deployment("m@2", new, digest="b"))
            seen = Counter[str]()
            for conversation in range(60):
                metadata = {"conversation": str(conversation)}
                answers = [await asked(server, metadata=metadata) for _ in range(2)]
                versions = {each.headers["x-potstill-artifact"] for each in answers}
                assert len(versions) == 1
                assert {each.text for each in answers} == ({"card_lost"} if versions == {"b" * 12} else {"refund"})
                seen.update(versions)
            assert 6 <= seen["b" * 12] <= 32
            assert (await asked(server, model="m@2")).text == "card_lost"
            await server.fleet.swap(server.fleet.canary("m"))
            assert (await asked(server)).text == "card_lost"
            assert server.fleet.canary("m") is None
            await server.fleet.close()

    run(main())


def test_a_canary_that_fails_costs_nobody_an_answer() -> None:
    async def main() -> None:
        async with Scripted(says(said("refund"))) as old, Scripted(says(ConnectionResetError())) as new:
            server = serving(old, canary={"share": 1.0})
            trial = deployment("m@2", new, digest="b")
            await server.fleet.set_canary("m", trial)
            for stream in (False, True):
                answer = await asked(server, stream=stream)
                assert (answer.status, answer.headers["x-potstill-artifact"]) == (200, "a" * 12)
                assert b"refund" in answer.raw
            assert (trial.held, server.current.held) == (0, 0)
            await server.fleet.set_canary("m", None)
            assert (await asked(server)).text == "refund"
            await server.fleet.close()

    run(main())


def test_the_user_sees_the_champion_while_the_shadow_is_counted_and_captured(tmp_path: Path) -> None:
    async def main() -> None:
        async with Scripted(says(said("refund"))) as student, Scripted(says("refund", "card_lost", "zzz")) as large:
            server = serving(student, large, shadow={"candidate": "large", "share": 1.0}, breaker=None)
            server.log = CaptureLog(tmp_path, Meter(), sample=1.0, durable=False, redact=None)
            plan = server.plan
            for step in plan.steps:
                await step.start()
            for _ in range(3):
                answer = await asked(server)
                assert answer.text == "refund"
                await asyncio.sleep(0.05)
            while len(large.got) < 3:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            for step in plan.steps:
                await step.close()
            server.log.close()
            text = server.meter.text().decode()
            for outcome in ("agreed", "differed", "invalid"):
                assert f'potstill_shadow_total{{candidate="large",outcome="{outcome}"}} 1.0' in text
            lines = [json.loads(line) for path in tmp_path.glob("exchanges-*") for line in path.open()]
            assert [each["metadata"]["shadow"] for each in lines] == ["agreed", "differed", "invalid"]
            assert lines[1]["response"]["choices"][0]["message"]["content"] == "card_lost"
            assert lines[0]["id"] == f"shadow-{lines[0]['metadata']['shadow_of']}"

    run(main())


def test_a_slow_or_broken_shadow_never_holds_up_a_user_and_its_queue_is_bounded() -> None:
    async def hangs(body: Json) -> Any:
        await asyncio.sleep(60)

    async def main() -> None:
        async with Scripted(says(said("refund"))) as student, Scripted(hangs) as large:
            shadow = {"candidate": "large", "share": 1.0, "queue": 3, "timeout_s": 30}
            server = serving(student, large, shadow=shadow)
            for step in server.plan.steps:
                await step.start()
            began = asyncio.get_running_loop().time()
            for _ in range(20):
                assert (await asked(server)).status == 200
            assert asyncio.get_running_loop().time() - began < 5
            assert 'outcome="dropped"} 16.0' in server.meter.text().decode()
            for step in server.plan.steps:
                await step.close()

    run(main())


def test_a_canary_in_shadow_waits_until_no_user_does() -> None:
    async def main() -> None:
        busy, came = asyncio.Event(), iter(range(9))

        async def say(body: Json) -> Any:
            if next(came) == 1:
                await busy.wait()
            return said("refund")

        async with Scripted(say) as student, Scripted(says(said("refund"))) as new:
            server = serving(student, shadow={"candidate": "canary", "share": 1.0})
            await server.fleet.set_canary("m", deployment("m@2", new, digest="b"))
            for step in server.plan.steps:
                await step.start()
            users = [asyncio.create_task(asked(server)) for _ in range(2)]
            await asyncio.wait(users, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0.2)
            assert new.got == []
            busy.set()
            await asyncio.gather(*users)
            while len(new.got) < 2:
                await asyncio.sleep(0.01)
            assert "grammar" not in new.got[0]  # an address takes none
            assert new.got[0]["messages"] == [{"role": "user", "content": "Where is my card?"}]
            for step in server.plan.steps:
                await step.close()
            await server.fleet.close()

    run(main())

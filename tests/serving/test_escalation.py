"""Promises of escalation and repair: who answers, with what question, and what holds when the large model does not."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from potstill.calibration.conformal import Bound
from potstill.calibration.record import Calibration
from potstill.errors import RecipeError
from potstill.manifest import write_manifest
from potstill.records import Json
from potstill.serving.direct import Direct
from potstill.serving.escalate import Escalate
from potstill.serving.routing import DirectSettings, EscalateSettings

from .scripted import INSTRUCTIONS, LABELS, Scripted, asked, deployment, said, says, serving

EXTRACTION: Json = {
    "kind": "extraction",
    "schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def calibrated(folder: Path, digest: str = "a" * 64, format: str = "scripted") -> Path:
    """A calibration by which a score of 0.8 or less is unsure."""
    points = [(0.9 + at / 10_000, 0.0) for at in range(300)] + [(0.8, 1.0)] * 300
    found = Calibration(digest, format, "d" * 64, "classification", "label", "answer", points, Bound(0.05), [])
    folder.mkdir()
    found.write(folder)
    write_manifest(folder, "calibration", settings_passed={}, settings_used={}, inputs=[], facts=found.facts())
    return folder


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 20))


def test_a_sure_answer_is_the_students_and_the_large_model_is_not_asked(tmp_path: Path) -> None:
    async def main() -> None:
        async with Scripted(says(said("refund", 0.99))) as student, Scripted(says("card_lost")) as large:
            server = serving(student, large, escalate={"calibration": str(calibrated(tmp_path / "c"))})
            answer = await asked(server)
            assert (answer.text, answer.by, large.got) == ("refund", "engine", [])
            assert 0.9 < float(answer.headers["x-potstill-confidence"]) <= 1

    run(main())


def test_an_unsure_answer_is_replaced_and_the_large_model_hears_the_clients_own_words(tmp_path: Path) -> None:
    async def main() -> None:
        async with Scripted(says(said("refund", 0.7))) as student, Scripted(says("card_lost")) as large:
            server = serving(student, large, escalate={"calibration": str(calibrated(tmp_path / "c"))})
            answer = await asked(server, temperature=0.5)
            assert (answer.text, answer.by) == ("card_lost", "large")
            assert student.got[0]["messages"] == [{"role": "user", "content": "Where is my card?"}]
            assert large.got[0]["messages"][0] == {"role": "system", "content": INSTRUCTIONS}
            assert (large.got[0]["model"], large.got[0]["temperature"]) == ("big", 0.5)
            assert "grammar" not in large.got[0]

    run(main())


def test_a_stream_is_held_back_only_where_confidence_is_needed(tmp_path: Path) -> None:
    async def main() -> None:
        async with Scripted(says(said("refund", 0.7))) as student, Scripted(says("card_lost")) as large:
            held = serving(student, large, escalate={"calibration": str(calibrated(tmp_path / "c"))})
            answer = await asked(held, stream=True)
            deltas = [each["choices"][0]["delta"] for each in answer.events()]
            assert ("".join(each.get("content") or "" for each in deltas), answer.by) == ("card_lost", "large")
            through = serving(student, large, escalate={})
            answer = await asked(through, stream=True)
            assert answer.by == "engine"
            assert len(large.got) == 1
            assert answer.events()[0]["choices"][0]["delta"]["content"] == "refund"

    run(main())


@pytest.mark.parametrize("broken", [ConnectionResetError(), (500, {}, "no"), (503, {}, "no")])
def test_the_large_model_answers_when_the_student_cannot(broken: Any) -> None:
    async def main() -> None:
        async with Scripted(says(broken)) as student, Scripted(says("card_lost")) as large:
            answer = await asked(serving(student, large, escalate={}))
            assert (answer.status, answer.text, answer.by) == (200, "card_lost", "large")
            answer = await asked(serving(student, large, escalate={}), stream=True)
            assert (answer.status, answer.by) == (200, "large")
            answer = await asked(serving(student, large, escalate={"failed": False}))
            assert answer.status >= 500

    run(main())


def test_a_student_that_takes_too_long_leaves_time_for_the_large_model() -> None:
    async def silent(body: Json) -> Any:
        await asyncio.sleep(60)

    async def main() -> None:
        async with Scripted(silent) as student, Scripted(says("card_lost")) as large:
            began = monotonic()
            answer = await asked(serving(student, large, escalate={"student_timeout_s": 0.3}, request_timeout_s=5))
            assert (answer.by, monotonic() - began < 4) == ("large", True)

    run(main())


def test_a_request_that_is_at_fault_itself_is_not_passed_on() -> None:
    async def main() -> None:
        async with Scripted(says((400, {}, '{"error": {"message": "bad"}}'))) as student, Scripted(says("x")) as large:
            answer = await asked(serving(student, large, escalate={}))
            assert (answer.status, large.got) == (400, [])

    run(main())


def test_an_invalid_answer_is_repaired_once_with_the_fault_said() -> None:
    async def main() -> None:
        async with Scripted(says('{"town": 1}', '{"city": "Rome"}')) as student, Scripted(says("x")) as large:
            server = serving(student, large, EXTRACTION, repair=True, escalate={})
            answer = await asked(server)
            assert (answer.text, answer.by, large.got) == ('{"city":"Rome"}', "engine", [])
            first, again = student.got
            assert again["messages"][: len(first["messages"])] == first["messages"]
            assert again["messages"][-2]["content"] == '{"town": 1}'
            assert "city" in again["messages"][-1]["content"]

    run(main())


def test_what_a_repair_does_not_mend_goes_to_the_large_model_whose_answer_must_be_valid_too() -> None:
    async def main() -> None:
        async with Scripted(says("nothing")) as student, Scripted(says('{"city": "Rome"}', "nor this")) as large:
            server = serving(student, large, EXTRACTION, repair=True, escalate={})
            answer = await asked(server)
            assert (answer.text, answer.by, len(student.got)) == ('{"city":"Rome"}', "large", 2)
            answer = await asked(server)
            assert (answer.text, answer.by) == ("nothing", "engine")

    run(main())


@pytest.mark.parametrize(("on_fault", "status", "by"), [("keep", 200, "engine"), ("refuse", 503, "engine")])
def test_a_large_model_that_gives_nothing_fails_open_or_closed_as_set(
    tmp_path: Path, on_fault: str, status: int, by: str
) -> None:
    async def main() -> None:
        async with Scripted(says(said("refund", 0.7))) as student, Scripted(says((500, {}, "no"))) as large:
            escalate = {"calibration": str(calibrated(tmp_path / "c")), "on_fault": on_fault}
            answer = await asked(serving(student, large, escalate=escalate, request_timeout_s=3))
            assert (answer.status, answer.by) == (status, by)
            if status == 503:
                assert (answer.body["error"]["code"], "retry-after" in answer.headers) == ("large_unavailable", True)

    run(main())


def test_every_question_is_on_the_calls_account(tmp_path: Path) -> None:
    async def main() -> None:
        from potstill.serving.call import Call
        from potstill.serving.order import ORDER
        from potstill.serving.server import Server
        from potstill.serving.steps import Step

        kept: list[Call] = []

        class Keeps(Step):
            async def end(self, call: Call) -> None:
                kept.append(call)

        async with Scripted(says("nothing")) as student, Scripted(says('{"city": "Rome"}')) as large:
            plain = serving(student, large, EXTRACTION, repair=True, escalate={})
            server = Server(plain.fleet, plain.settings, [lambda _: Keeps(), *ORDER])
            await asked(server)
            assert [(each.by, each.model, each.fault) for each in kept[0].asked] == [
                ("student", "m", None), ("repair", "m", None), ("large", "big", None),
            ]  # fmt: skip
            assert all(each.usage["total_tokens"] == 7 for each in kept[0].asked)

    run(main())


def test_a_calibration_of_another_artifact_is_refused_at_start(tmp_path: Path) -> None:
    async def main() -> None:
        async with Scripted(says(said("refund"))) as student, Scripted(says("x")) as large:
            other = calibrated(tmp_path / "c", digest="b" * 64)
            with pytest.raises(RecipeError, match=r"holds none of m .*found there: artifact bbbbbbbbbbbb"):
                serving(student, large, escalate={"calibration": str(other)})
            with pytest.raises(RecipeError, match="holds none"):
                serving(student, large, escalate={"calibration": str(calibrated(tmp_path / "f", format="q8"))})
            with pytest.raises(RecipeError, match=r"needs serve\.large"):
                serving(student, escalate={})

    run(main())


def test_a_changed_calibration_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        folder = calibrated(tmp_path / "c")
        text = (folder / "calibration.json").read_text()
        (folder / "calibration.json").write_text(text.replace("0.05", "0.06", 1))
        async with Scripted(says(said("refund"))) as student, Scripted(says("x")) as large:
            with pytest.raises(RecipeError, match="disagree with the manifest"):
                serving(student, large, escalate={"calibration": str(folder)})

    run(main())


def test_another_bound_is_found_from_the_kept_rows(tmp_path: Path) -> None:
    async def main() -> None:
        folder = str(calibrated(tmp_path / "c"))
        async with Scripted(says(said("refund", 0.7))) as student, Scripted(says("card_lost")) as large:
            lax = serving(student, large, escalate={"calibration": folder, "alpha": 0.6})
            assert (await asked(lax)).by == "engine"

    run(main())


def test_a_version_without_a_calibration_is_never_held_unsure(tmp_path: Path) -> None:
    async def main() -> None:
        async with Scripted(says(said("refund", 0.4))) as student, Scripted(says("card_lost")) as large:
            server = serving(student, large, escalate={"calibration": str(calibrated(tmp_path / "c"))})
            await server.fleet.swap(deployment("m@2", student, digest="b"))
            assert (await asked(server)).by == "engine"
            (tmp_path / "c" / "calibration.json").write_text("damaged")
            await server.fleet.swap(deployment("m@3", student, digest="c"))
            assert (await asked(server)).by == "engine"
            await server.fleet.close()

    run(main())


def test_label_probabilities_come_with_logprobs_and_openais_client_keeps_them(tmp_path: Path) -> None:
    from openai.types.chat import ChatCompletion

    async def main() -> None:
        async with Scripted(says(said("refund", 0.9))) as student, Scripted(says("card_lost")) as large:
            plain = serving(student)
            answer = await asked(plain, logprobs=True, top_logprobs=1)
            assert student.got[-1]["top_logprobs"] == 20
            told = ChatCompletion.model_validate(answer.body).choices[0].logprobs
            assert told is not None
            assert told.content is not None
            assert len(told.content[0].top_logprobs) == 1
            labels = dict(told.label_probabilities)  # type: ignore[attr-defined]
            assert set(labels) == set(LABELS)
            assert sum(labels.values()) == pytest.approx(1)
            assert labels["refund"] == pytest.approx(0.9)
            assert "logprobs" not in (await asked(plain)).body["choices"][0]
            server = serving(student, large, escalate={"calibration": str(calibrated(tmp_path / "c"))})
            answer = await asked(server, logprobs=True, stream=True)
            first = answer.events()[0]["choices"][0]
            assert first["logprobs"]["label_probabilities"]["refund"] == pytest.approx(0.9)
            assert 0 < first["logprobs"]["confidence"] <= 1
            assert "logprobs" not in (await asked(server)).body["choices"][0]

    run(main())


def test_a_prompt_that_is_too_long_for_the_student_goes_to_the_large_model() -> None:
    async def main() -> None:
        error = '{"error": {"message": "too long", "type": "exceed_context_size_error"}}'
        async with Scripted(says((400, {}, error))) as student, Scripted(says("card_lost")) as large:
            answer = await asked(serving(student, large, escalate={}))
            assert (answer.text, answer.by) == ("card_lost", "large")

    run(main())


def test_escalation_is_switched_on_and_off_while_the_server_answers() -> None:
    async def main() -> None:
        async with Scripted(says("nothing")) as student, Scripted(says("card_lost")) as large:
            server = serving(student, large)
            off = server.settings
            assert (await asked(server)).text == "nothing"
            await server.reload(off.model_copy(update={"escalate": EscalateSettings(), "direct": DirectSettings()}))
            assert (await asked(server)).text == "card_lost"
            shared = {id(step._large) for step in server.plan.steps if isinstance(step, Escalate | Direct)}
            assert len(shared) == 1, "what one step learns of the large model's health the other knows"
            await server.reload(off)
            assert (await asked(server)).text == "nothing"

    run(main())

"""What a log holds besides answers: reasoning, log-probabilities of tokens, several answers to one request."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from distillation.thoughts import without_thought
from potstill.errors import DamagedLine, SealedSplit
from potstill.logprobs import LOGPROBS, read_content, read_logprobs
from potstill.records import Json
from potstill.stage import Shared

from .distil_log import GENERATION, Distil, Made
from .mail_log import LABELS, contents, correction, exchange, said

ROWS = 30


@pytest.fixture
def distil(tmp_path: Path, shared: Shared) -> Distil:
    return Distil(tmp_path, shared)


def token(text: str, logprob: float = -0.1, **top: float) -> Json:
    best = {text: logprob} | top
    alternatives = [{"token": each, "bytes": list(each.encode()), "logprob": value} for each, value in best.items()]
    return {"token": text, "bytes": list(text.encode()), "logprob": logprob, "top_logprobs": alternatives}


def answered(at: int, content: str, tokens: Sequence[str] | None = None, **changes: Any) -> Json:
    """A line whose answer is written in these tokens, with their log-probabilities."""
    message = {"role": "assistant", "content": content}
    choice: Json = {"index": 0, "message": message, "finish_reason": "stop"}
    if tokens is not None:
        choice["logprobs"] = {"content": [token(each, other=-3.0) for each in tokens]}
    return exchange(at, response={"choices": [choice]}, **changes)


def log(**changed: Json) -> list[Json]:
    """Lines whose label is written in two tokens; some changed by their id."""
    lines = [answered(at, LABELS[at % 3], [LABELS[at % 3][:2], LABELS[at % 3][2:]]) for at in range(ROWS)]
    return [changed.get(line["id"], line) for line in lines]


def kept(made: Made) -> dict[str, Any]:
    return read_logprobs(made.out, "train") | read_logprobs(made.out, "validation")


def test_every_open_row_keeps_the_logprobs_of_its_tokens(distil: Distil) -> None:
    made = distil(log())
    found = kept(made)
    assert set(found) == {row.id for row in made.learnt}
    assert len(found) > ROWS // 2
    for row in made.learnt:
        assert found[row.id].text == row.answer.encode()
        assert found[row.id].start == 0
        first = found[row.id].tokens[0]
        assert first.candidates()[b"other"] == pytest.approx(-3.0)
        assert first.logprob == pytest.approx(-0.1)
    assert made.facts["steps"]["logprobs"] == len(found)


def test_logprobs_of_the_sealed_rows_are_not_written(distil: Distil) -> None:
    made = distil(log())
    sealed = {row.id for row in made.rows["test"]}
    assert sealed
    assert not sealed & set(kept(made))
    with pytest.raises(SealedSplit):
        read_logprobs(made.out, "test")  # type: ignore[arg-type]


def test_a_log_without_logprobs_leaves_no_table(distil: Distil) -> None:
    made = distil([exchange(at) for at in range(ROWS)])
    assert not (made.out / LOGPROBS).exists()
    assert read_logprobs(made.out, "train") == {}


def test_a_corrected_answer_keeps_no_logprobs(distil: Distil) -> None:
    split = {"test": {"where": {"id": ["x00000", "x00001"]}}}
    line = answered(5, LABELS[0], ["ca", "rd"], feedback=correction("cash"))
    found = kept(distil(log(x00005=line), split=split))
    assert "x00005" not in found
    assert "x00006" in found


def test_personal_data_in_an_answer_takes_its_logprobs_with_it_and_leaves_no_piece_behind(distil: Distil) -> None:
    pieces = ["Call +49 ", "30 901", "820 ", "now"]
    private = [answered(at, "".join(pieces), pieces) for at in range(3)]
    fine = [answered(at, f"answer {at} of many", ["answer ", f"{at}", " of many"]) for at in range(3, ROWS)]
    split = {"test": {"where": {"id": ["x00010", "x00011"]}}}
    made = distil([*private, *fine], GENERATION, split=split, boilerplate=None)
    assert {"x00003", "x00004"} <= set(kept(made))
    assert not {"x00000", "x00001", "x00002"} & set(kept(made))
    assert made.facts["steps"]["logprobs: personal data in the answer"] == 3
    left = b"".join(contents(file) for file in made.out.rglob("*") if file.is_file())
    # The number whole and each piece of it as tokens spell it; "901" alone stands in many a hash.
    assert [each for each in (b"30901820", b"30 901", b"820 ", b"+49") if each in left] == []
    assert "PHONE" in next(row.answer for row in made.learnt if row.id in ("x00000", "x00001", "x00002"))


def test_a_row_left_out_by_selection_does_not_spell_its_answer_in_tokens(distil: Distil) -> None:
    pieces = ["+49 30 ", "901 ", "820"]
    rows = [answered(0, "".join(pieces), pieces, metadata={"kind": "b"}), *log()[1:]]
    made = distil(
        [line | {"metadata": {"kind": "a"} | line["metadata"]} for line in rows],
        select={"where": {"metadata.kind": "a"}},
    )
    left = json.dumps(next(iter(_rejected(made.out, "x00000"))))
    assert "logprobs" not in left
    assert "901 " not in left


def _rejected(out: Path, identity: str) -> list[Json]:
    import pyarrow.parquet as pq

    return [row for row in pq.read_table(out / "rejections.parquet").to_pylist() if row["id"] == identity]


def test_tokens_that_spell_something_else_than_the_answer_are_counted_and_left(distil: Distil) -> None:
    split = {"test": {"where": {"id": ["x00000", "x00001"]}}}
    found = distil(log(x00005=answered(5, LABELS[2], ["so", "me"])), split=split)
    assert "x00005" not in kept(found)
    assert found.facts["steps"]["logprobs: other tokens than the answer's"] == 1


def test_an_answer_after_reasoning_begins_where_it_begins(distil: Distil) -> None:
    split = {"test": {"where": {"id": ["x00000", "x00001"]}}}
    line = answered(5, f"<think>cash, no: </think>{LABELS[2]}", ["<think>cash, no: </think>", LABELS[2]])
    found = kept(distil(log(x00005=line), split=split))["x00005"]
    assert found.text[found.start :] == LABELS[2].encode()
    assert found.start > 0


@pytest.mark.parametrize("content", [None, [], [{"token": 3, "logprob": -1}], [{"token": "a", "logprob": "x"}],
                                     [{"token": "a", "logprob": math.nan}], [{"token": "a", "logprob": 1.0}],
                                     [{"token": "a", "bytes": [999], "logprob": -1}]])  # fmt: skip
def test_damaged_logprobs_are_refused(content: object) -> None:
    with pytest.raises(DamagedLine):
        read_content(content)


def test_reasoning_before_an_answer_becomes_its_rationale(distil: Distil) -> None:
    fields = {"reasoning_content": "It names a card."}, {"reasoning": "It names a card."}
    lines = [exchange(at) for at in range(ROWS)]
    for at, extra in enumerate(fields):
        lines[at]["response"]["choices"][0]["message"] |= extra
    lines[2]["response"]["choices"][0]["message"]["content"] = f"<think>\nIt names a card.\n</think>\n\n{LABELS[2]}"
    made = distil(lines, split={"test": {"where": {"id": ["x00010", "x00011"]}}})
    rows = {row.id: row for row in made.learnt}
    for at in range(3):
        assert rows[f"x{at:05d}"].answer == LABELS[at]
        assert rows[f"x{at:05d}"].rationale == "It names a card."
    assert rows["x00003"].rationale is None


def test_reasoning_for_another_answer_than_the_one_learnt_is_no_rationale(distil: Distil) -> None:
    line = exchange(0, feedback=correction("loan"))
    line["response"]["choices"][0]["message"]["reasoning_content"] = "It names a card."
    made = distil([line, *(exchange(at) for at in range(1, ROWS))], split={"test": {"where": {"id": ["x00010"]}}})
    row = next(row for row in made.learnt if row.id == "x00000")
    assert row.answer == "loan"
    assert row.rationale is None


def test_thinking_of_anthropic_is_kept_for_the_answer_and_not_for_the_prompt() -> None:
    from distillation.connectors.anthropic_form import pair

    thought = [{"type": "thinking", "thinking": "Hm.", "signature": "x"}, {"type": "text", "text": "hello"}]
    asked = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": thought},
        {"role": "user", "content": "b"},
    ]
    request, response = pair({"messages": asked, "model": "m"}, {"content": thought, "stop_reason": "end_turn"})
    assert response["choices"][0]["message"] == {"role": "assistant", "content": "hello", "reasoning_content": "Hm."}
    assert "reasoning_content" not in request["messages"][1]


def test_an_answer_that_only_speaks_of_think_tags_stays_as_it_is() -> None:
    message = {"role": "assistant", "content": "Write <think> before you answer."}
    assert without_thought(message) is message


def several(at: int, answers: Sequence[str], **changes: Any) -> Json:
    choices = [
        {"index": n, "message": {"role": "assistant", "content": each}, "finish_reason": "stop"}
        for n, each in enumerate(answers)
    ]
    return exchange(at, response={"choices": choices}, **changes)


SPLIT = {"test": {"where": {"id": ["x00010"]}}, "validation": {"where": {"id": ["x00011"]}}}


def test_all_samples_of_the_teacher_are_learnt_by_their_share(distil: Distil) -> None:
    answers = ["card", "card", "nonsense", "loan", "card"]
    lines = [several(at, answers) for at in range(ROWS)]
    made = distil(lines, split=SPLIT, samples="all")
    rows = {row.id: row for row in made.rows["train"]}
    assert (rows["x00000"].answer, rows["x00000"].weight) == ("card", 0.75)
    assert (rows["x00000~1"].answer, rows["x00000~1"].weight) == ("loan", 0.25)
    assert made.facts["rows"]["train"] == len(rows) == 2 * (ROWS - 2)
    assert [row.answer for row in made.rows["validation"] + made.rows["test"]] == ["card", "card"]


def test_the_first_answer_alone_is_learnt_by_default(distil: Distil) -> None:
    made = distil([several(at, ["card", "loan"]) for at in range(ROWS)], split=SPLIT)
    assert {(row.answer, row.weight) for row in made.rows["train"]} == {("card", 1.0)}


def test_a_correction_is_not_watered_down_by_samples(distil: Distil) -> None:
    lines = [several(at, ["card", "loan"], feedback=correction("cash") if at == 0 else []) for at in range(ROWS)]
    rows = distil(lines, split=SPLIT, samples="all").rows["train"]
    assert [row.answer for row in rows if row.id.startswith("x00000")] == ["cash"]


def test_different_answers_to_duplicates_share_the_weight_of_the_duplicates(distil: Distil) -> None:
    twice = [exchange(at, label, said(0)) for at, label in zip(range(4), ["card", "loan", "card", "card"], strict=True)]
    lines = [*twice, *(exchange(at) for at in range(4, ROWS))]
    for how, wanted in (("all", {"card": 2.25, "loan": 0.75}), ("first", {"card": 3.0})):
        rows = distil(lines, split=SPLIT, samples=how, audit={"enabled": False}).rows["train"]
        assert {row.answer: row.weight for row in rows if said(0) in str(row.messages)} == pytest.approx(wanted)

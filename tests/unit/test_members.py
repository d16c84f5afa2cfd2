"""Promise of `members.parquet`: every selected exchange is in it once, with the row that stands for it in the end."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.members import exchange_ids, hash64
from potstill.records import Json
from potstill.stage import Shared

from .distil_log import GENERATION, Distil, Made, talks
from .mail_log import exchange, said


@pytest.fixture
def distil(tmp_path: Path, shared: Shared) -> Distil:
    return Distil(tmp_path, shared)


def members(made: Made) -> dict[str, Json]:
    rows = pq.read_table(made.out / "members.parquet").to_pylist()
    found = {each["member"]: each for each in rows}
    assert len(found) == len(rows)
    return found


def check(made: Made, logged: set[str]) -> None:
    split_of = {row.id: name for name, rows in made.rows.items() for row in rows}
    found = members(made)
    assert set(found) == logged
    for id, each in found.items():
        assert (each["split"] is None) == (each["row"] is None)
        assert each["row"] is None or split_of[each["row"]] == each["split"]
        assert id not in split_of or each["row"] == id
    for name, rows in made.rows.items():
        for row in rows:
            standing = sum(each["row"] == row.id for each in found.values())
            assert standing == (row.count if name != "test" else 1)


def test_rows_count_the_members_that_name_them(distil: Distil) -> None:
    made = distil([exchange(at, text=said(at % 25)) for at in range(100)])
    check(made, {f"x{at:05d}" for at in range(100)})
    assert {each["user"] for each in members(made).values()} == {hash64(f"u{at}") for at in range(100)}


def test_the_turns_of_a_whole_conversation_belong_to_its_longest_exchange(distil: Distil) -> None:
    made = distil(talks(range(30)), turns="whole")
    found = members(made)
    for row in made.learnt:
        conversation = [id for id in found if id.startswith(row.id.partition("-")[0])]
        assert len(conversation) == 3
        assert {found[each]["row"] for each in conversation} == {row.id}


def test_what_is_left_out_stands_in_no_row(distil: Distil) -> None:
    made = distil([exchange(at, "no idea" if at % 5 == 0 else None) for at in range(80)])
    out = {id for id, each in members(made).items() if each["row"] is None}
    assert out
    assert out == set(made.rejected)


def test_rows_of_several_samples_lead_back_to_their_exchange(distil: Distil) -> None:
    lines = [exchange(at) for at in range(40)]
    for line in lines:
        other = {"index": 1, "message": {"role": "assistant", "content": "other words"}, "finish_reason": "stop"}
        line["response"]["choices"].append(other)
    made = distil(lines, GENERATION, samples="all", boilerplate=None)
    derived = [row.id for row in made.rows["train"] if row.id not in members(made)]
    assert derived
    assert all(set(exchange_ids(each)) & set(members(made)) for each in derived)


@given(id=st.text(min_size=1), other=st.text(min_size=1), number=st.integers(0, 99))
def test_ids_of_derived_rows_name_every_exchange_that_they_come_from(id: str, other: str, number: int) -> None:
    assert {id} <= set(exchange_ids(f"{id}~{number}")) & set(exchange_ids(f"{id}#{number}"))
    assert id in exchange_ids(f"{id}:desirable")
    assert id in exchange_ids(f"correction:{id}")
    assert {id, other} <= set(exchange_ids(f"regenerated:{id}:{other}"))

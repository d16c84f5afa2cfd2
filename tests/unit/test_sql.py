"""Promises of SQL answers: judged by what they return, and unable to do anything but read."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import RecipeError
from potstill.manifest import sha256_file
from potstill.recipe import TaskSettings
from potstill.tasks import task_from
from potstill.tasks.generation import Generation
from potstill.tasks.sql import Result, SqlDatabase, is_ordered, same_result, without_fence


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "shop #1.sqlite"
    with sqlite3.connect(path) as base:
        base.executescript(
            "CREATE TABLE item (name TEXT, price REAL, stock INTEGER);"
            "INSERT INTO item VALUES ('tea', 2.5, 4), ('cup', 4.0, 1), ('pot', 12.0, NULL), ('tea', 2.5, 4);"
        )
    base.close()
    return path


def matches(database: Path, answer: str, gold: str) -> dict[str, float]:
    task = task_from({"kind": "generation", "sql": {"database": str(database)}})
    read, wanted = task.parse(answer), task.from_gold(gold)
    assert wanted.valid, wanted.reason
    return task.score(read.value, wanted.value)


def test_another_query_with_the_same_result_is_right(database: Path) -> None:
    gold = "SELECT name, price FROM item WHERE price > 3"
    assert (
        matches(database, "SELECT i.name AS n, 1 * price FROM item i WHERE NOT price <= 3;", gold)["execution"] == 1.0
    )
    assert matches(database, "```sql\nSELECT name, price FROM item WHERE price > 3;\n```", gold)["execution"] == 1.0
    assert matches(database, "SELECT name, price FROM item WHERE price > 5", gold)["execution"] == 0.0
    assert matches(database, "SELECT price, name FROM item WHERE price > 3", gold)["execution"] == 0.0
    assert matches(database, "SELECT nothing FROM item", gold) | {"token_f1": 0} == {
        "execution": 0.0, "executes": 0.0, "token_f1": 0, "exact": 0.0,
    }  # fmt: skip


def test_rows_are_a_multiset_and_ordered_only_where_gold_says_so(database: Path) -> None:
    assert matches(database, "SELECT name FROM item ORDER BY price DESC", "SELECT name FROM item")["execution"] == 1.0
    assert matches(database, "SELECT DISTINCT name FROM item", "SELECT name FROM item")["execution"] == 0.0
    by_price = "SELECT DISTINCT name FROM item ORDER BY price"
    assert matches(database, f"{by_price} DESC", by_price)["execution"] == 0.0
    assert matches(database, f"{by_price} ASC", by_price)["execution"] == 1.0


def test_numbers_are_equal_by_value_and_text_is_no_number(database: Path) -> None:
    assert matches(database, "SELECT 4", "SELECT 4.0")["execution"] == 1.0
    assert matches(database, "SELECT 0.1 + 0.2", "SELECT 0.3")["execution"] == 1.0
    assert matches(database, "SELECT '4'", "SELECT 4")["execution"] == 0.0
    assert matches(database, "SELECT NULL", "SELECT 'null'")["execution"] == 0.0


@pytest.mark.parametrize(
    "query",
    [
        "INSERT INTO item VALUES ('x', 1, 1)", "DELETE FROM item", "UPDATE item SET stock = 0", "DROP TABLE item",
        "CREATE TABLE other (a)", "CREATE TEMP TABLE other (a)", "ATTACH '{other}' AS other", "PRAGMA user_version = 7",
        "PRAGMA table_info(item)", "VACUUM INTO '{other}'", "BEGIN", "SELECT load_extension('x')", "REINDEX", "ANALYZE",
        "SELECT * FROM pragma_table_info('item')", "SELECT 1; DELETE FROM item", "EXPLAIN DELETE FROM item",
        "WITH gone AS (SELECT 1) DELETE FROM item",
    ],
)  # fmt: skip
def test_nothing_but_reading_is_allowed(database: Path, tmp_path: Path, query: str) -> None:
    before, other = sha256_file(database), tmp_path / "other.sqlite"
    found = SqlDatabase(str(database)).run(query.format(other=other))
    assert found.error is not None
    assert sha256_file(database) == before
    assert sorted(tmp_path.iterdir()) == [database]


def test_a_query_that_never_ends_is_stopped_in_time(database: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    start = time.monotonic()
    found = SqlDatabase(str(database), timeout_s=0.2).run(endless)
    assert found.error == "ran longer than 0.2 s"
    assert time.monotonic() - start < 3


def test_results_that_are_too_large_are_refused(database: Path) -> None:
    many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {}) SELECT i FROM n"
    base = SqlDatabase(str(database), max_rows=100)
    assert base.run(many.format(100)).error is None
    assert "more than 100 rows" in str(base.run(many.format(101)).error)
    assert "too big" in str(base.run("SELECT randomblob(100000000)").error)
    assert "characters" in str(base.run(f"SELECT zeroblob(9000000) FROM ({many.format(50)})").error)


def test_a_gold_query_that_fails_is_invalid_gold(database: Path) -> None:
    task = task_from({"kind": "generation", "sql": {"database": str(database)}})
    assert "no such column" in str(task.from_gold("SELECT price_ FROM item").reason)
    assert task.metrics[0].name == "execution_match"
    assert task_from(task.describe()).describe() == task.describe()
    assert Generation().metrics[0].name == "token_f1"


def test_a_missing_database_is_said_when_the_recipe_is_read(tmp_path: Path, database: Path) -> None:
    missing = {"kind": "generation", "sql": {"database": str(tmp_path / "none.sqlite")}}
    with pytest.raises(RecipeError, match=r"none\.sqlite does not exist"):
        TaskSettings.model_validate(missing).definition()
    with pytest.raises(RecipeError, match="is for kind generation alone"):
        TaskSettings.model_validate({"kind": "tool_calls", "sql": {"database": str(database)}}).definition()
    found = TaskSettings.model_validate({"kind": "generation", "sql": {"database": str(database)}}).definition()
    assert found["sql"] == {"database": str(database), "timeout_s": 5.0, "max_rows": 10_000}
    with pytest.raises(RecipeError, match="give an SQLite file"):
        SqlDatabase(str(tmp_path / "none.sqlite")).run("SELECT 1")


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("SELECT a FROM t ORDER  BY a", True), ("SELECT a FROM (SELECT a FROM t ORDER BY a)", False),
        ("SELECT 'order by' FROM t", False), ("SELECT a FROM t -- order by a", False),
        ('SELECT "order by" FROM t', False),
        ("select a from t /* order by */ where b = ')' order\nby a", True),
        ("SELECT row_number() OVER (ORDER BY a) FROM t", False),
    ],
)  # fmt: skip
def test_order_counts_when_the_outermost_query_asks_for_it(query: str, ordered: bool) -> None:
    assert is_ordered(query) == ordered


@given(st.lists(st.tuples(st.sampled_from(["n1", "n2", "tx"])), max_size=6), st.randoms(use_true_random=False))
def test_comparing_results_is_symmetric_and_does_not_see_the_order_of_rows(rows: list[tuple[str]], rng: object) -> None:
    other = list(rows)
    rng.shuffle(other)  # type: ignore[attr-defined]
    first, second = Result(tuple(rows)), Result(tuple(other))
    assert same_result(first, second, ordered=False)
    assert same_result(first, second, ordered=True) == same_result(second, first, ordered=True) == (rows == other)
    assert not same_result(first, Result(error="no such table"), ordered=False)


def test_a_fence_and_a_semicolon_are_no_part_of_the_query() -> None:
    assert without_fence(" ```sql\nSELECT 1;\n``` ") == without_fence("SELECT 1 ; ") == "SELECT 1"

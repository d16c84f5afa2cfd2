"""Promises of the quick start's recording and of the log built from it."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from potstill.records import Exchange

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart"
LABELS = {"positive", "neutral", "negative"}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (QUICKSTART / "teacher.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def provenance() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((QUICKSTART / "teacher.provenance.json").read_text())
    return found


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that imports one of the quick start's scripts as they import each other."""
    monkeypatch.syspath_prepend(str(QUICKSTART))
    return importlib.import_module


@pytest.fixture
def build_log(script: Any) -> ModuleType:
    """The log builder; skips when the messages' package is not at hand, since unit tests use no network."""
    messages = script("messages")
    if not (messages.CACHE / messages.SDIST).is_file():
        pytest.skip(f"{messages.SDIST} is not in work/cache; python configs/quickstart/messages.py fetches it")
    found: ModuleType = script("build_log")
    return found


def test_recording_holds_labels_and_figures_but_no_text(rows: list[dict[str, Any]]) -> None:
    fields = {"id": str, "label": str, "prompt_tokens": int, "completion_tokens": int, "latency_ms": float}
    for row in rows:
        assert {name: type(value) for name, value in row.items()} == fields
        assert row["label"] in LABELS
        assert row["id"].isascii()
        assert len(row["id"]) < 20
        assert row["latency_ms"] > 0


def test_recording_answers_each_message_once(rows: list[dict[str, Any]]) -> None:
    assert len({row["id"] for row in rows}) == len(rows) == 2500


def test_provenance_is_that_of_the_recording(rows: list[dict[str, Any]], provenance: dict[str, Any]) -> None:
    found = hashlib.sha256((QUICKSTART / "teacher.jsonl").read_bytes()).hexdigest()
    assert provenance["rows_sha256"] == found
    assert provenance["labels"] == dict(Counter(row["label"] for row in rows))
    assert not set(provenance["few_shot_ids"]) & {row["id"] for row in rows}


@pytest.mark.parametrize(
    ("mean", "label"),
    [(0.5, "neutral"), (0.55, "positive"), (-0.5, "neutral"), (-0.55, "negative"), (0.0, "neutral")],
)
def test_gold_is_cut_past_one_half(script: Any, mean: float, label: str) -> None:
    assert script("messages").gold_label(mean) == label


def test_a_wrong_source_package_is_refused(script: Any, tmp_path: Path) -> None:
    messages = script("messages")
    (tmp_path / messages.SDIST).write_bytes(b"something else")
    with pytest.raises(RuntimeError, match="expected 5d7c06e027fc"):
        messages.fetch_sdist(tmp_path)


def test_log_reads_as_exchanges_with_gold_apart(
    build_log: ModuleType, rows: list[dict[str, Any]], provenance: dict[str, Any], tmp_path: Path
) -> None:
    assert build_log.build(tmp_path)[0] == len(rows)
    exchanges = [Exchange.from_json(line) for line in _lines(tmp_path / build_log.LOG)]
    gold = {line["id"]: line["answer"] for line in _lines(tmp_path / build_log.GOLD)}
    assert {each.id for each in exchanges} == set(gold) == {row["id"] for row in rows}
    assert set(gold.values()) == LABELS
    systems = {each.messages[0]["content"] for each in exchanges}
    assert [hashlib.sha256(text.encode()).hexdigest() for text in systems] == [provenance["prompt_sha256"]]
    corrected = [each for each in exchanges if each.feedback]
    assert 0.2 < len(corrected) / len(exchanges) < 0.3
    assert {each.correction for each in corrected} == LABELS
    disagree = sum(each.correction != gold[each.id] for each in corrected)
    assert disagree > 0, "one rater is not the mean of twenty: feedback must not be gold under another name"


def test_whole_reviews_are_in_the_log_or_out_of_it(build_log: ModuleType, script: Any) -> None:
    messages = script("messages")
    everything = messages.read_messages(messages.fetch_sdist())
    calls = messages.choose_calls(everything)
    examples = messages.choose_examples(everything, calls)
    asked = {each.conversation for each in calls}
    assert {each.id for each in everything if each.conversation in asked} == {each.id for each in calls}
    assert not asked & {each.conversation for each in examples}
    assert Counter(each.gold for each in examples) == dict.fromkeys(LABELS, 4)


def test_log_has_the_same_bytes_each_time_and_is_not_built_twice(build_log: ModuleType, tmp_path: Path) -> None:
    for name in ("one", "two"):
        build_log.build(tmp_path / name)
    assert (tmp_path / "one" / build_log.LOG).read_bytes() == (tmp_path / "two" / build_log.LOG).read_bytes()
    assert build_log.up_to_date(tmp_path / "one")
    (tmp_path / "one" / build_log.GOLD).write_bytes(b"")
    assert not build_log.up_to_date(tmp_path / "one")


def _lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]

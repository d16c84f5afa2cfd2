"""Promises of reading as it is wired: whatever form a source has, the rows are the same, and what is wrong is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from distillation.run import Settings, inputs
from potstill.errors import DamagedInput, RecipeError
from potstill.records import Json
from potstill.stage import Shared

from .distil_log import Distil
from .mail_log import correction, exchange, place_of, read_log, rejections_of, said, settings_for, write_log


@pytest.fixture
def distil(tmp_path: Path, shared: Shared) -> Distil:
    return Distil(tmp_path, shared)


def lines_of(count: int = 50) -> list[Json]:
    return [exchange(at, text=said(at % 45), feedback=correction("cash") if at % 9 == 0 else []) for at in range(count)]


def write_in(form: str, folder: Path, lines: list[Json]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, text = folder / "log", "".join(json.dumps(each) + "\n" for each in lines)
    if form == "gzip":
        path.write_bytes(gzip.compress(text.encode()))
    elif form == "gzip of two members":
        half = len(text) // 2
        path.write_bytes(gzip.compress(text[:half].encode()) + gzip.compress(text[half:].encode()))
    elif form == "zstd":
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(text.encode())
    elif form == "nested Parquet":
        pq.write_table(pa.Table.from_pylist(lines), path)
    elif form == "Parquet of JSON texts":
        rows = [{name: json.dumps(each) if isinstance(each, dict | list) else each for name, each in line.items()}
                for line in lines]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif form == "JSON array":
        path.write_text(json.dumps(lines))
    elif form == "pretty JSON array":
        path.write_text(json.dumps(lines, indent=2))
    elif form == "pretty document":
        path.write_text(json.dumps({"data": lines, "has_more": False}, indent=2))
    else:
        path.write_text(text.removesuffix("\n"))
    return path


FORMS = (
    "JSON lines without the last line break", "gzip", "gzip of two members", "zstd", "nested Parquet",
    "Parquet of JSON texts", "JSON array", "pretty JSON array", "pretty document",
)  # fmt: skip


def test_a_page_of_an_api_on_one_line_is_as_good_as_a_pretty_one(distil: Distil, tmp_path: Path) -> None:
    path = tmp_path / "page.json"
    path.write_text(json.dumps({"data": lines_of(), "has_more": False}))
    assert distil(path).rows == distil(lines_of()).rows


@pytest.mark.parametrize("format", ["auto", "openai_pairs"])
def test_every_form_of_a_file_gives_the_same_rows(
    distil: Distil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.setattr("distillation.chunks.BLOCK_BYTES", 5_000)
    expected = distil(lines_of())
    for form in FORMS:
        folder = tmp_path / form
        folder.mkdir()
        path = write_in(form, folder, lines_of())
        made = distil.run(settings_for(path, sources=[{"path": str(path), "format": format}]))
        assert made.rows == expected.rows, form
        assert made.rejected == expected.rejected, form
        assert made.facts["read"] == {"lines": 50, "damaged": 0}, form


def test_the_format_is_told_and_said(distil: Distil, capsys: pytest.CaptureFixture[str]) -> None:
    log = distil.log(lines_of())
    distil.run(settings_for(log, sources=[{"path": str(log)}]))
    assert f"{log}: read as openai_pairs (requests and responses in OpenAI's form)" in capsys.readouterr().err
    tuned = [{"messages": [*line["request"]["messages"], line["response"]["choices"][0]["message"]]}
             for line in lines_of(45)]  # fmt: skip
    log = distil.log(tuned)
    made = distil.run(settings_for(log, sources=[{"path": str(log)}]))
    assert f"{log}: read as openai_finetuning" in capsys.readouterr().err
    assert sum(map(len, made.rows.values())) == 45


def test_sources_of_two_formats_are_one_log(distil: Distil) -> None:
    lines = lines_of(45)
    logged = distil.log(lines[:30])
    tuned = distil.log({"messages": [*line["request"]["messages"], line["response"]["choices"][0]["message"]]}
                       for line in lines[30:])  # fmt: skip
    made = distil.run(settings_for(logged, sources=[{"path": str(logged)}, {"path": str(tuned)}]))
    assert sum(map(len, made.rows.values())) == 45
    assert made.facts["read"]["lines"] == 45


@pytest.mark.parametrize(
    ("source", "said_of"),
    [
        ({"format": "carrier_pigeon"}, r"distill\.sources\.0\.format: found 'carrier_pigeon', expected auto or openai"),
        (
            {"format": "openai_batch", "beside": {"input": "in.jsonl", "scores": "s.jsonl"}},
            r"distill\.sources\.0\.beside\.scores: openai_batch has no such companion; it has: input",
        ),
        ({"format": "openai_batch"}, r"distill\.sources\.0\.beside\.input: missing"),
    ],
)
def test_what_is_wrong_with_a_source_is_a_fault_of_the_recipe_that_names_the_key(
    tmp_path: Path, shared: Shared, source: Json, said_of: str
) -> None:
    log = write_log(tmp_path / "log.jsonl", lines_of())
    with pytest.raises(RecipeError, match=said_of):
        inputs(Settings.model_validate({"sources": [{"path": str(log)} | source]}), shared)


def batch_lines(count: int) -> tuple[list[Json], list[Json]]:
    """The output of a batch and its input."""
    asked, answered = [], []
    for line in lines_of(count):
        body = {"choices": line["response"]["choices"]}
        asked.append(
            {"custom_id": line["id"], "method": "POST", "url": "/v1/chat/completions", "body": line["request"]}
        )
        answered.append({"id": line["id"], "custom_id": line["id"], "response": {"status_code": 200, "body": body}})
    return answered, asked


def test_a_batch_is_joined_with_its_input_whether_its_format_is_said_or_told(distil: Distil) -> None:
    answered, asked = map(distil.log, batch_lines(45))
    for format in ("openai_batch", "auto"):
        source = {"path": str(answered), "format": format, "beside": {"input": str(asked)}}
        made = distil.run(settings_for(answered, sources=[source]))
        assert set(place_of(made.out)) == {line["id"] for line in lines_of(45)}


@pytest.mark.parametrize(
    ("beside", "said_of"),
    [({}, r"beside\.input: missing"), ({"scores": "s.jsonl"}, r"beside\.scores: openai_batch has no such companion")],
)
def test_companions_are_checked_where_the_format_is_told_too(distil: Distil, beside: Json, said_of: str) -> None:
    answered, asked = map(distil.log, batch_lines(45))
    if beside:
        beside = {"input": str(asked), "scores": str(asked)}
    with pytest.raises(RecipeError, match=said_of):
        distil.run(settings_for(answered, sources=[{"path": str(answered), "beside": beside}]))


@pytest.mark.parametrize("form", ["JSON array", "nested Parquet", "zstd"])
def test_a_file_that_breaks_off_is_damaged_input_that_names_the_file(distil: Distil, tmp_path: Path, form: str) -> None:
    path = write_in(form, tmp_path, lines_of())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DamagedInput, match=str(path)):
        distil(path)


def test_a_text_file_that_begins_with_a_bracket_is_damaged_input_that_names_the_file(distil: Distil) -> None:
    log = distil.log(["[2026-01-05] began", *lines_of()])
    with pytest.raises(DamagedInput, match=f"{log}: begins like a JSON array and is none"):
        distil(log, damaged_limit=0.1)


# Feedback that our server captured beside the exchanges


@pytest.mark.parametrize(
    "opinion",
    [{"kind": "applause", "name": "", "value": 1}, {"kind": "score", "name": "success"}, "up", None, ["up"]],
)
def test_an_exchange_survives_an_invalid_line_of_feedback_and_the_line_is_reported(
    tmp_path: Path, opinion: Any
) -> None:
    write_log(tmp_path / "exchanges-1.jsonl", [exchange(0), exchange(1), exchange(2)])
    good = {"id": "x00001", "feedback": correction("loan")[0]}
    write_log(tmp_path / "feedback-1.jsonl", [good, {"id": "x00001", "feedback": opinion}])
    kept, rejected = read_log(tmp_path / "exchanges-1.jsonl", damaged_limit=0.5)
    assert [each.id for each in kept] == ["x00000", "x00001", "x00002"]
    assert [each.correction for each in kept] == [None, "loan", None]
    (row,) = rejected
    assert (row["step"], row["source"], row["line"]) == ("damaged", str(tmp_path / "feedback-1.jsonl"), 2)


def test_feedback_is_joined_in_every_folder_of_a_glob(tmp_path: Path) -> None:
    for at, day in enumerate(("monday", "tuesday")):
        (tmp_path / day).mkdir()
        write_log(tmp_path / day / "exchanges-1.jsonl", [exchange(at)])
        write_log(tmp_path / day / "feedback-1.jsonl", [{"id": f"x{at:05d}", "feedback": correction("loan")[0]}])
    kept, rejected = read_log(tmp_path / "*" / "exchanges-*.jsonl")
    assert [(each.id, each.correction) for each in kept] == [("x00000", "loan"), ("x00001", "loan")]
    assert rejected == []


def test_a_line_of_feedback_that_two_sources_share_is_reported_once(tmp_path: Path, distil: Distil) -> None:
    for at in range(2):
        write_log(tmp_path / f"exchanges-{at}.jsonl", [exchange(each) for each in range(20 * at, 20 * at + 20)])
    write_log(tmp_path / "feedback-0.jsonl", [{"id": "elsewhere", "feedback": correction("loan")[0]}, "broken"])
    paths = [{"path": str(tmp_path / f"exchanges-{at}.jsonl")} for at in range(2)]
    made = distil.run(settings_for(tmp_path, sources=paths, damaged_limit=0.1))
    assert [(row["step"], row["line"]) for row in rejections_of(made.out)] == [("read", 1), ("damaged", 2)]
    assert made.facts["read"] == {"lines": 42, "damaged": 1}


def test_rejections_name_the_file_and_line_of_whatever_form(distil: Distil, tmp_path: Path) -> None:
    lines: list[Json] = [*lines_of(), {"id": "y"}]
    for form in ("zstd", "JSON array"):
        folder = tmp_path / form
        folder.mkdir()
        path = write_in(form, folder, lines)
        made = distil(path, damaged_limit=0.1)
        damaged = [(row["source"], row["line"]) for row in rejections_of(made.out) if row["step"] == "damaged"]
        assert damaged == [(str(path), 51)], form

"""Comparing bases: the slice, what a base says of itself, what may be concluded, and how it is shown."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.commands.compare_bases import divide
from potstill.comparing import table
from potstill.comparing.describe import sizes_of, tensor_shapes, window_of
from potstill.comparing.judge import Answers, conclusion, judge, rounded
from potstill.comparing.licence import UNKNOWN, licence_of
from potstill.comparing.page import clear_of, plot, round_ticks, write_page
from potstill.comparing.run import name_apart, reason_of
from potstill.comparing.slices import SlicePlan, divide_validation, make_slice, read_judged, take_rows, weight_of
from potstill.comparing.watched import read_watched, run_watched
from potstill.dataset import SEALED, read_preferences, write_examples, write_preferences
from potstill.errors import RecipeError
from potstill.manifest import read_manifest, write_manifest
from potstill.models import Base
from potstill.preferences import Preference
from potstill.prompt import PromptRule
from potstill.records import Example, Json
from potstill.tasks.base import Metric

ACCURACY = Metric("accuracy", {"correct": 1.0})


def example(at: int, answer: str = "yes", conversation: str | None = None) -> Example:
    return Example(
        id=f"e{at}", conversation=conversation or f"c{at}", messages=[{"role": "user", "content": f"row {at}"}],
        full_messages=[], answer=answer, teacher_answer=answer, teacher_text=answer,
    )  # fmt: skip


# ---- the slice


@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=120), st.integers(1, 60))
def test_slice_has_the_asked_size_and_every_answer_in_proportion(answers: list[str], count: int) -> None:
    rows = [example(at, answer) for at, answer in enumerate(answers)]
    taken = take_rows(rows, count, stratified=True)
    assert len(taken) == min(count, len(rows))
    assert [each.id for each in taken] == [each.id for each in rows if each in taken]  # in the order of the whole
    kinds = set(answers)
    if len(kinds) <= count < len(rows):
        assert {each.answer for each in taken} == kinds
        for kind in kinds:
            fair = count * answers.count(kind) / len(answers)
            assert abs(sum(each.answer == kind for each in taken) - fair) <= len(kinds)


def test_slice_does_not_depend_on_the_order_of_the_rows() -> None:
    rows = [example(at, "ab"[at % 2]) for at in range(80)]
    there, back = take_rows(rows, 20, stratified=True), take_rows(rows[::-1], 20, stratified=True)
    assert {each.id for each in there} == {each.id for each in back}


@given(st.lists(st.integers(0, 15), min_size=2, max_size=80), st.integers(1, 60))
def test_no_conversation_is_both_watched_in_training_and_judged_on(conversations: list[int], most: int) -> None:
    rows = [example(at, conversation=f"c{name}") for at, name in enumerate(conversations)]
    divided = divide_validation(rows, most)
    assert divided.judged
    assert not {each.conversation for each in divided.judged} & {each.conversation for each in divided.watched}


def dataset(folder: Path, validation: int = 40) -> Path:
    write_examples(folder / "train.parquet", [example(at, "yn"[at % 4 == 0]) for at in range(200)])
    write_examples(folder / "validation.parquet", [example(at) for at in range(1000, 1000 + validation)])
    write_examples(folder / SEALED, [example(at) for at in range(2000, 2040)])

    def pair(at: int) -> Preference:
        return Preference(f"e{at}", f"c{at}", [{"role": "user", "content": "?"}], "yes", "no", "correction")

    pairs = {"train": [pair(at) for at in range(60)], "validation": [pair(at) for at in range(1000, 1040)]}
    write_preferences(folder, pairs, {"train": [], "validation": []})  # type: ignore[arg-type]
    facts = {"prompt_rule": PromptRule().to_json(), "rows": {"train": 200}}
    write_manifest(folder, "dataset", settings_passed={}, settings_used={}, inputs=[], facts=facts, key="whole")
    return folder


def test_slice_is_a_dataset_folder_without_test_rows_that_names_what_it_is_a_slice_of(tmp_path: Path) -> None:
    whole = dataset(tmp_path / "dataset-whole")
    sliced = make_slice(whole, SlicePlan(50, 20), "classification", tmp_path / "compare")
    manifest = read_manifest(sliced, "dataset")
    assert manifest.input("dataset").digest == read_manifest(whole).digest
    assert manifest.facts["rows"] == {"train": 50, "validation": 20, "judged": 20}
    assert manifest.facts["slice_of"]["times_larger"] == pytest.approx(4, rel=0.02)
    assert manifest.facts["prompt_rule"] == PromptRule().to_json()
    assert not (sliced / SEALED).exists()
    judged = {each.conversation for each in read_judged(sliced)}
    assert len(read_preferences(sliced, "train")) == 50
    assert {each.conversation for each in read_preferences(sliced, "validation")}.isdisjoint(judged)
    before = (sliced / "manifest.json").stat().st_mtime_ns
    assert make_slice(whole, SlicePlan(50, 20), "classification", tmp_path / "compare") == sliced
    assert (sliced / "manifest.json").stat().st_mtime_ns == before


def test_dataset_without_validation_rows_is_refused_with_the_setting_to_change(tmp_path: Path) -> None:
    whole = dataset(tmp_path / "dataset-whole", validation=0)
    with pytest.raises(RecipeError, match=r"distill\.split\.validation"):
        make_slice(whole, SlicePlan(), "classification", tmp_path / "compare")


def test_whole_is_weighed_against_the_slice_by_what_training_reads() -> None:
    rows = [example(at) for at in range(10, 20)]
    assert weight_of(rows, rows[:5]) == pytest.approx(2)


# ---- what a base says of itself


def test_licence_of_the_card_goes_before_the_file_and_the_family(tmp_path: Path) -> None:
    base, config = Base("x", tmp_path, ""), {"model_type": "qwen3"}
    assert licence_of(base, {"model_type": "llama"}).name == UNKNOWN  # an architecture of many licences
    assert str(licence_of(base, config)) == "apache-2.0 (of the family: check these weights)"
    (tmp_path / "LICENSE").write_text("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\nLlama 3.2 Version ...")
    assert str(licence_of(base, config)) == "llama community (licence file)"
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: house\nlicense_link: l\n---\n# Card")
    found = licence_of(base, config)
    assert (found.name, found.source, found.link) == ("house", "model card", "l")


@pytest.mark.parametrize(
    "card", ["no front matter", "---\nlicense: [\n---\n", "---\n- a\n---\n", "---\ntags: [x]\n---\n"]
)
def test_card_that_states_no_licence_is_none(tmp_path: Path, card: str) -> None:
    (tmp_path / "README.md").write_text(card)
    assert licence_of(Base("x", tmp_path, ""), {}).name == UNKNOWN


def test_licence_of_a_gguf_is_read_from_its_metadata(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="reads GGUF metadata, comes with [train]")
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_license("mit")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert str(licence_of(Base("m.gguf", tmp_path, "", path), {})) == "mit (GGUF metadata)"


def test_parameters_and_sizes_come_from_the_headers_alone(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "BF16", "shape": [10, 64], "data_offsets": [0, 1280]},
        "b": {"dtype": "BF16", "shape": [64], "data_offsets": [1280, 1408]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    sizes = sizes_of(tensor_shapes(tmp_path))
    assert sizes is not None
    assert (sizes.parameters, sizes.bf16) == (704, 1408)
    assert sizes.q8_0 == 640 * 8.5 / 8 + 64 * 2
    assert sizes.q4_0 == 640 * 4.5 / 8 + 64 * 2
    header["a"]["dtype"] = "U8"
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    assert sizes_of(tensor_shapes(tmp_path)) is None  # packed weights


@pytest.mark.parametrize(
    ("config", "tokenizer", "window"),
    [
        ({"max_position_embeddings": 8192}, {"model_max_length": 2048}, 8192),
        ({"text_config": {"max_position_embeddings": 32768}}, {}, 32768),
        ({}, {"model_max_length": 1000000000000000019884624838656}, None),
        ({}, {"model_max_length": 2048}, 2048),
    ],
)
def test_context_window_is_the_models_or_what_the_tokenizer_says(config: Json, tokenizer: Json, window: Any) -> None:
    assert window_of(config, tokenizer) == window


# ---- what may be concluded


def answers(marks: list[int]) -> Answers:
    ids = [str(at) for at in range(len(marks))]
    return Answers(ids, [{"correct": float(mark)} for mark in marks], [True] * len(ids), ids)


def row_of(name: str, judged: Any, seconds: float = 1.0) -> Json:
    return {
        "name": name, "spec": f"hub/{name}", "status": "done", **judged.to_json(), "parameters": 135_000_000,
        "size_bytes": {"bf16": 270_000_000, "q8_0": 143_000_000, "q4_0": 76_000_000}, "window": 8192,
        "licence": {"name": UNKNOWN, "source": "nowhere", "link": None, "found": "nowhere"}, "licence_text": UNKNOWN,
        "training": {
            "tokens_per_second": 500.0, "seconds": 70.0, "full_seconds": 4000.0,
            "peak_memory_bytes": 1_200_000_000, "gpu_peak_bytes": None,
        },
        "serving": {
            "answers_per_second": 1000 / seconds, "tokens_per_second": 4000 / seconds, "seconds_per_thousand": seconds,
            "usd_per_hour": None, "usd_per_million": None, "peak_memory_bytes": 700_000_000, "gpu_peak_bytes": None,
        },
    }  # fmt: skip


def three() -> list[Json]:
    """300 rows: `near` misses three rows more than `best` and gains two others, `far` misses sixty."""
    best = [1] * 280 + [0] * 20
    near = [0] * 3 + [1] * 277 + [1] * 2 + [0] * 18
    far = [0] * 60 + [1] * 220 + [0] * 20
    judged = judge(ACCURACY, {"best": answers(best), "near": answers(near), "far": answers(far)})
    return [row_of("best", judged["best"], 9), row_of("near", judged["near"], 2), row_of("far", judged["far"], 1)]


def test_what_the_rows_cannot_tell_apart_is_said_to_be_undecided() -> None:
    best, near, far = three()
    assert (best["standing"], near["standing"], far["standing"]) == ("best", "undecided", "worse")
    assert near["difference"]["low"] < 0 < near["difference"]["high"]
    assert far["difference"]["high"] < 0
    text = " ".join(conclusion([best, near, far]))
    assert "best has the best figure: accuracy 0.933" in text
    assert "Worse than it (95 %, all pairs together): far." in text
    assert "Undecided against it: near (-0.3 points [" in text
    assert "rows would decide" in text
    assert "not to say equal" in text
    assert "Of those not shown to be worse, near costs least at serving." in text  # not `far`, which is cheaper


def test_few_rows_decide_nothing_however_large_the_difference() -> None:
    judged = judge(ACCURACY, {"a": answers([1] * 20), "b": answers([0] * 20)})
    assert judged["b"].standing == "undecided"
    assert "too few rows" in judged["b"].words


def test_equal_answers_are_undecided_and_no_number_of_rows_is_promised() -> None:
    judged = judge(ACCURACY, {"a": answers([1, 0] * 40), "b": answers([1, 0] * 40)})
    assert judged["b"].words.endswith("they did equally well")


def test_every_pair_more_widens_the_difference() -> None:
    marks = {"a": [1] * 90 + [0] * 10, "b": [1] * 80 + [0] * 20}
    two = judge(ACCURACY, {name: answers(each) for name, each in marks.items()})["b"].difference
    many = judge(ACCURACY, {name: answers(marks[name[0]]) for name in ("a", "b", "b2", "b3")})["b"].difference
    assert two is not None
    assert many is not None
    assert many.low < two.low
    assert many.value == two.value


def test_no_result_and_one_result_conclude_nothing() -> None:
    failed = {"name": "gone", "status": "failed", "reason": "does not exist"}
    assert conclusion([failed])[0] == "No base has a result: nothing can be concluded."
    assert "compared with nothing" in " ".join(conclusion([three()[0], failed]))


@pytest.mark.parametrize(("count", "shown"), [(5069, 5100), (42, 42), (987_654, 990_000)])
def test_rows_that_would_decide_are_rounded_as_a_guess(count: int, shown: int) -> None:
    assert rounded(count) == shown


# ---- failures, names, words


@pytest.mark.parametrize(
    ("code", "failed", "wanted"),
    [
        (
            1,
            {"kind": "NothingLearned", "message": "nothing learned: validation\n loss"},
            "nothing learned: validation loss",
        ),
        (1, {"kind": "PotstillError", "message": "not to be had (GatedRepoError: 401)"}, "licence gated: accept it"),
        (1, {"kind": "OutOfMemoryError", "message": "CUDA tried"}, "out of memory: CUDA tried"),
        (1, {"kind": "RuntimeError", "message": "can't allocate memory: 9 bytes"}, "out of memory: can't"),
        (1, {"kind": "KeyError", "message": "'x'"}, "KeyError: 'x'"),
        (-9, None, "killed by the system, most likely out of memory; it held 2.0 GiB"),
        (-11, None, "ended by signal 11"),
        (7, None, "ended with code 7"),
    ],
)
def test_reason_of_a_failed_base_is_one_line_that_says_why(code: int, failed: Any, wanted: str) -> None:
    assert reason_of(code, failed, 2**31).startswith(wanted)


def test_bases_that_would_be_called_alike_keep_their_whole_names() -> None:
    rows = name_apart([{"spec": "a/tiny"}, {"spec": "b/tiny"}, {"spec": "package:m/Small.Q4.gguf"}])
    assert [row["name"] for row in rows] == ["a/tiny", "b/tiny", "Small.Q4"]


def test_settings_behind_the_bases_are_settings() -> None:
    words = ["org/a", "train.epochs=1", "/models/x=y", "name=other", "package:m/f.gguf"]
    assert divide(words) == (["org/a", "/models/x=y", "package:m/f.gguf"], ["train.epochs=1", "name=other"])


def test_peak_is_of_the_process_tree_and_outlives_a_stop(tmp_path: Path) -> None:
    grandchild = "held = b'x' * 120_000_000; import time; time.sleep(1.5)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    kept = tmp_path / "took.json"
    assert run_watched([sys.executable, "-c", program], kept) == 0
    first = read_watched(kept)
    assert first.peak_bytes > 120_000_000
    assert first.seconds > 1.5
    assert run_watched([sys.executable, "-c", "raise SystemExit(3)"], kept) == 3
    both = read_watched(kept)  # of a run that was stopped and went on: the largest peak, the time of all parts
    assert both.peak_bytes == first.peak_bytes
    assert both.seconds > first.seconds


# ---- shown


def report_of(rows: list[Json]) -> Json:
    return {
        "name": "mail", "created": "2026-01-05T08:00:00+00:00", "metric": "accuracy", "bases": rows,
        "slice": {"train": 500, "validation": 50, "judged": 300}, "whole": {"times_larger": 12.5},
        "judged_on": "Quality is measured on validation rows.", "conclusion": conclusion(rows),
    }  # fmt: skip


def test_table_fits_the_terminal_and_puts_bases_side_by_side() -> None:
    rows = [*three(), {"name": "gone", "spec": "gone", "status": "failed", "reason": "licence gated: ask " + "x " * 80}]
    text = table.text_of(report_of(rows), 100)
    assert max(map(len, text.splitlines())) <= 100
    assert "best                            near" in text
    assert "undecided: -0.3 points" in text
    assert "9.00 machine-s per 1,000" in text
    assert "unknown: look before you ship" in text
    assert "gone: no result: licence gated" in text
    assert "270.0 MB" in text


def test_price_turns_machine_time_into_dollars() -> None:
    row = three()[0]
    assert table.cost(row) == "9.00 machine-s per 1,000 answers"
    row["serving"]["usd_per_million"] = 12.5
    assert table.cost(row) == "$12.5 a million answers"


def test_page_escapes_names_loads_nothing_and_shows_every_base(tmp_path: Path) -> None:
    rows = [*three(), {"name": "<b>", "spec": "<b>", "status": "failed", "reason": "<script>"}]
    write_page(tmp_path / "page.html", report_of(rows))
    text = (tmp_path / "page.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "http" not in text.replace("http-equiv", "")
    assert all(f"{at} {name}</text>" in text for at, name in enumerate(("best", "near", "far"), 1))
    write_page(tmp_path / "empty.html", report_of(rows[3:]))
    assert "<svg" not in (tmp_path / "empty.html").read_text()


def test_plot_keeps_every_mark_inside_and_labels_apart() -> None:
    for width, height in ((1170, 400), (350, 300)):
        drawn = plot(three(), width, height)
        for mark in drawn.marks:
            assert drawn.left <= mark.x <= drawn.right
            assert drawn.top <= mark.high <= mark.y <= mark.low <= drawn.bottom
    assert clear_of([10.0, 25.0], 12.0) == 40.0


@given(st.floats(0, 1), st.floats(0.001, 500))
def test_ticks_are_round_and_hold_the_whole_range(low: float, span: float) -> None:
    ticks = round_ticks(low, low + span, 5)
    assert ticks[0] <= low + 1e-6 * span
    assert ticks[-1] >= low + span - 1e-6 * span - 1e-6
    assert 2 <= len(ticks) <= 8

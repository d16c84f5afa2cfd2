"""The training benchmarks count what they say they count, and do not favour ours."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from benchmarks.train.curves import deviation, smoothed
from benchmarks.train.job import Job, Ran, Steps, run_job
from benchmarks.train.product import Weights, nominal, weights_of
from benchmarks.train.rows import Row, banking77_folder, like_banking77, like_chat, read_rows, write_rows
from benchmarks.train.with_trl import SETTINGS, TUNED

SMOLLM2 = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49_152,
}  # fmt: skip


def ran(seconds: list[float], tokens: list[int], learnt: list[int], products: list[dict[str, float]]) -> Ran:
    return Ran(Steps(seconds, tokens, [2 * each for each in tokens], learnt, [1.0] * 3, [1.0] * 3), products)


def test_weights_are_those_of_the_model() -> None:
    a_layer = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536
    adapter = 16 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))
    assert weights_of(SMOLLM2, rank=16) == Weights(30 * a_layer, 30 * adapter, 576 * 49_152)


def test_work_is_four_a_frozen_six_an_adapter_weight_and_output_for_learnt_tokens_alone() -> None:
    assert Weights(frozen=10, adapter=3, output=7).work(tokens=5, learnt=2) == 5 * (4 * 10 + 6 * 3) + 2 * 4 * 7


def test_speed_counts_real_tokens_after_the_warm_up() -> None:
    found = ran([9.0, 1.0, 2.0], [100, 40, 50], [5, 6, 7], [])
    assert found.rate(warmup=1) == pytest.approx(30.0)
    assert found.operations(Weights(1, 0, 1), warmup=1) == pytest.approx((90 * 4 + 13 * 4) / 3)


def test_share_is_of_the_fastest_product_around_the_run() -> None:
    found = ran([1.0], [1], [1], [{"small": 90.0, "large": 100.0}, {"small": 80.0, "large": 70.0}])
    assert found.product == pytest.approx(90.0)


def test_a_run_that_recorded_too_little_is_refused() -> None:
    whole = Steps([1.0], [1], [1], [1], [1.0], [1.0])
    whole.check(1)
    whole.losses.append(1.0)
    with pytest.raises(ValueError, match="1 steps were asked for"):
        whole.check(1)


def test_a_candidate_that_fails_is_a_reason_not_an_exception(tmp_path: Path) -> None:
    found = run_job(Job("ours", "nowhere", str(tmp_path / "none.json"), steps=1), tmp_path)
    assert found.fault is not None
    assert "FileNotFoundError" in found.fault


def test_generated_rows_have_the_lengths_of_banking77() -> None:
    rows = like_banking77(5_000, vocabulary=1_000, seed=0)
    assert statistics.mean(map(len, rows)) == pytest.approx(30.3, rel=0.03)
    assert statistics.median(len(row.prompt) for row in rows) == pytest.approx(20, abs=1)
    assert max(len(row.prompt) for row in rows) <= 105
    assert rows == like_banking77(5_000, vocabulary=1_000, seed=0)


def test_the_label_of_a_generated_row_can_be_learnt_from_its_prompt() -> None:
    rows = like_banking77(500, vocabulary=1_000, seed=1)
    labels: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        assert labels.setdefault(tuple(row.prompt[-3:]), row.completion) == row.completion
    assert len(labels) > 60


def test_rows_as_of_chats_keep_within_their_bounds() -> None:
    rows = like_chat(500, vocabulary=300, seed=0)
    assert {len(row) for row in rows} <= set(range(32, 1025))
    assert max(map(len, rows)) > 4 * statistics.median(map(len, rows)) / 2
    assert all(max(row.token_ids) < 300 and len(row.completion) == len(row) // 2 for row in rows)


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    rows = [Row([1, 2], [3]), Row([4], [5, 6])]
    write_rows(rows, tmp_path / "a" / "rows.json")
    assert read_rows(tmp_path / "a" / "rows.json") == rows


def test_banking77_is_found_where_it_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "banking77").mkdir()
    (tmp_path / "banking77" / "train.csv").write_text("text,category\n")
    assert banking77_folder(tmp_path / "banking77") == tmp_path / "banking77"
    monkeypatch.setenv("POTSTILL_DATA", str(tmp_path))
    assert banking77_folder(None) == tmp_path / "banking77"
    assert banking77_folder(tmp_path / "elsewhere") is None


def test_curves_are_compared_step_by_step_after_smoothing() -> None:
    assert smoothed([1.0, 3.0, 5.0], window=2) == [1.0, 2.0, 4.0]
    assert deviation([2.0, 2.0], [2.0, 2.0]) == 0
    assert deviation([2.0] * 9 + [3.0], [2.0] * 10) == pytest.approx(0.1)
    assert deviation([2.0], [2.0, 2.0]) is None
    assert deviation([], []) is None


@pytest.mark.parametrize("name", TUNED)
def test_no_setting_of_the_peer_changes_what_is_learnt(name: str) -> None:
    arguments = SETTINGS[name].arguments
    assert arguments.get("packing_strategy", "bfd") == "bfd"  # "wrapped" lets rows see each other
    assert arguments.get("max_length", 1024) is None or arguments.get("max_length", 1024) >= 128  # the longest is 123
    assert not {"loss_type", "max_grad_norm", "learning_rate"} & arguments.keys()


def test_the_peers_default_is_its_default() -> None:
    assert SETTINGS["trl-default"].arguments == {}
    assert SETTINGS["trl-default"].by_name
    assert "trl-default" not in TUNED


def test_nominal_peaks_are_known_by_part_of_the_name() -> None:
    assert nominal("NVIDIA H100 80GB HBM3") == 989e12
    assert nominal("cpu") is None

"""The training benchmarks on a tiny model: every candidate trains, and what it did is counted rightly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.train import ours, with_trl
from benchmarks.train.job import Job, Steps
from benchmarks.train.product import product_rates, weights_of
from benchmarks.train.rows import Row, like_banking77, write_rows
from benchmarks.train.shapes import SHAPES, build, config_of

ROOT = Path(__file__).resolve().parents[2]
ROWS = like_banking77(400, SHAPES["tiny"]["vocab_size"], seed=0)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("tiny")
    write_rows(ROWS, folder / "rows.json")
    return Job("ours", str(build("tiny", folder / "base", "cpu")), str(folder / "rows.json"), steps=3, product_s=0.0)


def trained(job: Job, candidate: str, rows: list[Row] = ROWS) -> Steps:
    values = {**job.__dict__, "candidate": candidate}
    steps = (ours.train if candidate == "ours" else with_trl.train)(Job(**values), rows)
    steps.check(job.steps)
    return steps


@pytest.mark.parametrize(
    "candidate", ["ours", "trl-default", "trl-packed-256", "trl-padding-free-16", "trl-by-length-32-bf16-adapter"]
)
def test_every_candidate_trains_and_is_counted(job: Job, candidate: str) -> None:
    steps = trained(job, candidate)
    assert min(steps.gradient_norms) > 0
    for learnt, real, computed in zip(steps.learnt, steps.tokens, steps.computed, strict=True):
        assert 0 < learnt < real
        assert learnt < computed <= real if candidate == "ours" else real <= computed  # ours: no beginning twice
    assert min(steps.seconds) > 0
    if candidate == "trl-packed-256":
        assert max(steps.tokens) <= 256
    if candidate in ("trl-packed-256", "trl-padding-free-16"):
        assert steps.tokens == steps.computed
    if candidate == "trl-default":
        assert all(8 * 16 <= real < computed for real, computed in zip(steps.tokens, steps.computed, strict=True))


def test_both_sides_take_the_rows_that_a_step_is_given(job: Job) -> None:
    chosen = [[0, 1, 2, 3], [10, 11, 12, 13], [5, 6, 7, 8]]
    wanted = Job(**{**job.__dict__, "batches": chosen})
    tokens = [sum(len(ROWS[at]) for at in batch) for batch in chosen]
    learnt = [sum(len(ROWS[at].completion) for at in batch) for batch in chosen]
    for candidate in ("ours", "trl-same-order"):
        steps = trained(wanted, candidate)
        assert (steps.tokens, steps.learnt) == (tokens, learnt)


def test_batches_of_like_lengths_hold_a_mix_and_little_padding(job: Job) -> None:
    steps = trained(Job(**{**job.__dict__, "steps": 8}), "trl-by-length-32", like_banking77(3_200, 512, seed=0))
    assert sum(steps.computed) < 1.35 * sum(steps.tokens)
    assert steps.tokens != sorted(steps.tokens, reverse=True)


def test_packed_loss_is_that_of_rows_alone(job: Job) -> None:
    found = ours.packed_loss(job, ROWS)
    assert found["packed"] == pytest.approx(found["alone"], rel=1e-3)


def test_a_matrix_product_has_a_speed() -> None:
    assert all(1e8 < rate < 1e16 for rate in product_rates("cpu", seconds=0.0).values())


@pytest.mark.parametrize(("shape", "billions"), [("1.5b", 1.54), ("4b", 4.02), ("8b", 8.19), ("llama-8b", 8.03)])
def test_shapes_have_the_size_that_they_are_named_after(shape: str, billions: float) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(shape))
    assert sum(each.numel() for each in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_nothing_passes_and_the_reason_is_given() -> None:
    words = [sys.executable, "-m", "benchmarks.train_gpu", "--quick", "--json", "--shape", "1.5b"]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    found = json.loads(ended.stdout)
    assert ended.returncode == 3
    assert found["figures"] == {}
    assert {each["figure"] for each in found["checks"]} == {None}
    assert "finds no CUDA device" in found["notes"][0]


def test_work_is_what_the_stage_itself_counts(job: Job) -> None:
    from training.speed import flops_a_token

    config = json.loads((Path(job.base) / "config.json").read_text())
    weights = weights_of(config, job.rank)
    assert flops_a_token(ours.student(job)) == (weights.work(1, 0), weights.work(0, 1))

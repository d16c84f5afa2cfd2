"""Compiled loops give what transformers' own operations give, both ways, and are made where they are worth it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from potstill import models
from tests.stages.datasets import dataset_folder
from tests.stages.processes_child import units
from tests.stages.test_training import example, losses, settings_with, trained
from tests.stages.tiny_llama import tiny_base
from training import forecast, fused
from training.attention import rows_apart
from training.batch import Batch, inner_of, target_log_probs, token_scores
from training.model import student
from training.optimizer import MasterAdamW


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> models.Base:
    return tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def as_written(function: Any) -> Any:
    """What `torch.compile` is given, run as it stands."""
    return function


def scored(model: Any, batch: Batch) -> tuple[torch.Tensor, int, dict[str, torch.Tensor]]:
    scores, hits = token_scores(model, batch)
    (-(scores * torch.linspace(0.5, 1.5, len(scores))).sum()).backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return scores.detach(), hits, gradients


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_loops_give_the_scores_and_gradients_of_the_model_as_it_was(
    base: models.Base, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_compiled", as_written)
    compare(base, method)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_so_do_the_loops_that_the_compiler_made_of_them(base: models.Base, method: str) -> None:
    if not fused.can_compile():
        pytest.skip("no C++ compiler is at hand")
    compare(base, method)


def compare(base: models.Base, method: str) -> None:
    found = []
    for loops in (False, True):
        torch.manual_seed(3)
        if method == "full":
            model = models.load_float(base.path, dtype="float32")
        else:
            model = student(base.path, quantization="none", rank=4, alpha=8, dropout=0.0, seed=0, lean=False).float()
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        if loops:
            layers = inner_of(model).config.num_hidden_layers
            assert fused.fuse(inner_of(model)) == 3 * layers + 1  # two norms and a gate each, and the last norm
            assert inner_of(model).potstill_rotary is not None
        found.append([scored(model, Batch.of(units(count, 0))) for count in (3, 9)])
    for (scores, hits, gradients), (mine, my_hits, my_gradients) in zip(*found, strict=True):
        torch.testing.assert_close(mine, scores, atol=1e-4, rtol=1e-4)
        assert my_hits == hits
        assert my_gradients.keys() == gradients.keys()
        for name, each in gradients.items():
            torch.testing.assert_close(
                my_gradients[name], each, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_the_scores_are_those_of_the_cross_entropy_and_the_likeliest_tokens_are_counted() -> None:
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.tensor([*range(6), int(logits[6].argmax())])
    batch = SimpleNamespace(targets=targets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "_compiled", as_written)
        mine, first = fused.target_scores(logits, targets)
        (to_mine,) = torch.autograd.grad(mine.square().sum(), logits)
    wanted = target_log_probs(logits, batch, slice(None))  # type: ignore[arg-type]
    (to_wanted,) = torch.autograd.grad(wanted.square().sum(), logits)
    torch.testing.assert_close(mine, wanted)
    torch.testing.assert_close(to_mine, to_wanted, atol=1e-5, rtol=1e-4)
    assert first.tolist() == (logits.argmax(-1) == targets).tolist()
    assert first[6]


def test_outside_of_a_step_transformers_turns_queries_as_before(
    base: models.Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama import modeling_llama

    monkeypatch.setattr(fused, "_compiled", as_written)
    model = models.load_float(base.path, dtype="float32")
    fused.fuse(model)
    theirs = modeling_llama.apply_rotary_pos_emb
    within = rows_apart(model, (3,))
    within.__enter__()
    assert modeling_llama.apply_rotary_pos_emb is not theirs
    within.__exit__(None, None, None)
    assert modeling_llama.apply_rotary_pos_emb is theirs


def test_only_a_part_of_the_head_that_is_turned_is_left_to_transformers(base: models.Base) -> None:
    model = models.load_float(base.path, dtype="float32")
    model.config.partial_rotary_factor = 0.5
    fused.fuse(model)
    assert model.potstill_rotary is None


@pytest.mark.parametrize(
    ("asked", "tokens", "able", "wanted"),
    [
        ("auto", fused.WORTH_TOKENS, True, True),
        ("auto", fused.WORTH_TOKENS, False, False),
        ("auto", fused.WORTH_TOKENS - 1, True, False),
        (True, 10, True, True),
        (True, 10, False, False),
        (False, 10**9, True, False),
    ],
)
def test_loops_are_compiled_where_asked_for_or_where_the_training_is_long(
    asked: Any, tokens: int, able: bool, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "can_compile", lambda: able)
    rows: Any = SimpleNamespace(tokens=tokens)
    assert forecast.fused_here(settings_with(compile=asked, epochs=1), rows) is wanted


def test_a_machine_that_cannot_compile_says_why_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(function: Any) -> Any:
        raise RuntimeError("InvalidCxxCompiler: no g++\nand a long story")

    monkeypatch.setattr(fused, "_compiled", broken)
    fused.can_compile.cache_clear()
    try:
        assert fused.can_compile() is False
    finally:
        fused.can_compile.cache_clear()
    assert "InvalidCxxCompiler: no g++)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_with_compiled_loops_goes_on_with_the_same_bits(
    base: models.Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fused.can_compile():
        pytest.skip("no C++ compiler is at hand")
    train, held = [example(at) for at in range(90)], [example(at) for at in range(300, 315)]
    dataset = dataset_folder(tmp_path / "dataset", train, held)
    settings = {"compile": True, "checkpoint_steps": 3}
    trained(base, dataset, tmp_path / "whole", **settings)
    steps, step = [0], MasterAdamW.step

    def cut_off(optimizer: MasterAdamW, rate: float, limit: float) -> float:
        steps[0] += 1
        if steps[0] == 11:
            raise ConnectionAbortedError("the power is gone")
        return step(optimizer, rate, limit)

    monkeypatch.setattr(MasterAdamW, "step", cut_off)
    with pytest.raises(ConnectionAbortedError):
        trained(base, dataset, tmp_path / "cut", **settings)
    monkeypatch.setattr(MasterAdamW, "step", step)
    trained(base, dataset, tmp_path / "cut", **settings)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "cut")) > 11

"""Packing: every row once an epoch, in a step that depends on its number alone, and apart from its neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill import chat, models
from tests.stages.test_training import example
from tests.stages.tiny_llama import tiny_base
from training import attention, lean
from training.batch import Batch, token_scores
from training.model import student
from training.packing import Stream, Unit, micro_batches
from training.rows import Row, tokenise

lengths = st.lists(st.integers(min_value=2, max_value=100), min_size=1, max_size=60)


def unit(at: int, size: int, weight: float = 1.0) -> Unit:
    return Unit(f"u{at}", (Row(f"r{at}", list(range(size)), ((1, size),), weight),))


@given(lengths, st.integers(0, 5), st.integers(16, 256))
@settings(deadline=None, max_examples=80)
def test_an_epoch_holds_every_unit_once_and_no_step_is_too_long(sizes: list[int], seed: int, limit: int) -> None:
    stream = Stream([unit(*each) for each in enumerate(sizes)], seed=seed, step_tokens=limit, epochs=2)
    by_epoch: dict[int, list[str]] = {0: [], 1: []}
    for step in range(stream.steps):
        units = stream.step(step)
        assert sum(each.tokens for each in units) <= limit or len(units) == 1
        by_epoch[stream.place(step).epoch] += [each.id for each in units]
    assert sorted(by_epoch[0]) == sorted(by_epoch[1]) == sorted(f"u{at}" for at in range(len(sizes)))


@given(lengths, st.integers(0, 5), st.data())
@settings(deadline=None, max_examples=40)
def test_a_step_depends_on_its_number_alone(sizes: list[int], seed: int, data: Any) -> None:
    units = [unit(*each) for each in enumerate(sizes)]
    first = Stream(units, seed=seed, step_tokens=64, epochs=3)
    whole = [[each.id for each in first.step(step)] for step in range(first.steps)]
    at = data.draw(st.integers(0, first.steps - 1))
    assert [each.id for each in Stream(units, seed=seed, step_tokens=64, epochs=3).step(at)] == whole[at]
    by_steps = Stream(units, seed=seed, step_tokens=64, max_steps=first.steps)
    assert [each.id for each in by_steps.step(at)] == whole[at]


def test_a_share_of_an_epoch_is_that_share_of_its_steps() -> None:
    units = [unit(at, 10) for at in range(100)]
    assert Stream(units, seed=0, step_tokens=100, epochs=1.5).steps == 15
    assert Stream(units, seed=0, step_tokens=100, epochs=0.25).steps == 2
    assert Stream(units, seed=0, step_tokens=100, max_steps=37).steps == 37


def test_epochs_and_seeds_differ_in_order() -> None:
    units = [unit(at, 10) for at in range(100)]
    stream = Stream(units, seed=0, step_tokens=100, epochs=2)
    assert stream.order(0) != stream.order(1)
    assert stream.order(0) != Stream(units, seed=1, step_tokens=100).order(0)


@given(lengths, st.integers(1, 200))
def test_micro_batches_hold_a_step_in_order(sizes: list[int], limit: int) -> None:
    units = [unit(*each) for each in enumerate(sizes)]
    cut = micro_batches(units, limit)
    assert [each for part in cut for each in part] == units
    assert all(sum(each.tokens for each in part) <= limit or len(part) == 1 for part in cut)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> models.Base:
    return tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def rows_of(base: models.Base, count: int) -> list[Row]:
    tokenizer = chat.load_tokenizer(base.path)
    longer = [{"role": "user", "content": "a much longer message than the others, " * 4}]
    examples = [example(at, **({"messages": longer} if at % 3 == 1 else {})) for at in range(count)]
    return tokenise(tokenizer, examples, 512).rows


@pytest.mark.parametrize("long", [attention.LONG, 8], ids=["buckets", "fused kernel"])
def test_packed_rows_do_not_see_each_other(base: models.Base, long: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "LONG", long)
    units = [Unit(row.id, (row,)) for row in rows_of(base, 7)]
    model = models.load_float(base.path, dtype="float32").eval()
    with torch.no_grad():
        together, _ = token_scores(model, Batch.of(units))
        start = 0
        for each in units:
            row = each.rows[0]
            logits = model(input_ids=torch.tensor([row.token_ids])).logits[0, :-1].log_softmax(-1)
            ((first, end),) = row.learnt
            alone = logits[torch.arange(first - 1, end - 1), torch.tensor(row.token_ids[first:end])]
            there = together[start : start + len(alone)]
            assert torch.allclose(there, alone, atol=2e-5), f"{row.id} differs by {(there - alone).abs().max()}"
            start += len(alone)


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("long", [attention.LONG, 9, 0], ids=["buckets", "both", "fused kernel"])
def test_rows_attention_is_softmax_attention_with_its_gradients(
    heads: tuple[int, int], window: int | None, long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the library's attention with a mask over the whole sequence, in float64."""
    monkeypatch.setattr(attention, "LONG", long)
    torch.manual_seed(0)
    sizes = (3, 17, 1, 16, 9, 16)
    total = sum(sizes)
    shapes = [(1, heads[0], total, 8), (1, heads[1], total, 8), (1, heads[1], total, 8)]
    given_ = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    copies = [each.detach().clone().requires_grad_() for each in given_]
    row = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    at = torch.arange(total)
    distance = at[:, None] - at[None, :]
    seen = (row[:, None] == row[None, :]) & (distance >= 0) & (distance < (window or total))
    expected = torch.nn.functional.scaled_dot_product_attention(*copies, attn_mask=seen, scale=0.3, enable_gqa=True)
    found, _ = attention.rows_attention(None, *given_, None, 0.3, window, sizes)
    assert torch.allclose(found.transpose(1, 2), expected, atol=1e-6)
    weight = torch.randn_like(expected)
    (found.transpose(1, 2) * weight).sum().backward()
    (expected * weight).sum().backward()
    for mine, theirs in zip(given_, copies, strict=True):
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-6)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_lean_model_gives_the_losses_and_gradients_of_the_plain_one(base: models.Base, quantization: Any) -> None:
    found = []
    units = [Unit(row.id, (row,)) for row in rows_of(base, 9)]
    for is_lean in (False, True):
        model = student(
            base.path, quantization=quantization, rank=4, alpha=8, dropout=0.0, seed=0, lean=is_lean
        )  # fmt: skip
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        scores, _ = token_scores(model, Batch.of(units))
        (-scores.mean()).backward()
        gradient = torch.cat([p.grad.float().reshape(-1) for p in model.parameters() if p.requires_grad])
        found.append((scores.detach(), gradient))
    (plain, plain_gradient), (lean_scores, lean_gradient) = found
    assert (plain - lean_scores).abs().mean() < 0.1  # bf16, rounded at other places; in float32 they are equal (below)
    cosine = torch.nn.functional.cosine_similarity(plain_gradient, lean_gradient, dim=0)
    assert cosine > 0.99
    assert lean_gradient.norm() / plain_gradient.norm() == pytest.approx(1, abs=0.05)


def test_the_lean_model_is_exact_in_float32(base: models.Base, tmp_path: Path) -> None:
    import peft

    units = [Unit(row.id, (row,)) for row in rows_of(base, 9)]
    found = []
    for is_lean in (False, True):
        torch.manual_seed(2)
        config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        model = peft.get_peft_model(models.load_float(base.path, dtype="float32"), config)
        if is_lean:
            assert lean.make_lean(model) == 7 * model.config.num_hidden_layers
        scores, _ = token_scores(model, Batch.of(units))
        (-scores.mean()).backward()
        with model.disable_adapter(), torch.no_grad():
            off, _ = token_scores(model, Batch.of(units))
        found.append((scores.detach(), off, [p.grad for p in model.parameters() if p.requires_grad]))
    (plain, plain_off, gradients), (lean_scores, lean_off, lean_gradients) = found
    assert torch.allclose(plain, lean_scores, atol=1e-4)
    assert torch.allclose(plain_off, lean_off, atol=1e-4)
    assert not torch.allclose(plain, plain_off, atol=1e-2)
    for mine, theirs in zip(lean_gradients, gradients, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_a_step_gives_the_same_gradient_however_it_is_cut(base: models.Base) -> None:
    from training.loop import gradient
    from training.objectives.answers import Answers

    units = [Unit(row.id, (row,)) for row in rows_of(base, 9)]
    model = models.load_float(base.path, dtype="float32")
    found = []
    for limit in (10_000, 60, 1):
        loss, _ = gradient(model, Answers(units), units, limit)
        found.append((loss, torch.cat([p.grad.reshape(-1) for p in model.parameters()])))
        model.zero_grad()
    for loss, vector in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        assert torch.allclose(vector, found[0][1], atol=1e-5)


def test_a_weight_counts_as_that_many_rows() -> None:
    from training.objectives.answers import Answers

    light, heavy = unit(0, 5, 1.0), unit(1, 5, 3.0)
    objective = Answers([light, heavy])
    scores = -torch.arange(1.0, 9.0)
    weighted = objective.loss(scores, Batch.of([light, heavy])) / objective.normaliser([light, heavy])
    thrice = Answers([unit(0, 5), *[unit(1, 5)] * 3])
    repeated = thrice.loss(torch.cat([scores[:4], *[scores[4:]] * 3]), Batch.of([unit(0, 5), *[unit(1, 5)] * 3]))
    assert weighted == pytest.approx(float(repeated / thrice.normaliser([unit(0, 5), *[unit(1, 5)] * 3])))

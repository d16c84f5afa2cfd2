"""Beginnings that rows have in common: computed once, with the loss and the gradient of the rows apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill import chat, models
from tests.stages.test_objectives_judged import pair
from tests.stages.tiny_llama import QUESTIONS, tiny_base
from training import attention, fused, parity
from training.batch import Batch, inner_of, shares, token_scores
from training.beginnings import LEAST, computed_tokens, share, tree_of
from training.forecast import _largest_micro_batch
from training.loop import gradient, held_out_loss
from training.model import student, whole
from training.objectives.answers import Answers
from training.objectives.judged_rows import pair_units
from training.objectives.preferences import PreferredAnswers
from training.packing import Stream, Unit, micro_batches
from training.rows import Row
from training.run import Settings

few_tokens = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=12)


def lasting(row: Row) -> Unit:
    return Unit(row.id, (row,))


def alike(count: int = 9, beginning: int = 6) -> list[Unit]:
    """Rows of one opening, some the same to the end, one that is the beginning of others, one that shares nothing."""
    opening = list(range(20, 20 + beginning))
    rows = [Row(f"r{at}", [*opening, 40 + at % 4, *range(60, 62 + at % 3)], ((beginning, beginning + 3),))
            for at in range(count)]  # fmt: skip
    rows.append(Row("whole", [*opening, 40, 60], ((beginning - 1, beginning + 2),)))
    rows.append(Row("other", [7, 8, 9, 10], ((1, 4),), weight=2.0))
    return [lasting(row) for row in rows]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> models.Base:
    return tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@given(few_tokens)
@settings(deadline=None, max_examples=200)
def test_a_tree_gives_every_row_back_and_holds_each_beginning_once(rows: list[list[int]]) -> None:
    tree = tree_of(rows)
    again = iter(tree.places)
    beginnings = set()
    for row in rows:
        at = [next(again) for _ in row]
        assert [tree.token_ids[place] for place in at] == row
        assert [tree.positions[place] for place in at] == list(range(len(row)))
        beginnings |= {tuple(row[: length + 1]) for length in range(len(row))}
    assert next(again, None) is None
    assert len(tree.token_ids) == len(beginnings)
    assert tree.shares == (len(beginnings) <= sum(map(len, rows)) * (1 - LEAST))


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("long", [attention.LONG, 9, 0], ids=["buckets", "both", "fused kernel"])
def test_attention_over_shared_tokens_is_attention_of_the_rows_apart(
    heads: tuple[int, int], window: int | None, long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "LONG", long)
    torch.manual_seed(0)
    opening = list(range(6))
    rows = [[*opening, *range(10 * at, 10 * at + at % 5)] for at in range(1, 9)] + [
        [99, 98, 97],
        opening[:4],
        [*range(17)],
    ]
    tree, sizes = tree_of(rows), tuple(map(len, rows))
    count = len(tree.token_ids)
    assert count < sum(sizes)
    given_ = [
        torch.randn(1, each, count, 8, dtype=torch.float64, requires_grad=True) for each in (heads[0], *heads[1:] * 2)
    ]
    copies = [each.detach().clone().requires_grad_() for each in given_]
    found, _ = attention.rows_attention(None, *given_, None, 0.3, window, sizes, tree.places)
    spread = [each.index_select(2, torch.tensor(tree.places)) for each in copies]
    apart, _ = attention.rows_attention(None, *spread, None, 0.3, window, sizes)
    for token in range(count):
        for place in (at for at, of in enumerate(tree.places) if of == token):
            assert torch.allclose(found[0, token], apart[0, place], atol=1e-6)
    weight = torch.randn_like(found)
    first = torch.tensor([tree.places.index(token) for token in range(count)])
    (found * weight).sum().backward()
    (apart.index_select(1, first) * weight).sum().backward()
    for mine, theirs in zip(given_, copies, strict=True):
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-6)


def loss_and_gradients(model: Any, units: list[Unit], objective: Any) -> tuple[float, dict[str, Any]]:
    model.zero_grad()
    loss, _ = gradient(model, objective, units, 100_000)
    return loss, {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def assert_close(found: tuple[float, dict[str, Any]], wanted: tuple[float, dict[str, Any]], within: float) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=within)
    assert found[1].keys() == wanted[1].keys()
    assert len(found[1]) > 10
    for name, theirs in wanted[1].items():
        scale = theirs.abs().max().item()
        assert scale > 0, name
        assert (found[1][name] - theirs).abs().max().item() <= within * scale, name


@pytest.mark.parametrize("long", [attention.LONG, 8], ids=["buckets", "fused kernel"])
def test_loss_and_gradients_are_those_of_the_rows_apart(
    base: models.Base, long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every weight trained, in float32."""
    monkeypatch.setattr(attention, "LONG", long)
    model = whole(base.path, seed=0).float()
    units = alike()
    objective = Answers(units)
    apart, held = loss_and_gradients(model, units, objective), held_out_loss(model, objective, units, 100_000)
    assert share(inner_of(model))
    batch = Batch.of(units, share=True)
    assert batch.input_ids.shape[1] == computed_tokens(units) < sum(unit.tokens for unit in units) / 2
    assert_close(loss_and_gradients(model, units, objective), apart, 1e-4)
    shared = held_out_loss(model, objective, units, 100_000)
    assert shared[0] == pytest.approx(held[0], rel=1e-5)
    assert shared[1]["token_accuracy"] == held[1]["token_accuracy"]


def test_a_pairs_prompt_is_computed_once_and_the_preference_loss_stays(base: models.Base, tmp_path: Path) -> None:
    units = pair_units(chat.load_tokenizer(base.path), [pair(at) for at in range(len(QUESTIONS))], 128).units
    found = []
    for shared in (False, True):
        model = whole(base.path, seed=0).float()
        if shared:
            assert share(inner_of(model))
        objective = PreferredAnswers(beta=0.3)
        objective.prepare(model, units, tmp_path / str(shared))
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        found.append(loss_and_gradients(model, units, objective))
    prompts = sum(unit.rows[0].learnt[0][0] for unit in units)
    assert computed_tokens(units) <= sum(unit.tokens for unit in units) - prompts
    assert_close(found[1], found[0], 2e-3)


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_an_adapter_in_bf16_learns_the_same(base: models.Base, variant: Any) -> None:
    units = alike()
    found = []
    for shared in (False, True):
        model = student(base.path, quantization="none", rank=4, alpha=8, dropout=0.0, seed=0, variant=variant)
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        if shared:
            assert share(inner_of(model))
        loss, gradients = loss_and_gradients(model, units, Answers(units))
        found.append((loss, torch.cat([each.float().reshape(-1) for each in gradients.values()])))
    (apart, gradient_apart), (together, gradient_together) = found
    assert together == pytest.approx(apart, rel=0.02)
    assert torch.nn.functional.cosine_similarity(gradient_apart, gradient_together, dim=0) > 0.99
    assert gradient_together.norm() / gradient_apart.norm() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("fuse", [False, True], ids=["as loaded", "compiled loops"])
def test_recomputed_activations_attend_to_shared_tokens_again(base: models.Base, fuse: bool) -> None:
    if fuse and not fused.can_compile():
        pytest.skip("no compiler here")
    units = alike()
    found = []
    for again in (False, True):
        model = whole(base.path, seed=0).float()
        if fuse:
            fused.fuse(inner_of(model))
        assert share(inner_of(model))
        model.train()
        if again:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        found.append(loss_and_gradients(model, units, Answers(units)))
    assert_close(found[1], found[0], 1e-5)


def test_shared_rows_are_compared_with_the_models_own_logits(
    base: models.Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would mix rows up where they share tokens is refused before training."""
    model = whole(base.path, seed=0)
    rows = [unit.rows[0] for unit in alike()]
    share(inner_of(model))
    parity.refuse_unlike(model, rows, "base_model: tiny")
    taken = attention.layout_of.__wrapped__

    def mixed(row_lengths: tuple[int, ...], device: str, places: tuple[int, ...] = ()) -> Any:
        return taken(row_lengths, device, tuple(reversed(places)))

    monkeypatch.setattr(attention, "layout_of", mixed)
    with pytest.raises(Exception, match="packed for training, rows get logits"):
        parity.refuse_unlike(model, rows, "base_model: tiny")


def test_nothing_is_shared_with_dropout_or_by_other_kernels(base: models.Base) -> None:
    dropped = student(base.path, quantization="none", rank=4, alpha=8, dropout=0.1, seed=0)
    assert not share(inner_of(dropped))
    assert not shares(dropped)
    flash = models.load_float(base.path)
    flash.potstill_rows = attention.FLASH
    assert not share(flash)
    units = alike()
    plain = models.load_float(base.path)
    assert not shares(plain)  # a teacher, or whatever else was not asked
    assert token_scores(plain, Batch.of(units))[0].shape == token_scores(plain, Batch.of(units, share=True))[0].shape


def test_rows_that_share_nothing_go_as_they_are() -> None:
    units = [lasting(Row(f"r{at}", [at, at + 1, at + 2], ((1, 3),))) for at in range(5)]
    batch = Batch.of(units, share=True)
    assert batch.places == ()
    assert batch.computed_share == (15, 15)


def test_an_opening_alone_is_not_worth_it_in_long_rows() -> None:
    """A few tokens saved would cost the kernel its causal path."""
    opening = [1, 2, 3, 4]
    units = [lasting(Row(f"r{at}", [*opening, *range(1000 * at, 1000 * at + 400)], ((5, 9),))) for at in range(1, 4)]
    batch = Batch.of(units, share=True)
    assert batch.places == ()
    assert computed_tokens(units) == sum(unit.tokens for unit in units)


def test_only_the_end_of_a_row_that_is_mostly_shared_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "LONG", 4)
    rows = [[*range(20)], [*range(15), 90, 91], [*range(5), *range(70, 80)], [*range(3)]]
    tree, sizes = tree_of(rows), tuple(map(len, rows))
    shared = attention.shared_rows(sizes, tree.places, "cpu")
    assert shared.brought == (20, 2, 10, 0)
    masks = attention._masks_of_ends(sizes, shared.brought, 8, "cpu", torch.bfloat16)
    assert {at: tuple(mask.shape) for at, mask in masks.items()} == {1: (2, 17)}
    assert masks[1].isinf().tolist() == [[not 16 - back - 8 < key <= 16 - back for key in range(17)] for back in (1, 0)]
    assert attention._masks_of_ends(sizes, shared.brought, 8, "cpu", torch.bfloat16)[1] is masks[1]  # for every layer


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), min_size=2, max_size=30), st.booleans())
@settings(deadline=None, max_examples=60)
def test_the_forecast_is_of_the_micro_batch_of_which_most_is_computed(
    sizes: list[tuple[int, int]], packing: bool
) -> None:
    """Which need not be the largest: each unit is a pair with a prompt of its own."""
    units = []
    for at, (prompt, answer) in enumerate(sizes):
        asked, said = range(100 * at, 100 * at + prompt), ((range(start, start + answer)) for start in (9000, 9099))
        rows = tuple(Row(f"{at}{first[0]}", [*asked, *first], ()) for first in said)
        units.append(Unit(str(at), rows))
    train = Settings(packing=packing, seed=3)
    tokens, shared = _largest_micro_batch(train, units, 128, 128)
    stream = Stream(units, seed=3, step_tokens=128)
    micros = [m for step in range(stream.steps) for m in micro_batches(stream.step(step), 128 if packing else 1)]
    assert tokens == max(sum(unit.tokens for unit in micro) for micro in micros)
    assert tokens - shared == max(map(computed_tokens, micros))


@pytest.mark.parametrize(("values", "does"), [({"hidden_dropout": 0.1}, True), ({"attention_dropout": 0.1}, False)])
def test_dropout_that_a_config_asks_for_counts_too(base: models.Base, values: dict[str, float], does: bool) -> None:
    model = models.load_float(base.path)
    for name, value in values.items():
        setattr(model.config, name, value)
    assert share(model) is not does

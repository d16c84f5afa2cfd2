"""DPO and KTO: the numbers of TRL's trainers, the right signs, packed as unpacked, and what is left out."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill import chat, models
from potstill.errors import DamagedInput
from potstill.preferences import Opinion, Preference
from tests.stages.tiny_llama import QUESTIONS, tiny_base
from training.objectives import judged_rows, kto, preferences
from training.objectives.judged_rows import opinion_units, pair_units
from training.objectives.preferences import PairLogprobs
from training.objectives.row_logprobs import reference_logprobs, row_logprobs
from training.packing import Unit
from training.rows import Row

BETA = 0.3


def pair(at: int, **changes: Any) -> Preference:
    values: dict[str, Any] = {
        "id": f"p{at}", "conversation": f"c{at}", "messages": [{"role": "user", "content": QUESTIONS[at]}],
        "chosen": f"It is {at}.", "rejected": "I do not know that " * (1 + at % 3), "source": "correction",
    }  # fmt: skip
    return Preference(**(values | changes))


def opinion(at: int, **changes: Any) -> Opinion:
    values: dict[str, Any] = {
        "id": f"o{at}", "conversation": f"c{at}", "messages": [{"role": "user", "content": QUESTIONS[at]}],
        "answer": f"It is {at}." * (1 + at % 2), "desirable": at % 3 > 0, "source": "thumbs",
    }  # fmt: skip
    return Opinion(**(values | changes))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> models.Base:
    return tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def tokenizer(base: models.Base) -> Any:
    return chat.load_tokenizer(base.path)


@pytest.fixture
def reference(base: models.Base) -> Any:
    return models.load_float(base.path, dtype="float32").eval()


@pytest.fixture
def moved(reference: Any) -> Any:
    """The reference after some random steps: a model whose loss is not the one of the start."""
    model = copy.deepcopy(reference)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.requires_grad_(True).add_(torch.randn_like(parameter) * 0.02)
    return model


def packed_logprobs(model: Any, rows: list[Row]) -> Any:
    """All rows behind each other in one padding-free row of the model, positions restarting."""
    ids = torch.tensor([[token for row in rows for token in row.token_ids]])
    positions = torch.tensor([[at for row in rows for at in range(len(row.token_ids))]])
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
    before, targets, row_of, start = [], [], [], 0
    for number, row in enumerate(rows):
        for first, last in row.learnt:
            before += list(range(start + first - 1, start + last - 1))
            targets += row.token_ids[first:last]
            row_of += [number] * (last - first)
        start += len(row.token_ids)
    return row_logprobs(logits[before], torch.tensor(targets), torch.tensor(row_of), len(rows))


def pairs_of(model: Any, reference: Any, units: list[Unit]) -> PairLogprobs:
    rows = [row for unit in units for row in unit.rows]
    ours = packed_logprobs(model, rows)
    with torch.no_grad():
        theirs = packed_logprobs(reference, rows)
    lengths = torch.tensor([row.supervised_tokens for row in rows]).float()
    return PairLogprobs(ours[::2], ours[1::2], theirs[::2], theirs[1::2], lengths[::2], lengths[1::2])


def gradients(model: Any) -> dict[str, Any]:
    found = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad()
    return found


def assert_same_gradients(model: Any, ours: Any, theirs: Any) -> None:
    ours.backward(), (mine := gradients(model)), theirs.backward()
    other = gradients(model)
    assert mine.keys() == other.keys()
    assert len(mine) > 10
    for name in mine:
        scale = other[name].abs().max().item()
        assert scale > 0, name
        assert (mine[name] - other[name]).abs().max().item() <= 1e-4 * max(scale, 1), name


def trl_dpo(model: Any, reference: Any, tokenizer: Any, units: list[Unit], out: Path, **options: Any) -> Any:
    """TRL's trainer over our very tokens, and its rows."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class Trainer(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    rows = []
    for chosen, rejected in (unit.rows for unit in units):
        border = chosen.learnt[0][0]
        ids = {"prompt": chosen.token_ids[:border], "chosen": chosen.token_ids[border:]}
        rows.append({f"{name}_ids": each for name, each in (ids | {"rejected": rejected.token_ids[border:]}).items()})
    args = DPOConfig(
        output_dir=str(out), use_cpu=True, bf16=False, report_to="none", beta=BETA, gradient_checkpointing=False,
        max_length=None, **options,
    )  # fmt: skip
    data = Dataset.from_list(rows)
    return Trainer(model=model, ref_model=reference, args=args, train_dataset=data, processing_class=tokenizer), rows


@pytest.mark.parametrize(
    ("ours", "theirs", "a_call"),
    [
        ({}, {}, 6),
        ({"loss": "ipo"}, {"loss_type": ["ipo"]}, 6),
        # TRL's `sigmoid` leaves smoothing out; its `aot` sorts a batch first, and is cDPO where that is one pair
        ({"label_smoothing": 0.2}, {"label_smoothing": 0.2, "loss_type": ["aot"]}, 1),
        # its `sft` is the mean of a batch's tokens, ours (as in the paper) of an answer's: equal for one pair
        ({"sft_weight": 0.5}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}, 1),
    ],
    ids=["sigmoid", "ipo", "smoothed", "sft"],
)
def test_dpo_has_the_loss_rewards_and_gradients_of_trls(
    ours: Any, theirs: Any, a_call: int, reference: Any, moved: Any, tokenizer: Any, tmp_path: Path
) -> None:
    units = pair_units(tokenizer, [pair(at) for at in range(6)], 128).units
    assert len(units) == 6
    trainer, rows = trl_dpo(moved, reference, tokenizer, units, tmp_path, **theirs)
    moved.eval()
    calls = [trainer.data_collator(rows[at : at + a_call]) for at in range(0, 6, a_call)]
    expected = sum(trainer.compute_loss(moved, call) for call in calls) / len(calls)
    pairs = pairs_of(moved, reference, units)
    weight = ours.pop("sft_weight", 0.0)
    losses = preferences.preference_losses(pairs, BETA, **ours) + weight * preferences.likelihood_losses(pairs)
    assert losses.mean().item() == pytest.approx(expected.item(), rel=1e-4)
    shown = {name: sum(values) / len(values) for name, values in trainer._metrics["eval"].items()}
    figures = {name: each.mean().item() for name, each in preferences.pair_figures(pairs, BETA).items()}
    assert 0 < figures["reward_accuracy"] < 1
    names = {
        "reward_accuracy": "rewards/accuracies", "reward_margin": "rewards/margins", "reward_chosen": "rewards/chosen",
        "reward_rejected": "rewards/rejected", "logp_chosen": "logps/chosen", "logp_rejected": "logps/rejected",
    }  # fmt: skip
    for mine, their in names.items():
        assert figures[mine] == pytest.approx(shown[their], abs=1e-4, rel=1e-4), mine
    assert_same_gradients(moved, losses.mean(), expected)


def test_kto_has_the_loss_and_gradients_of_trls(reference: Any, moved: Any, tokenizer: Any, tmp_path: Path) -> None:
    from datasets import Dataset

    trl = pytest.importorskip("trl", reason="TRL is not installed")
    if not hasattr(trl, "KTOTrainer"):
        pytest.skip("this TRL has no KTOTrainer")

    class Trainer(trl.KTOTrainer):  # type: ignore[misc, name-defined]
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    found = opinion_units(tokenizer, [opinion(at) for at in range(8)], 128, seed=0)
    assert len(found.units) == 8
    rows = []
    for answer, stranger in (unit.rows for unit in found.units):
        border = answer.learnt[0][0]
        rows.append({
            "prompt_ids": answer.token_ids[:border], "completion_ids": answer.token_ids[border:],
            "KL_completion_ids": stranger.token_ids[border:], "label": found.desirable[answer.id],
        })  # fmt: skip
    args = trl.KTOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", beta=BETA, gradient_checkpointing=False,
        max_length=None, desirable_weight=1.5, undesirable_weight=0.7, per_device_train_batch_size=8,
    )  # fmt: skip
    trainer = Trainer(
        model=moved, ref_model=reference, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    expected = trainer.compute_loss(moved.eval(), trainer.data_collator(rows))

    pairs = pairs_of(moved, reference, found.units)  # answers stand where chosen ones do, strangers where rejected ones
    desirable = torch.tensor([found.desirable[unit.id] for unit in found.units])
    point = kto.reference_point(pairs.rejected, pairs.reference_rejected)
    answers = kto.AnswerLogprobs(pairs.chosen, pairs.reference_chosen, desirable)
    losses = kto.answer_losses(answers, point, BETA, (1.5, 0.7))
    assert losses.mean().item() == pytest.approx(expected.item(), rel=1e-4)
    assert point.item() == pytest.approx(trainer._metrics["eval"]["kl"][0], rel=1e-4, abs=1e-5)
    assert_same_gradients(moved, losses.mean(), expected)


def test_reference_point_is_never_negative_and_carries_no_gradient() -> None:
    strangers = torch.tensor([-3.0, -5.0], requires_grad=True)
    low = kto.reference_point(strangers, torch.tensor([-2.0, -2.0]))
    high = kto.reference_point(strangers, torch.tensor([-6.0, -6.0]))
    assert (low.item(), high.item()) == (0.0, 2.0)
    assert not low.requires_grad
    assert not high.requires_grad


def at_start(count: int = 4) -> PairLogprobs:
    torch.manual_seed(0)
    chosen, rejected = (-20 * torch.rand(count) for _ in range(2))
    held = (chosen.clone(), rejected.clone())
    return PairLogprobs(
        chosen.requires_grad_(), rejected.requires_grad_(), *held, torch.full((count,), 3.0), torch.full((count,), 7.0)
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize(("loss", "start"), [("sigmoid", math.log(2)), ("ipo", 1 / (2 * BETA) ** 2)])
def test_dpo_begins_at_its_known_loss_and_moves_both_answers_the_right_way(
    loss: Any, start: float, smoothing: float
) -> None:
    pairs = at_start()
    losses = preferences.preference_losses(pairs, BETA, loss=loss, label_smoothing=smoothing)
    assert losses.tolist() == pytest.approx([start] * 4, rel=1e-5)
    assert preferences.pair_figures(pairs, BETA)["reward_accuracy"].tolist() == [0.5] * 4
    losses.sum().backward()
    assert (pairs.chosen.grad < 0).all()  # a step goes against the gradient
    assert (pairs.rejected.grad > 0).all()


def test_kto_begins_at_half_its_weights_and_moves_answers_the_right_way() -> None:
    logprobs = torch.tensor([-4.0, -9.0, -2.0], requires_grad=True)
    desirable = torch.tensor([True, False, True])
    answers = kto.AnswerLogprobs(logprobs, logprobs.detach().clone(), desirable)
    losses = kto.answer_losses(answers, torch.tensor(0.0), BETA, (1.0, 2.0))
    assert losses.tolist() == pytest.approx([0.5, 1.0, 0.5])
    losses.sum().backward()
    assert ((logprobs.grad < 0) == desirable).all()
    assert (logprobs.grad != 0).all()


@pytest.mark.parametrize(("desirable", "undesirable"), [(30, 10), (10, 30), (7, 7)])
def test_balanced_weights_give_both_kinds_the_same_sum(desirable: int, undesirable: int) -> None:
    wanted, unwanted = kto.balanced_weights(desirable, undesirable)
    assert wanted * desirable == pytest.approx(unwanted * undesirable)
    assert min(wanted, unwanted) == 1


def test_row_logprobs_are_those_of_each_row_alone(reference: Any, tokenizer: Any) -> None:
    rows = [row for at in range(5) for unit in pair_units(tokenizer, [pair(at)], 128).units for row in unit.rows]
    with torch.no_grad():
        together = packed_logprobs(reference, rows)
        for row, value in zip(rows, together.tolist(), strict=True):
            logprobs = reference(input_ids=torch.tensor([row.token_ids])).logits[0].log_softmax(-1)
            ((first, last),) = row.learnt
            alone = sum(logprobs[at - 1, row.token_ids[at]].item() for at in range(first, last))
            assert value == pytest.approx(alone, rel=1e-4)


def test_a_pair_is_one_prompt_with_each_answer_as_supervised_rows_have_it(tokenizer: Any) -> None:
    one = pair(3)
    (unit,) = pair_units(tokenizer, [one], 128).units
    for row, text in zip(unit.rows, (one.chosen, one.rejected), strict=True):
        prompt, answer = chat.prompt_and_completion(tokenizer, one.messages, (), text)
        assert row.token_ids == prompt + answer
        assert row.learnt == ((len(prompt), len(prompt) + len(answer)),)


def test_pairs_that_teach_nothing_or_both_ways_are_left_out_and_counted(tokenizer: Any) -> None:
    asked = [{"role": "user", "content": "Same words"}]
    given = [
        pair(0),
        pair(1, rejected="It is 1."),
        pair(2, rejected="no " * 200),
        pair(3, messages=asked, chosen="a", rejected="b"),
        pair(4, messages=asked, chosen="b", rejected="a"),
        pair(5, messages=asked, chosen="a", rejected="c"),
    ]
    found = pair_units(tokenizer, given, 128)
    assert [unit.id for unit in found.units] == ["p0", "p5"]
    assert found.left_out == {judged_rows.IDENTICAL: 1, judged_rows.TOO_LONG: 1, judged_rows.CONTRADICTED: 2}


def test_a_stranger_was_given_to_another_prompt(tokenizer: Any) -> None:
    given = [opinion(at, messages=opinion(at // 2).messages) for at in range(10)]
    found = opinion_units(tokenizer, given, 128, seed=3)
    border = {unit.id: unit.rows[0].learnt[0][0] for unit in found.units}
    by_answer = {tuple(unit.rows[0].token_ids[border[unit.id] :]): set[tuple[int, ...]]() for unit in found.units}
    for unit in found.units:
        row = unit.rows[0].token_ids
        by_answer[tuple(row[border[unit.id] :])].add(tuple(row[: border[unit.id]]))
    assert len(found.units) == 10
    for unit in found.units:
        answer, stranger = unit.rows
        prompt = tuple(answer.token_ids[: border[unit.id]])
        assert tuple(stranger.token_ids[: border[unit.id]]) == prompt
        assert by_answer[tuple(stranger.token_ids[border[unit.id] :])] - {prompt}


def test_opinions_that_contradict_or_have_no_stranger_are_left_out(tokenizer: Any) -> None:
    both = [opinion(0, id="up", desirable=True), opinion(0, id="down", desirable=False)]
    found = opinion_units(tokenizer, [*both, opinion(1)], 128, seed=0)
    assert found.units == []
    assert found.left_out == {judged_rows.CONTRADICTED: 2, judged_rows.NO_STRANGER: 1}


def test_reference_is_computed_once_and_only_from_where_training_began(tokenizer: Any, tmp_path: Path) -> None:
    rows = [row for unit in pair_units(tokenizer, [pair(at) for at in range(3)], 128).units for row in unit.rows]
    values = [-0.1 * at - 1 / 3 for at in range(6)]
    asked: list[int] = []

    def compute(given: Any) -> list[float]:
        asked.append(len(given))
        return values

    def never(_: Any) -> list[float]:
        raise AssertionError("asked twice")

    path = tmp_path / "then" / "reference.json"
    with pytest.raises(DamagedInput, match="missing, though training has begun"):
        reference_logprobs(path, rows, "start", never, begun=True)
    first = reference_logprobs(path, rows, "start", compute, begun=False)
    assert first == {row.id: value for row, value in zip(rows, values, strict=True)}
    assert reference_logprobs(path, rows, "start", never, begun=True) == first
    with pytest.raises(DamagedInput, match="made for other rows or another start"):
        reference_logprobs(path, rows, "another start", never, begun=True)
    assert reference_logprobs(path, rows[:2], "start", lambda _: values[:2], begun=False) == dict(
        list(first.items())[:2]
    )
    assert asked == [6]

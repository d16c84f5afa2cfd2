"""DPO and KTO: the numbers of TRL's trainers, the right signs, packed as unpacked, and what is left out."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill import chat, models
from potstill.errors import DamagedInput
from potstill.preferences import Opinion, Preference
from tests.stages.tiny_llama import QUESTIONS, tiny_base
from training.batch import Batch, token_scores
from training.objectives import judged_rows, kto, preferences
from training.objectives.judged_rows import opinion_units, pair_units
from training.objectives.kto import WantedAnswers
from training.objectives.preferences import PairLogprobs, PreferredAnswers
from training.objectives.reference import FILE, reference_logprobs
from training.packing import Unit, micro_batches
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
    """Of all rows behind each other in one padding-free sequence."""
    batch = Batch.of([Unit(row.id, (row,)) for row in rows])
    return batch.row_sums(token_scores(model, batch)[0])


def step(model: Any, objective: Any, units: list[Unit], micro_tokens: int = 100_000) -> tuple[float, dict[str, float]]:
    """A step's loss, with its gradient left in the model, and its figures."""
    objective.begin(model, units)
    total, sums = 0.0, dict[str, Any]()
    for micro in micro_batches(units, micro_tokens):
        batch = Batch.of(micro)
        scores, _ = token_scores(model, batch, objective.scores)
        loss = objective.loss(scores, batch) / objective.normaliser(units)
        loss.backward()
        total += loss.item()
        for name, (above, below) in objective.figures(scores.detach(), batch).items():
            old = sums.get(name, (0.0, 0.0))
            sums[name] = (old[0] + above, old[1] + below)
    return total, {name: above / below for name, (above, below) in sums.items()}


def gradients(model: Any) -> dict[str, Any]:
    found = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad()
    return found


def assert_same_gradients(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    assert len(ours) > 10
    for name in ours:
        scale = theirs[name].abs().max().item()
        assert scale > 0, name
        assert (ours[name] - theirs[name]).abs().max().item() <= 1e-4 * max(scale, 1), name


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
    objective = PreferredAnswers(beta=BETA, **ours)
    objective.prepare(reference, units, tmp_path)
    moved.eval()
    loss, figures = step(moved, objective, units)
    mine = gradients(moved)

    trainer, rows = trl_dpo(moved, reference, tokenizer, units, tmp_path, **theirs)
    moved.eval()
    calls = [trainer.data_collator(rows[at : at + a_call]) for at in range(0, 6, a_call)]
    expected = sum(trainer.compute_loss(moved, call) for call in calls) / len(calls)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    assert_same_gradients(mine, gradients(moved))
    shown = {name: sum(values) / len(values) for name, values in trainer._metrics["eval"].items()}
    assert 0 < figures["reward_accuracy"] < 1
    names = {
        "reward_accuracy": "rewards/accuracies", "reward_margin": "rewards/margins", "reward_chosen": "rewards/chosen",
        "reward_rejected": "rewards/rejected", "logp_chosen": "logps/chosen", "logp_rejected": "logps/rejected",
    }  # fmt: skip
    for name, their in names.items():
        assert figures[name] == pytest.approx(shown[their], abs=1e-4, rel=1e-4), name


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
    for (answer,) in (unit.rows for unit in found.units):
        border, stranger = answer.learnt[0][0], found.strangers[answer.id]
        rows.append({
            "prompt_ids": answer.token_ids[:border], "completion_ids": answer.token_ids[border:],
            "KL_completion_ids": stranger.token_ids[border:], "label": found.desirable[answer.id],
        })  # fmt: skip
    args = trl.KTOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", beta=BETA, gradient_checkpointing=False,
        max_length=None, desirable_weight=1.5, undesirable_weight=0.7, per_device_train_batch_size=8,
    )  # fmt: skip
    objective = WantedAnswers(found.desirable, found.strangers, beta=BETA, weights=(1.5, 0.7))
    objective.prepare(reference, found.units, tmp_path)
    moved.eval()
    loss, figures = step(moved, objective, found.units)
    mine = gradients(moved)

    data = Dataset.from_list(rows)
    trainer = Trainer(model=moved, ref_model=reference, args=args, train_dataset=data, processing_class=tokenizer)
    expected = trainer.compute_loss(moved.eval(), trainer.data_collator(rows))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    assert_same_gradients(mine, gradients(moved))
    names = {
        "reference_point": "kl", "reward_desirable": "rewards/chosen", "reward_undesirable": "rewards/rejected",
        "logp_desirable": "logps/chosen", "logp_undesirable": "logps/rejected",
    }  # fmt: skip
    for name, their in names.items():
        assert figures[name] == pytest.approx(trainer._metrics["eval"][their][0], abs=1e-4, rel=1e-4), name


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_a_step_is_the_same_packed_and_in_pieces(
    name: str, reference: Any, moved: Any, tokenizer: Any, tmp_path: Path
) -> None:
    if name == "dpo":
        units = pair_units(tokenizer, [pair(at) for at in range(6)], 128).units
        objective: Any = PreferredAnswers(beta=BETA, sft_weight=0.1)
    else:
        found = opinion_units(tokenizer, [opinion(at) for at in range(6)], 128, seed=0)
        units, objective = found.units, WantedAnswers(found.desirable, found.strangers, beta=BETA)
    objective.prepare(reference, units, tmp_path)
    packed, figures = step(moved, objective, units)
    whole = gradients(moved)
    alone, others = step(moved, objective, units, micro_tokens=1)
    assert alone == pytest.approx(packed, rel=1e-5)
    assert others == pytest.approx(figures, rel=1e-4, abs=1e-5)
    assert_same_gradients(gradients(moved), whole)


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
        prompt = tuple(unit.rows[0].token_ids[: border[unit.id]])
        stranger = tuple(found.strangers[unit.id].token_ids)
        assert stranger[: border[unit.id]] == prompt
        assert by_answer[stranger[border[unit.id] :]] - {prompt}


def test_opinions_that_contradict_or_have_no_stranger_are_left_out(tokenizer: Any) -> None:
    both = [opinion(0, id="up", desirable=True), opinion(0, id="down", desirable=False)]
    found = opinion_units(tokenizer, [*both, opinion(1)], 128, seed=0)
    assert found.units == []
    assert found.left_out == {judged_rows.CONTRADICTED: 2, judged_rows.NO_STRANGER: 1}


def test_reference_is_computed_once_and_again_for_other_rows_or_another_start(
    reference: Any, moved: Any, tokenizer: Any, tmp_path: Path
) -> None:
    reference.requires_grad_(True)
    rows = [row for unit in pair_units(tokenizer, [pair(at) for at in range(3)], 128).units for row in unit.rows]
    first = reference_logprobs(reference, rows, tmp_path)
    kept = (tmp_path / FILE).read_text()
    edited = json.loads(kept) | {"logprobs": [-1.0] * 6}
    (tmp_path / FILE).write_text(json.dumps(edited))
    assert set(reference_logprobs(reference, rows, tmp_path).values()) == {-1.0}  # read, not computed
    assert reference_logprobs(reference, rows[:2], tmp_path) == pytest.approx(dict(list(first.items())[:2]), rel=1e-5)
    assert reference_logprobs(moved, rows, tmp_path) != pytest.approx(first, rel=1e-3)
    (tmp_path / FILE).write_text(kept[:100])
    assert reference_logprobs(reference, rows, tmp_path) == first
    with pytest.raises(DamagedInput, match="same id"):
        reference_logprobs(reference, [*rows, rows[0]], tmp_path)

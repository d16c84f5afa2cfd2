"""Soft targets: drawn ones give the whole distribution's gradient on average, tokens are aligned by their bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from potstill import chat
from potstill.logprobs import AnswerLogprobs, TokenLogprobs
from tests.stages.tiny_llama import save_tokenizer
from training.alignment import Vocabulary, aligned, as_targets, same_vocabulary
from training.batch import Batch
from training.packing import Unit
from training.rows import Row
from training.soft_targets import NO_TOKEN, SoftTargets, draw, nothing, soft_cross_entropy, stack
from training.target_store import TargetStore

VOCABULARY = 40


def distributions(rows: int = 3, seed: int = 0, sharpness: float = 2.0) -> tuple[Tensor, Tensor]:
    """A teacher's log-probabilities and a student's logits."""
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.log_softmax(sharpness * torch.randn(rows, VOCABULARY, generator=generator), 1)
    return teacher, torch.randn(rows, VOCABULARY, generator=generator)


def gradient(logits: Tensor, targets: SoftTargets, temperature: float = 1.0) -> Tensor:
    leaf = logits.clone().requires_grad_()
    soft_cross_entropy(leaf, targets, temperature).sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return leaf.grad


def whole_gradient(logits: Tensor, teacher: Tensor) -> Tensor:
    return torch.softmax(logits, 1) - teacher.exp()


@pytest.mark.parametrize(("head", "draws", "proposal"), [(0, 8, 1.0), (4, 8, 1.0), (0, 8, 1.5), (3, 4, 0.8)])
def test_the_gradient_of_drawn_targets_is_that_of_the_whole_distribution_on_average(
    head: int, draws: int, proposal: float
) -> None:
    teacher, logits = distributions(sharpness=0.7)  # every token is drawn often enough for its mean to be normal
    generator = torch.Generator().manual_seed(1)
    times = 4000
    many = draw(teacher.repeat(times, 1), head=head, draws=draws, generator=generator, proposal=proposal)
    found = gradient(logits.repeat(times, 1), many).reshape(times, *logits.shape)
    error = (found.mean(0) - whole_gradient(logits, teacher)) / (found.std(0) / times**0.5).clamp_min(1e-9)
    exact = (found.mean(0) - whole_gradient(logits, teacher)).abs() < 1e-5
    z = torch.where(exact, 0.0, error.abs())
    assert float(z.max()) < 4.5  # 120 figures: a fair estimate passes 4.5 standard errors once in a thousand such tests


def test_the_gradient_of_a_truncated_distribution_is_not() -> None:
    teacher, logits = distributions()
    truncated = draw(teacher, head=4, draws=0, generator=torch.Generator())
    renormalised = SoftTargets(
        truncated.ids, truncated.weights / truncated.weights.sum(1, keepdim=True), torch.zeros(len(teacher))
    )
    for each in (truncated, renormalised):
        assert float((gradient(logits, each) - whole_gradient(logits, teacher)).abs().max()) > 0.01


def test_an_exact_head_takes_variance_away() -> None:
    teacher, logits = distributions(1)
    spread = []
    for head in (0, 8):
        many = draw(teacher.repeat(500, 1), head=head, draws=8, generator=torch.Generator().manual_seed(2))
        spread.append(float(gradient(logits.repeat(500, 1), many).var(0).sum()))
    assert spread[1] < 0.5 * spread[0]


def test_a_head_of_the_whole_vocabulary_is_exact() -> None:
    teacher, logits = distributions()
    errors = []
    for head in (4, 20, VOCABULARY):
        found = gradient(logits, draw(teacher, head=head, draws=0, generator=torch.Generator()))
        errors.append(float((found - whole_gradient(logits, teacher)).abs().max()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-5


def test_the_rest_teaches_how_much_lies_outside_and_not_where() -> None:
    teacher, logits = distributions(1)
    targets = draw(teacher, head=4, draws=0, generator=torch.Generator())
    found = gradient(logits, targets)[0]
    named = set(targets.ids[0].tolist())
    outside = torch.tensor([at not in named for at in range(VOCABULARY)])
    ratio = found[outside] / torch.softmax(logits[0], 0)[outside]
    assert float(ratio.std()) < 1e-5
    assert float(found.sum().abs()) < 1e-5


def test_at_a_temperature_the_gradient_keeps_its_size() -> None:
    teacher, logits = distributions(1)
    soft = torch.log_softmax(teacher / 4, 1)
    found = gradient(logits, draw(soft, head=VOCABULARY, draws=0, generator=torch.Generator()), 4.0)
    wanted = 4 * (torch.softmax(logits / 4, 1) - soft.exp())
    assert torch.allclose(found, wanted, atol=1e-5)


def test_positions_without_a_target_cost_nothing_and_pull_nowhere() -> None:
    _, logits = distributions()
    assert not nothing(3).usable.any()
    assert float(gradient(logits, nothing(3)).abs().max()) == 0


def test_a_certain_teacher_gives_finite_gradients() -> None:
    logits = torch.tensor([[100.0, 0.0, 0.0]])
    found = gradient(logits, SoftTargets(torch.tensor([[0]]), torch.tensor([[0.9]]), torch.tensor([0.1])))
    assert torch.isfinite(found).all()


# Storage


def test_a_store_gives_a_batch_what_was_put_in_wherever_its_rows_stand(tmp_path: Path) -> None:
    teacher, _ = distributions(9)
    rows = [Row(f"r{at}", list(range(at + 3)), ((1, at + 3),)) for at in range(3)]  # 2, 3 and 4 learnt tokens
    targets = draw(teacher, head=2, draws=5, generator=torch.Generator().manual_seed(0))
    store = TargetStore.of(rows, targets, VOCABULARY)
    store.write(tmp_path, "k")
    read = TargetStore.read(tmp_path, "k")
    assert read is not None
    unknown = Row("other", [1, 2, 3], ((1, 3),))
    batch = Batch.of([Unit(row.id, (row,)) for row in (rows[2], unknown, rows[0])])
    found, wanted = read.of_batch(batch), stack([targets.take(slice(5, 9)), nothing(2), targets.take(slice(0, 2))])
    assert found.usable.tolist() == wanted.usable.tolist()
    for at in range(8):
        assert as_dict(found, at) == pytest.approx(as_dict(wanted, at), rel=1e-3)
    assert torch.allclose(found.rest, wanted.rest, atol=1e-3)


def as_dict(targets: SoftTargets, at: int) -> dict[int, float]:
    pairs = zip(targets.ids[at].tolist(), targets.weights[at].tolist(), strict=True)
    return {token: weight for token, weight in pairs if token != NO_TOKEN}


def test_a_damaged_store_is_refused(tmp_path: Path) -> None:
    store = TargetStore.of([Row("r", [1, 2], ((1, 2),))], nothing(1), VOCABULARY)
    store.write(tmp_path, "k")
    file = tmp_path / "targets-k" / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert TargetStore.read(tmp_path, "k") is None
    assert TargetStore.read(tmp_path, "other") is None


def test_two_hundred_draws_of_a_large_vocabulary_take_little_room() -> None:
    teacher = torch.log_softmax(torch.randn(50, 60_000), 1)
    targets = draw(teacher, head=8, draws=16, generator=torch.Generator().manual_seed(0))
    store = TargetStore.of([Row("r", list(range(51)), ((1, 51),))], targets, 60_000)
    assert store.size_bytes <= 50 * (24 * 4 + 4)


# Alignment


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return chat.load_tokenizer(folder)


def logged(tokens: list[str], *, start: int = 0, **top: float) -> AnswerLogprobs:
    best = tuple((name.encode(), value) for name, value in top.items())
    return AnswerLogprobs("x", start, tuple(TokenLogprobs(each.encode(), -0.5, best) for each in tokens))


def test_the_bytes_of_tokens_join_to_the_text(tokenizer: Any) -> None:
    vocabulary = Vocabulary.of(tokenizer)
    text = "Which planet é is 😀 red?"
    ids = chat.encode(tokenizer, text)
    assert b"".join(vocabulary.bytes_of[each] or b"" for each in ids) == text.encode()
    assert vocabulary.bytes_of[tokenizer.convert_tokens_to_ids("<|im_end|>")] is None


def test_the_same_tokens_are_aligned_one_by_one(tokenizer: Any) -> None:
    vocabulary = Vocabulary.of(tokenizer)
    ids = chat.encode(tokenizer, "Which planet<|im_end|>")
    texts = [(vocabulary.bytes_of[each] or b"").decode() for each in ids[:-1]]
    found = aligned(ids, logged(texts, a=-2.0), vocabulary)
    assert len(texts) > 1
    for token, each in zip(ids[:-1], found[:-1], strict=True):
        assert each is not None
        assert each[token] == pytest.approx(0.6065, abs=1e-3)
        assert each[vocabulary.id_of[b"a"]] == pytest.approx(0.1353, abs=1e-3)
    assert found[-1] is None


def test_a_position_is_used_only_where_both_begin_and_the_tokens_text_is_a_candidate(tokenizer: Any) -> None:
    vocabulary = Vocabulary.of(tokenizer)
    ids = [vocabulary.id_of[each] for each in (b"a", b"b", b"c", b"d")]
    found = aligned(ids, logged(["ab", "c", "d"]), vocabulary)
    assert [each is not None for each in found] == [False, False, True, True]
    offered = aligned(ids, logged(["ab", "cd"], a=-1.0, c=-1.0), vocabulary)
    assert [each is not None for each in offered] == [True, False, True, False]


def test_reasoning_before_the_answer_is_passed_over(tokenizer: Any) -> None:
    vocabulary = Vocabulary.of(tokenizer)
    ids = [vocabulary.id_of[b"c"], vocabulary.id_of[b"d"]]
    found = aligned(ids, logged(["ab", "c", "d"], start=2), vocabulary)
    assert all(found)
    assert aligned(ids, logged(["ab", "c", "x"], start=2), vocabulary) == [None, None]


def test_what_the_candidates_leave_over_is_the_rest() -> None:
    targets = as_targets([{3: 0.5, 4: 0.25}, None])
    assert targets.rest.tolist() == [0.25, 0.0]
    assert targets.usable.tolist() == [True, False]


def test_tokenizers_with_other_tokens_do_not_share_a_vocabulary(tokenizer: Any, tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    other = chat.load_tokenizer(tmp_path)
    assert same_vocabulary(tokenizer, other)
    other.add_tokens(["<extra>"])
    assert not same_vocabulary(tokenizer, other)

"""Learning from a teacher beyond its answers' text: logits, on-policy, rationales. Tiny models, real training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from potstill import chat, models
from potstill.errors import NothingLearned, ParityMismatch, RecipeError
from potstill.logprobs import LOGPROBS, AnswerLogprobs, TokenLogprobs, as_table
from potstill.manifest import write_manifest
from potstill.records import Example
from tests.stages.datasets import finish, write_rows
from tests.stages.test_training import example, losses, settings_with, trained
from tests.stages.tiny_llama import tiny_base
from training import run
from training.batch import Batch, token_scores
from training.distil import Distil
from training.objectives.logits import Logits
from training.objectives.on_policy import OnPolicy, Writing, divergence, write_answers
from training.objectives.targets import Asked
from training.packing import Unit
from training.rows import tokenise
from training.teacher import resolve_teacher

TRAIN, HELD = [example(at) for at in range(60)], [example(at) for at in range(300, 312)]


def write_dataset(folder: Path, train: Sequence[Example], logged: Sequence[AnswerLogprobs] = ()) -> Path:
    import pyarrow.parquet as pq

    write_rows(folder, train, HELD)
    if logged:
        pq.write_table(as_table(logged, "train"), folder / LOGPROBS)
    return finish(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> models.Base:
    return tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset", TRAIN)


@pytest.fixture(scope="module")
def teacher(base: models.Base, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter folder, trained on the very rows."""
    out = tmp_path_factory.mktemp("teacher") / "adapter"
    facts = trained(base, dataset, out, epochs=8)
    write_manifest(out, "adapter", settings_passed={}, settings_used={}, inputs=[], facts=facts)
    return out


def tokenizer_of(base: models.Base) -> Any:
    return run.load_student_tokenizer(settings_with(), base.path, TRAIN)


def units(base: models.Base, examples: Sequence[Example]) -> list[Unit]:
    return [Unit(row.id, (row,)) for row in tokenise(tokenizer_of(base), examples, 128).rows]


def prepared(base: models.Base, teacher: Path, work: Path, examples: Sequence[Example], **settings: Any) -> Logits:
    rows = units(base, examples)
    source = Asked(
        resolve_teacher(str(teacher), work), Distil(**settings), tokenizer_of(base), examples, micro_tokens=512, seed=0
    )
    made = Logits(rows, source, share=settings.get("share", 1.0), temperature=settings.get("temperature", 1.0))
    made.prepare(models.load_float(base.path), rows, work / "kept")
    return made


# Offline, from a teacher that is asked


def test_the_whole_head_is_the_divergence_from_the_teacher_but_for_its_entropy(
    base: models.Base, teacher: Path, tmp_path: Path
) -> None:
    rows = units(base, TRAIN[:4])
    objective = prepared(base, teacher, tmp_path, TRAIN[:4], head=512, draws=0)
    student = models.load_float(base.path)
    asked = resolve_teacher(str(teacher), tmp_path).load()
    batch = Batch.of(rows)
    scores, _ = token_scores(student, batch, objective.scores)
    kept: list[torch.Tensor] = []

    def keep(logits: torch.Tensor, _: Batch, __: slice) -> torch.Tensor:
        kept.append(torch.log_softmax(logits, 1))
        return logits.new_zeros(len(logits))

    with torch.no_grad():
        token_scores(student, batch, keep)
        token_scores(asked, batch, keep)
    own, other = kept
    assert torch.allclose(-scores, -(other.exp() * own).sum(1), rtol=2e-3)


def test_a_stopped_run_takes_the_teachers_targets_up_and_others_are_not_mistaken_for_them(
    base: models.Base, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepared(base, teacher, tmp_path, TRAIN[:6])
    asked: list[int] = []
    monkeypatch.setattr("training.objectives.targets.drawn_targets", lambda *_, **__: asked.append(1))
    again = prepared(base, teacher, tmp_path, TRAIN[:6])
    batch = Batch.of(units(base, TRAIN[:6]))
    assert not asked
    assert torch.equal(first._targets(batch).weights, again._targets(batch).weights)
    with pytest.raises(AttributeError):  # the double gives no targets: it was asked
        prepared(base, teacher, tmp_path, TRAIN[:6], draws=17)
    assert asked


def test_what_a_person_corrected_keeps_its_hard_labels(base: models.Base, teacher: Path, tmp_path: Path) -> None:
    examples = [TRAIN[0], replace(TRAIN[1], corrected=True)]
    objective = prepared(base, teacher, tmp_path, examples)
    rows = units(base, examples)
    batch = Batch.of(rows)
    usable = objective._targets(batch).usable
    assert usable[batch.row_of == 0].all()
    assert not usable[batch.row_of == 1].any()


@pytest.mark.parametrize(
    ("corrected", "least", "told"),
    [(4, 0.0, "nothing to ask .* all of 4 answers"), (3, 0.9, r"soft targets for \d+% .*: 3 answers were corrected")],
)
def test_answers_that_no_teacher_is_asked_about_are_counted_and_refused_before_it_is_loaded(
    corrected: int,
    least: float,
    told: str,
    base: models.Base,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    examples = [replace(each, corrected=at < corrected) for at, each in enumerate(TRAIN[:4])]
    monkeypatch.setattr("training.teacher.Teacher.load", lambda *_: pytest.fail("the teacher was loaded"))
    with pytest.raises(NothingLearned, match=told):
        prepared(base, teacher, tmp_path, examples, least_usable=least)


def test_training_on_a_teachers_logits_brings_the_student_nearer_to_it(
    base: models.Base, teacher: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "student"
    facts = trained(base, dataset, out, objective="logits", distil={"teacher": str(teacher), "share": 0.8})
    assert facts["training"]["objective"]["name"] == "logits"
    assert facts["training"]["objective"]["usable_share"] == 1
    rows = units(base, HELD)
    before = divergence_from(resolve_teacher(str(teacher), tmp_path).load(), models.load_float(base.path), rows)
    after = divergence_from(resolve_teacher(str(teacher), tmp_path).load(), student_of(base, out), rows)
    assert after < 0.5 * before


def student_of(base: models.Base, out: Path) -> Any:
    import peft

    return peft.PeftModel.from_pretrained(models.load_float(base.path), str(out / "adapter"))


def divergence_from(teacher: Any, student: Any, rows: Sequence[Unit]) -> float:
    """Mean Kullback-Leibler divergence of the teacher from the student over the answers' tokens, in nats."""
    kept: list[torch.Tensor] = []

    def keep(logits: torch.Tensor, _: Batch, __: slice) -> torch.Tensor:
        kept.append(torch.log_softmax(logits, 1))
        return logits.new_zeros(len(logits))

    with torch.no_grad():
        for model in (teacher.eval(), student.eval()):
            token_scores(model, Batch.of(rows), keep)
    return float(divergence(kept[1], kept[0], 0).mean())


def test_a_full_prompt_before_the_same_answer_gives_as_many_targets(
    base: models.Base, dataset: Path, tmp_path: Path
) -> None:
    asked = [{"role": "system", "content": "Say bad, good or plain."}]
    examples = [replace(each, full_messages=[*asked, *each.messages]) for each in TRAIN[:5]]
    rows = units(base, examples)
    source = Asked(
        resolve_teacher(str(base.path), tmp_path), Distil(), tokenizer_of(base), examples, micro_tokens=512, seed=0
    )
    store, _ = source.targets([unit.rows[0] for unit in rows], 512, tmp_path)
    assert store.of_batch(Batch.of(rows)).usable.all()


# Offline, from what a log recorded


def recorded(base: models.Base, examples: Sequence[Example], pieces: int = 1) -> list[AnswerLogprobs]:
    """Log-probabilities in the student's own tokens, or in others: the answer in pieces of so many of them."""
    tokenizer = tokenizer_of(base)
    made = []
    for each in examples:
        texts = [tokenizer.decode([token]) for token in chat.encode(tokenizer, each.answer)]
        tokens = ["".join(texts[at : at + pieces]) for at in range(0, len(texts), pieces)]
        top = ((b"z", math.log(0.1)),)
        made.append(
            AnswerLogprobs(each.id, 0, tuple(TokenLogprobs(token.encode(), math.log(0.8), top) for token in tokens))
        )
    return made


def test_recorded_logprobs_are_learnt_from_and_their_share_is_told(base: models.Base, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "dataset", TRAIN, recorded(base, TRAIN))
    facts = trained(base, data, tmp_path / "out", objective="logits", epochs=2)
    told = facts["training"]["objective"]
    assert told["usable_share"] == pytest.approx(len(TRAIN) / (len(TRAIN) + len(HELD)), abs=0.05)
    assert losses(tmp_path / "out")[-1] < losses(tmp_path / "out")[0]


def test_a_log_whose_tokens_fit_nowhere_is_refused_with_the_share(base: models.Base, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "dataset", TRAIN, recorded(base, TRAIN, pieces=9))
    with pytest.raises(NothingLearned, match=r"soft targets for \d+% .* fewer than least_usable"):
        trained(base, data, tmp_path / "out", objective="logits", distil={"least_usable": 0.6})


def test_without_probabilities_there_is_nothing_to_distil(base: models.Base, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs a teacher's probabilities"):
        trained(base, dataset, tmp_path / "out", objective="logits")


@pytest.mark.parametrize("changes", [{"objective": "on_policy"}, {"objective": "logits", "distil": {"temperature": 2}}])
def test_settings_that_need_a_teacher_say_so(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"distil\.teacher"):
        settings_with(**changes)


# Another vocabulary


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> models.Base:
    """A model that knows one token more: all its ids stand for other tokens as far as anyone may rely on."""
    folder = tmp_path_factory.mktemp("stranger") / "tiny"
    tiny_base(folder, seed=5)
    tokenizer = chat.load_tokenizer(folder)
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(folder)
    return models.resolve_base(str(folder), folder.parent)


def test_a_teacher_of_another_vocabulary_is_used_where_tokens_coincide(
    base: models.Base, stranger: models.Base, tmp_path: Path
) -> None:
    examples = [replace(each, full_messages=each.messages) for each in TRAIN[:5]]
    rows = units(base, examples)
    source = Asked(
        resolve_teacher(str(stranger.path), tmp_path), Distil(), tokenizer_of(base), examples, micro_tokens=512, seed=0
    )
    store, facts = source.targets([unit.rows[0] for unit in rows], 512, tmp_path)
    batch = Batch.of(rows)
    end = tokenizer_of(base).convert_tokens_to_ids("<|im_end|>")
    assert facts["usable_share"] == 1
    assert torch.equal(store.of_batch(batch).usable, batch.targets != end)


def test_whole_conversations_are_refused_before_a_teacher_of_another_vocabulary_is_loaded(
    base: models.Base, stranger: models.Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.teacher.Teacher.load", lambda *_: pytest.fail("the teacher was loaded"))
    examples = [replace(each, learn="conversation") for each in TRAIN[:4]]
    with pytest.raises(NothingLearned, match=r"none of 4 rows can be asked .* whole conversations"):
        prepared(base, stranger.path, tmp_path, examples)


def test_a_teacher_of_another_vocabulary_cannot_judge_what_the_student_writes(
    base: models.Base, stranger: models.Base, dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(ParityMismatch, match="another vocabulary"):
        trained(base, dataset, tmp_path / "out", objective="on_policy", distil={"teacher": str(stranger.path)})


# On-policy


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_the_divergence_is_zero_for_equals_and_positive_otherwise(beta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = torch.log_softmax(torch.randn(2, 5, 20, generator=generator), 2)
    assert torch.allclose(divergence(p, p, beta), torch.zeros(5), atol=1e-6)
    assert (divergence(p, q, beta) > 0.01).all()


def test_the_divergence_nears_its_limits_and_is_symmetric_in_the_middle() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = torch.log_softmax(torch.randn(2, 5, 20, generator=generator), 2)
    assert torch.allclose(divergence(p, q, 1e-4) / 1e-4, divergence(p, q, 0), rtol=0.01)
    assert torch.allclose(divergence(p, q, 1 - 1e-4) / 1e-4, divergence(p, q, 1), rtol=0.01)
    assert torch.allclose(divergence(p, q, 0.5), divergence(q, p, 0.5), rtol=1e-5)


def on_policy(base: models.Base, teacher: Path, work: Path, rows: Sequence[Unit]) -> OnPolicy:
    tokenizer = tokenizer_of(base)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    writing = Writing(generated=1.0, temperature=1.0, longest=6, end=end, pad=tokenizer.pad_token_id)
    found = resolve_teacher(str(teacher), work)
    made = OnPolicy(rows, found.load, writing, share=1.0, beta=0.5, seed=0)
    made.prepare(None, rows, work)
    return made


def test_what_the_student_writes_depends_on_the_step_and_leaves_the_random_state_alone(
    base: models.Base, teacher: Path, tmp_path: Path
) -> None:
    rows = units(base, TRAIN[:4])
    objective, student = on_policy(base, teacher, tmp_path, rows), models.load_float(base.path)
    state = torch.get_rng_state()
    first, again, other = (
        [unit.rows[0].token_ids for unit in objective.generate(student, rows, step)] for step in (3, 3, 4)
    )
    assert first == again != other
    assert torch.equal(state, torch.get_rng_state())
    for unit, ids in zip(rows, first, strict=True):
        prompt = unit.rows[0].answer[0]
        assert ids[:prompt] == unit.rows[0].token_ids[:prompt]
        assert prompt < len(ids) <= prompt + 6


def test_an_answer_ends_with_its_end(base: models.Base) -> None:
    tokenizer = tokenizer_of(base)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    prompts = [unit.rows[0].token_ids[: unit.rows[0].answer[0]] for unit in units(base, TRAIN[:20])]
    writing = Writing(generated=1.0, temperature=1.0, longest=40, end=end, pad=tokenizer.pad_token_id)
    torch.manual_seed(0)
    found = write_answers(models.load_float(base.path), prompts, writing)
    assert all(end not in each[:-1] for each in found)
    assert all(each[-1] == end or len(each) == 40 for each in found)


def test_learning_from_what_it_writes_brings_the_student_nearer_to_the_teacher_on_held_out_prompts(
    base: models.Base, teacher: Path, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "student"
    settings = {"teacher": str(teacher), "generated": 1.0, "share": 1.0}
    trained(base, dataset, out, objective="on_policy", distil=settings, epochs=4, score_rows=0)
    rows = units(base, HELD)
    found = resolve_teacher(str(teacher), tmp_path).load()
    before = divergence_from(found, models.load_float(base.path), rows)
    assert divergence_from(found, student_of(base, out), rows) < 0.7 * before


def test_an_on_policy_run_that_was_stopped_goes_on_with_the_same_losses(
    base: models.Base, teacher: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {
        "objective": "on_policy", "distil": {"teacher": str(teacher)}, "max_steps": 8, "checkpoint_steps": 3,
        "score_rows": 0,
    }  # fmt: skip
    trained(base, dataset, tmp_path / "whole", **changes)
    real, steps = OnPolicy.generate, []

    def stops(self: OnPolicy, model: Any, given: Sequence[Unit], step: int) -> list[Unit]:
        steps.append(step)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return real(self, model, given, step)

    monkeypatch.setattr(OnPolicy, "generate", stops)
    with pytest.raises(KeyboardInterrupt):
        trained(base, dataset, tmp_path / "stopped", **changes)
    trained(base, dataset, tmp_path / "stopped", **changes)
    assert steps[6] < 5  # from a checkpoint, not from the stop
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")

"""Rationales: learnt behind the answer, weighed, and never seen by whoever serves the student."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill import models
from potstill.contract import Contract
from potstill.trained import find_trained, load_trained
from tests.stages.test_distil_objectives import TRAIN, tokenizer_of, units, write_dataset
from tests.stages.test_training import LABELS, trained
from tests.stages.tiny_llama import tiny_base
from training.batch import Batch
from training.objectives.answers import Answers
from training.packing import Unit
from training.rows import tokenise


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> models.Base:
    return tiny_base(tmp_path_factory.mktemp("base") / "tiny")


FITTED: dict[str, Any] = {"method": "full", "learning_rate": 0.002, "epochs": 10, "score_rows": 0}
REASONED = [replace(each, rationale=f"Because it says so, {each.answer}.") for each in TRAIN]


def test_a_rationale_stands_behind_the_answer_and_changes_nothing_before_it(base: models.Base) -> None:
    tokenizer = tokenizer_of(base)
    plain = tokenise(tokenizer, REASONED, 128).rows
    assert plain == tokenise(tokenizer, TRAIN, 128).rows
    for bare, row in zip(plain, tokenise(tokenizer, REASONED, 128, 0.5).rows, strict=True):
        assert row.token_ids[: len(bare.token_ids)] == bare.token_ids
        assert row.answer == bare.answer
        assert row.longest_turn == bare.longest_turn
        start, end = row.learnt[1]
        assert tokenizer.decode(row.token_ids[start:end]).startswith("Because it says so")
        assert row.token_ids[row.answer[1] - 1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_the_loss_is_that_of_the_answer_and_a_weighed_mean_of_the_rationale(base: models.Base) -> None:
    row = tokenise(tokenizer_of(base), REASONED[:1], 128, 0.5).rows[0]
    weights = torch.tensor(replace(row, weight=3.0).token_weights())
    answer = row.answer[1] - row.answer[0]
    assert weights[:answer].tolist() == [3.0] * answer
    assert float(weights[answer:].sum()) == pytest.approx(0.5 * 3.0 * answer)
    batch = Batch.of([Unit("u", (row,))])
    objective = Answers([Unit("u", (row,))])
    scores = -torch.arange(1.0, len(weights) + 1)
    wanted = -scores[:answer].mean() - 0.5 * scores[answer:].mean()
    assert float(objective.loss(scores, batch)) / objective.normaliser(batch.units) == pytest.approx(float(wanted))


def test_a_rationale_that_does_not_fit_is_left_out_and_its_answer_learnt(base: models.Base) -> None:
    long = [replace(TRAIN[0], rationale="so " * 500)]
    assert tokenise(tokenizer_of(base), long, 128, 0.5) == tokenise(tokenizer_of(base), TRAIN[:1], 128)


def test_a_student_taught_with_rationales_is_served_with_the_same_contract(base: models.Base, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "dataset", REASONED)
    contracts = []
    for weight in (0.0, 0.5):
        out = tmp_path / f"out-{weight}"
        facts = trained(base, data, out, rationale_weight=weight, **FITTED)
        contracts.append(Contract.read(out))
    assert contracts[0] == contracts[1]
    assert facts["training"]["supervised_tokens_an_epoch"] > 3 * len(TRAIN)
    tokenizer = tokenizer_of(base)
    end = tokenizer.convert_tokens_to_ids(contracts[1].stop[0])
    prompts = [unit.rows[0].token_ids[: unit.rows[0].answer[0]] for unit in units(base, TRAIN[:12])]
    student = load_trained(find_trained(tmp_path / "out-0.5", base.path)).eval()
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out_ids = student.generate(
            input_ids=ids, max_new_tokens=contracts[1].max_tokens, do_sample=False, eos_token_id=end
        )
        said = out_ids[0, len(prompt) :].tolist()
        assert end in said
        assert tokenizer.decode(said[: said.index(end)]) in LABELS

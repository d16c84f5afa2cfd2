"""LoRA's variants and full fine-tuning: what they train, what is refused, and that their files answer as they do."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from pydantic import ValidationError

from export import merge
from export import run as export
from potstill import models, trained
from potstill.contract import Contract
from potstill.errors import DamagedInput, PotstillError
from potstill.manifest import write_manifest
from potstill.model_shape import shape_of
from tests.stages.test_training import base, dataset, settings_with, shared_for
from tests.stages.test_training import trained as train
from tests.stages.tiny_families import tiny_gemma3_that_sees
from training import forecast, full, model
from training.batch import Batch, token_scores
from training.fit import make_student
from training.fused import WORTH_TOKENS
from training.loop import gradient, held_out_loss
from training.memory import StepPlan, trained_parameters
from training.objectives.answers import Answers
from training.optimizer import MasterAdamW
from training.packing import Unit
from training.rows import Row
from training.speed import flops_a_token

__all__ = ["base", "dataset"]  # fixtures

VARIANTS: dict[str, dict[str, Any]] = {
    "rslora": {"lora": {"variant": "rslora"}, "learning_rate": 0.005},
    "dora": {"lora": {"variant": "dora"}},
    "full": {"method": "full", "learning_rate": 0.002},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_whole_way_of_a_variant_ends_in_files_that_answer_as_it_does(
    name: str, base: models.Base, dataset: Path, tmp_path: Path
) -> None:
    adapter, artifact = tmp_path / "adapter", tmp_path / "artifact"
    facts = train(base, dataset, adapter, score_rows=15, evals=1, **VARIANTS[name])  # the end: sure of its answers
    assert facts["training"]["loss_last"] < 0.5 * facts["training"]["loss_first"]
    assert facts["training"]["weights"] == ("model" if name == "full" else "adapter")
    write_manifest(adapter, "adapter", settings_passed={}, settings_used={}, inputs=[], facts=facts)
    artifact.mkdir()
    settings = export.Settings(formats=("gguf-f16",), max_mismatch_share=0.0)
    upstream: Any = {"dataset": dataset, "adapter": adapter}
    made = export.main(settings, shared_for(base, tmp_path / "work"), upstream, artifact)
    assert made["verification"]["gguf-f16"]["share"] == 1.0
    assert made["verification"]["gguf-f16"]["both_invalid"] == 0
    shown = json.loads((artifact / "verification.json").read_text())["gguf-f16"]
    assert shown["rows"] == 15
    assert Contract.read(artifact) == Contract.read(adapter)


@pytest.mark.parametrize("variant", ["lora", "rslora", "dora"])
def test_what_is_merged_for_export_computes_what_was_trained(variant: Any, base: models.Base, tmp_path: Path) -> None:
    student = model.student(
        base.path, quantization="none", rank=4, alpha=16, dropout=0.0, seed=1, variant=variant, lean=False
    ).float()
    torch.manual_seed(2)
    with torch.no_grad():
        for each in student.parameters():
            if each.requires_grad:
                each.add_(torch.randn_like(each) * 0.05)
    trained.save_trained(student, tmp_path)
    weights = merge.student_weights(tmp_path, base.path)
    merged = models.load_float(base.path, dtype="float32")
    merged.load_state_dict({name: each.float() for name, each in weights.items()}, strict=False)
    ids = torch.randint(3, 400, (1, 24))
    with torch.no_grad():
        wanted, found = student.eval()(input_ids=ids).logits, merged.eval()(input_ids=ids).logits
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-4)


def test_full_fine_tuning_moves_every_parameter_and_keeps_tied_weights_tied(base: models.Base, tmp_path: Path) -> None:
    student = model.whole(base.path, seed=0)
    head, table = student.get_output_embeddings().weight, student.get_input_embeddings().weight
    assert head is table
    optimizer = MasterAdamW(student.parameters(), lr=1e-2)
    assert len(optimizer.parameters) == len(list(student.parameters())) == len(dict(student.named_parameters()))
    before = [each.detach().clone() for each in student.parameters()]
    rows = [Row(f"r{at}", tuple(range(3 + at, 40 + at)), ((5, 37),)) for at in range(4)]
    units = [Unit(row.id, (row,)) for row in rows]
    for _ in range(3):
        gradient(student, Answers(units), units, 4096)
        optimizer.gather()
        optimizer.step(1e-2, 1.0)
    moved = {name: not torch.equal(b, a) for (name, a), b in zip(student.named_parameters(), before, strict=True)}
    assert all(moved.values()), [name for name, each in moved.items() if not each]
    assert any("norm" in name for name in moved)
    trained.save_trained(student, tmp_path)
    again = trained.load_trained(trained.find_trained(tmp_path, Path("/nowhere")))
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    for (name, wanted), found in zip(student.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(wanted, found), name


def test_full_fine_tuning_goes_on_from_its_checkpoint(base: models.Base, dataset: Path, tmp_path: Path) -> None:
    whole = train(base, dataset, tmp_path / "whole", **VARIANTS["full"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.fit.save_trained", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(base, dataset, tmp_path / "cut", **VARIANTS["full"], checkpoint_steps=1)
    newest = sorted((tmp_path / "cut" / "checkpoints").glob("step-*"))[-1]
    for each in newest.iterdir():
        each.unlink()  # the one before is gone on from
    newest.rmdir()
    facts = train(base, dataset, tmp_path / "cut", **VARIANTS["full"], checkpoint_steps=1)
    assert facts["training"]["loss_last"] == whole["training"]["loss_last"]
    assert facts["training"]["steps"] == whole["training"]["steps"]


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_base_that_sees_images_has_its_adapter_on_what_reads_and_writes_text_alone(
    quantization: Any, tmp_path: Path
) -> None:
    seeing = tiny_gemma3_that_sees(tmp_path / "base")
    student = model.student(seeing.path, quantization=quantization, rank=4, alpha=16, dropout=0.0, seed=1)
    adapted = [name for name, each in student.named_parameters() if each.requires_grad]
    assert len(adapted) == 2 * 7 * 2  # two matrices on seven linear layers of two decoder layers
    assert all("language_model.layers" in name for name in adapted)
    shape = shape_of(str(seeing.path))
    assert shape is not None
    plan = StepPlan("cpu", 64, 16, rank=4)
    trained_count = sum(each.numel() for each in student.parameters() if each.requires_grad)
    assert trained_parameters(shape, plan) == trained_count
    trained.save_trained(student, tmp_path)
    again: Any = peft.PeftModel.from_pretrained(models.load_float(seeing.path), str(tmp_path / "adapter"))
    assert [name for name, _ in again.named_parameters() if "lora_" in name] == adapted


def test_trained_weights_cost_six_operations_a_token_and_frozen_ones_four(base: models.Base) -> None:
    whole = model.whole(base.path, seed=1)
    layers = [each for each in whole.get_decoder().modules() if isinstance(each, torch.nn.Linear)]
    body, head = sum(each.weight.numel() for each in layers), whole.get_output_embeddings().weight.numel()
    assert flops_a_token(whole) == (6 * body, 6 * head)
    assert flops_a_token(whole.requires_grad_(False)) == (4 * body, 4 * head)


def test_what_sees_images_is_no_work_of_a_step(tmp_path: Path) -> None:
    found = model.whole(tiny_gemma3_that_sees(tmp_path / "base").path, seed=1)
    linear = [each for name, each in found.named_modules() if isinstance(each, torch.nn.Linear) and "vision" in name]
    text = [each for each in found.get_decoder().modules() if isinstance(each, torch.nn.Linear)]
    assert linear
    assert flops_a_token(found)[0] == 6 * sum(each.weight.numel() for each in text)


def test_full_fine_tuning_leaves_what_sees_images_as_it_is(tmp_path: Path) -> None:
    whole = model.whole(tiny_gemma3_that_sees(tmp_path / "base").path, seed=1)
    moved = {name for name, each in whole.named_parameters() if each.requires_grad}
    left = {name for name, _ in whole.named_parameters()} - moved
    assert any("language_model.embed_tokens" in name for name in moved)
    assert left
    assert all("vision_tower" in name or "multi_modal_projector" in name for name in left)
    assert not any("vision_tower" in name or "multi_modal_projector" in name for name in moved)


def test_nf4_weights_cannot_be_trained() -> None:
    with pytest.raises(ValidationError, match="NF4 weights cannot be trained: found quantization nf4, expected none"):
        settings_with(method="full", quantization="nf4")


def test_lora_settings_beside_full_are_said_to_be_unused(base: models.Base, capsys: pytest.CaptureFixture[str]) -> None:
    full.refuse_full(settings_with(method="full", lora={"rank": 4}), base.path)
    assert "train.lora: not used" in capsys.readouterr().err
    full.refuse_full(settings_with(method="full"), base.path)
    assert capsys.readouterr().err == ""


def test_a_base_too_large_for_a_processor_is_refused_with_its_need(
    base: models.Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = sum(each.numel() for each in models.load_float(base.path).parameters())
    assert full.parameters_of(base.path) == count
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(full, "parameters_of", lambda _: 3_000_000_000)
    with pytest.raises(PotstillError, match=r"3.0 billion parameters and would need 56 GiB.*at most 1 billion"):
        full.refuse_full(settings_with(method="full"), base.path)
    full.refuse_full(settings_with(method="lora"), base.path)


def test_a_folder_with_both_layouts_or_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedInput, match="neither"):
        trained.find_trained(tmp_path, tmp_path)
    for name, file in (("adapter", "adapter_config.json"), ("model", "config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    with pytest.raises(DamagedInput, match="both"):
        trained.find_trained(tmp_path, tmp_path)


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_an_evaluation_does_not_change_the_gradients_of_an_nf4_base(variant: Any, base: models.Base) -> None:
    rows = [Row(f"r{at}", tuple(range(3 + at, 40 + at)), ((5, 37),)) for at in range(4)]
    units = [Unit(row.id, (row,)) for row in rows]
    norms = []
    for evaluated in (False, True):
        student = model.student(
            base.path, quantization="nf4", rank=4, alpha=16, dropout=0.0, seed=1, variant=variant, lean=False
        )
        if evaluated:
            held_out_loss(student, Answers(units), units, 4096)
        student.train()
        optimizer = MasterAdamW(student.parameters(), lr=1e-2)
        gradient(student, Answers(units), units, 4096)
        norms.append(float(optimizer.gather().norm()))
    assert norms[0] > 0
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)


@pytest.mark.parametrize("free", [2**40, 1000, None])
def test_an_nf4_base_is_dequantised_once_where_there_is_room_and_goes_on_as_it_began(
    free: int | None, base: models.Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    rows: Any = SimpleNamespace(tokens=100)
    chosen = []
    for answer in (free, 1000 if free != 1000 else 2**40):
        monkeypatch.setattr(forecast, "free_bytes", lambda answer=answer: answer)
        chosen.append(
            forecast.way_here(settings_with(quantization="nf4"), base.path, rows, rows, "nf4", tmp_path / "checkpoints")
        )
    said = capsys.readouterr().err
    assert [way.copied for way in chosen] == 2 * [free != 1000]
    assert ("dequantised anew at every use, which is slower" in said) is (free == 1000)


@pytest.mark.parametrize("able", [True, False])
def test_loops_stay_as_they_were_when_a_run_goes_on(
    able: bool, base: models.Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: Any = SimpleNamespace(tokens=WORTH_TOKENS)
    chosen = []
    for now in (able, not able):
        monkeypatch.setattr("training.fused.can_compile", lambda now=now: now)
        chosen.append(forecast.way_here(settings_with(), base.path, rows, rows, "none", tmp_path / "checkpoints"))
    assert [way.fused for way in chosen] == [able, able]


@pytest.mark.parametrize("lora", [{"variant": "dora"}, {"dropout": 0.1}], ids=["dora", "dropout"])
def test_an_nf4_base_under_an_adapter_that_knows_no_copy_is_said_to_be_dequantised_anew(
    lora: Any, base: models.Base, tmp_path: Path, capsys: Any
) -> None:
    rows: Any = SimpleNamespace(tokens=100)
    forecast.way_here(settings_with(quantization="nf4", lora=lora), base.path, rows, rows, "nf4", tmp_path)
    assert "dequantised anew at every use" in capsys.readouterr().err


def test_an_nf4_base_without_a_copy_gives_the_same_scores(base: models.Base) -> None:
    rows = [Row(f"r{at}", tuple(range(3 + at, 40 + at)), ((5, 37),)) for at in range(4)]
    batch = Batch.of([Unit(row.id, (row,)) for row in rows])
    made = [make_student(settings_with(quantization="nf4"), base.path, "nf4", copied) for copied in (True, False)]
    with torch.no_grad():
        reference, found = (token_scores(each, batch)[0] for each in made)
    lean = [any("forward" in vars(module) for module in each.modules()) for each in made]
    assert lean == [True, False]
    assert (found - reference).abs().max() < 0.1  # bf16, rounded at other places

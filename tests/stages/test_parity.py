"""What is trained on is what the model itself computes: scaled logits are, other architectures are refused in time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill import models
from potstill.errors import PotstillError
from potstill.records import Json
from tests.stages.datasets import dataset_folder
from tests.stages.test_training import example, trained
from tests.stages.tiny_families import SMALL
from tests.stages.tiny_llama import save_tokenizer, tiny_base
from training.batch import Batch, token_scores
from training.lean import as_loaded
from training.model import student
from training.objectives.on_policy import OnPolicy, Writing
from training.packing import Unit
from training.parity import refuse_unlike
from training.rows import Row
from training.teacher import each_distribution

OTHERS: dict[str, Json] = {
    "Granite": {"logits_scaling": 8.0, "embedding_multiplier": 4.0},
    "Cohere": {"logit_scale": 0.0625},
    "HyperCLOVAX": {"logits_scaling": 0.2},
    "Lfm2": {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3},
    "GptOss": {"num_local_experts": 4, "head_dim": 16},  # attention with sinks
    "StableLm": {},
}
ROWS = [Row(f"r{at}", [(7 * at + 13 * place * place + 5) % 300 for place in range(20)], ((1, 20),)) for at in range(4)]


def tiny(name: str) -> Any:
    import transformers

    torch.manual_seed(0)
    values = {**SMALL, "num_hidden_layers": 2, "initializer_range": 0.3, **OTHERS[name]}
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**values))
    return model.to(torch.bfloat16)


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> models.Base:
    """A base whose convolutions look into the row before."""
    folder = tmp_path_factory.mktemp("leaky") / "lfm2"
    tiny("Lfm2").save_pretrained(folder)
    save_tokenizer(folder)
    return models.resolve_base(str(folder), folder.parent)


@pytest.mark.parametrize("name", ["Granite", "Cohere", "HyperCLOVAX"])
def test_loss_of_a_model_that_scales_its_logits_is_its_own(name: str) -> None:
    model = tiny(name).float()
    scores, _ = token_scores(model, Batch.of([Unit(row.id, (row,)) for row in ROWS]))
    ids = torch.tensor([row.token_ids for row in ROWS])
    own = model(input_ids=ids, labels=ids, use_cache=False).loss
    assert float(-scores.detach().mean()) == pytest.approx(float(own.detach()), rel=1e-4)
    refuse_unlike(model, ROWS, "base_model: it")


@pytest.mark.parametrize("name", ["Lfm2", "GptOss", "StableLm"])
def test_an_architecture_that_packing_changes_is_refused_by_name(name: str) -> None:
    model = tiny(name)
    with pytest.raises(PotstillError, match=f"^base_model: it: architecture '{model.config.model_type}' cannot be tr"):
        refuse_unlike(model, ROWS, "base_model: it")


def test_a_loop_that_cannot_be_compiled_or_memory_that_is_short_is_not_the_architecture_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.exc import CppCompileError

    model = student(tiny_base(tmp_path / "tiny").path, quantization="none", rank=4, alpha=8, dropout=0.0, seed=0)
    faults = [CppCompileError(["g++"], "No space left on device"), torch.OutOfMemoryError("CUDA out of memory")]

    def fail(*_: object) -> None:
        raise faults.pop(0)

    monkeypatch.setattr("training.parity.token_scores", fail)
    with pytest.raises(PotstillError, match=r"(?s)^train\.compile: .*CppCompileError.*set train.compile: false"):
        refuse_unlike(model, ROWS, "base_model: it")
    with pytest.raises(torch.OutOfMemoryError):
        refuse_unlike(model, ROWS, "base_model: it")


@pytest.mark.parametrize(
    ("file", "left"), [("model.safetensors", None), ("model.safetensors", 40), ("config.json", 40)]
)
def test_a_damaged_base_is_said_to_be_damaged(file: str, left: int | None, tmp_path: Path) -> None:
    place = tiny_base(tmp_path / "tiny").path / file
    if left is None:
        place.unlink()
    else:
        place.write_bytes(place.read_bytes()[:left])
    with pytest.raises(PotstillError, match=r"tiny is damaged or not whole: .*expected config.json"):
        student(place.parent, quantization="none", rank=4, alpha=8, dropout=0.0, seed=0)


def test_how_a_base_would_have_text_generated_is_left_behind(tmp_path: Path) -> None:
    """The exported file has no penalty on repetition; scores while training must have none."""
    base = tiny_base(tmp_path / "tiny").path
    wanted = {"repetition_penalty": 1.3, "do_sample": True, "temperature": 0.7, "top_k": 5, "eos_token_id": 2}
    (base / "generation_config.json").write_text(json.dumps(wanted))
    kept = models.load_float(base).generation_config
    assert kept.eos_token_id == 2
    assert kept.repetition_penalty in (None, 1.0)
    assert not kept.do_sample


def test_a_base_that_transformers_cannot_load_for_training_is_refused_by_what_it_is(tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    with pytest.raises(PotstillError, match=r"mamba cannot be loaded as a causal language model .* take a base whose"):
        student(tmp_path / "mamba", quantization="none", rank=4, alpha=8, dropout=0.0, seed=0)


def test_a_base_that_cannot_be_trained_is_refused_before_the_first_step(leaky: models.Base, tmp_path: Path) -> None:
    data = dataset_folder(tmp_path / "dataset", [example(at) for at in range(12)])
    with pytest.raises(PotstillError, match=r"'lfm2' .* Llama, Mistral, Qwen"):
        trained(leaky, data, tmp_path / "out")
    assert not (tmp_path / "out" / "trainer_log.jsonl").exists()


def test_a_teacher_whose_distributions_would_be_wrong_is_refused(leaky: models.Base, tmp_path: Path) -> None:
    def load() -> Any:
        return models.load_float(leaky.path).requires_grad_(False)

    units = [Unit(row.id, (row,)) for row in ROWS]
    objective = OnPolicy(units, load, Writing(1.0, 1.0, 4, 2, 2), share=1.0, beta=0.5, seed=0)
    with pytest.raises(PotstillError, match=r"^train\.distil\.teacher: architecture 'lfm2'"):
        objective.prepare(None, units, tmp_path)
    with pytest.raises(PotstillError, match=r"^train\.distil\.teacher: architecture 'lfm2'"):
        each_distribution(load(), ROWS, 512, lambda row, found: None)


def test_comparing_leaves_random_state_mode_and_our_own_operations_as_they_were(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "tiny")
    model = student(base.path, quantization="none", rank=4, alpha=8, dropout=0.1, seed=0).train()
    lean = student(base.path, quantization="none", rank=4, alpha=8, dropout=0.0, seed=0).train()
    state = torch.get_rng_state()
    for each in (model, lean):
        refuse_unlike(each, ROWS, "base_model: it")
        assert each.training
    assert torch.equal(state, torch.get_rng_state())
    replaced = [module for module in lean.modules() if "forward" in module.__dict__]
    assert replaced
    with as_loaded(lean):
        assert not any("forward" in module.__dict__ for module in replaced)
    assert all("forward" in module.__dict__ for module in replaced)


def test_an_operation_of_our_own_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    """`lean.py` guesses by names: a layer that it takes for another must not pass unseen."""
    base = tiny_base(tmp_path / "tiny")
    model = student(base.path, quantization="none", rank=4, alpha=8, dropout=0.0, seed=0)
    norm = model.get_base_model().get_decoder().norm
    assert "forward" in norm.__dict__
    with torch.no_grad():
        norm.weight.neg_()  # what our operation does not see: it has its own copy
    with pytest.raises(PotstillError, match="'llama' cannot be trained"):
        refuse_unlike(model, ROWS, "base_model: it")

"""The memory estimate against what is really saved and allocated: counted in the layers that train."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from potstill.known_bases import KNOWN
from potstill.model_shape import ModelShape
from training.attention import rows_apart
from training.batch import Batch, inner_of, token_scores
from training.lean import LoraGroup, make_lean
from training.memory import StepPlan, logits_bytes, saved_bytes_a_token, trained_parameters
from training.objectives.answers import Answers
from training.objectives.logits import Logits
from training.objectives.on_policy import OnPolicy, Writing
from training.packing import Unit
from training.rows import Row
from training.soft_targets import SoftTargets

SHAPES = {
    "llama": ModelShape("llama", 512, 192, 512, 4, 6, 2, 32, True, 2048),
    "qwen2": ModelShape("qwen2", 512, 192, 512, 4, 6, 2, 32, True, 2048),
    "qwen3": ModelShape("qwen3", 512, 192, 512, 4, 4, 2, 64, True, 2048),
    "gemma3": ModelShape("gemma3", 512, 160, 512, 4, 4, 1, 64, True, 2048, 4096),
}
CLASSES: dict[str, Any] = {
    "llama": (transformers.LlamaConfig, {}),
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen3": (transformers.Qwen3Config, {}),
    "gemma3": (transformers.Gemma3TextConfig, {"sliding_window": 4096}),
}


def config_of(shape: ModelShape, layers: int) -> Any:
    kind, more = CLASSES[shape.family]
    return kind(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, tie_word_embeddings=shape.tied, max_position_embeddings=shape.max_positions, **more,
    )  # fmt: skip


def model_of(shape: ModelShape, layers: int, plan: StepPlan) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_of(shape, layers), dtype=torch.bfloat16)
    if plan.adapter != "full":
        import peft

        config = peft.LoraConfig(
            r=plan.rank, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=plan.adapter == "dora"
        )
        model = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
        if plan.lean:
            make_lean(model)
    return model.train()


class Kept:
    """A saved tensor, alive as long as the graph holds it."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor


def saved_bytes(model: Any, row_lengths: tuple[int, ...]) -> int:
    """Bytes of storage that the graph of a forward pass holds, weights apart."""
    weights = [*model.parameters(), *(m.potstill_scale for m in model.modules() if hasattr(m, "potstill_scale"))]
    weights += [each.weight for each in gc.get_objects() if type(each) is LoraGroup]
    known = {each.untyped_storage().data_ptr() for each in weights}
    kept: list[Any] = []

    def pack(tensor: Any) -> Kept:
        box = Kept(tensor)
        kept.append(weakref.ref(box))
        return box

    tokens = sum(row_lengths)
    ids = torch.randint(0, 512, (1, tokens))
    positions = torch.cat([torch.arange(each) for each in row_lengths])[None]
    inner = inner_of(model)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor), rows_apart(inner, row_lengths) as rows:
        out = inner.get_decoder()(input_ids=ids, position_ids=positions, use_cache=False, **rows).last_hidden_state
    boxes = [box for box in (each() for each in kept) if box is not None]
    storages = {box.tensor.untyped_storage().data_ptr(): box.tensor.untyped_storage().nbytes() for box in boxes}
    assert out.requires_grad
    return sum(size for place, size in storages.items() if place not in known)


@pytest.mark.parametrize("row", [64, 512], ids=["short rows", "long rows"])
@pytest.mark.parametrize(
    ("device", "adapter"),
    [("cpu", "lora"), ("cpu", "dora"), ("cpu", "full"), ("cuda", "lora"), ("cuda", "dora")],
    ids=lambda each: str(each),
)
@pytest.mark.parametrize("family", SHAPES)
def test_a_layer_keeps_as_many_bytes_a_token_as_the_formula_says(
    family: str, device: Any, adapter: Any, row: int
) -> None:
    """`cuda`: the layers as a GPU runs them (transformers' own), counted on the CPU."""
    shape, tokens = SHAPES[family], 1024
    plan = StepPlan(device, tokens, 0, adapter=adapter, rank=4, row_tokens=row, longest_row=row)
    two, four = (saved_bytes(model_of(shape, layers, plan), (row,) * (tokens // row)) for layers in (2, 4))
    assert (four - two) / 2 / tokens == pytest.approx(saved_bytes_a_token(shape, plan), rel=0.02)


def peak_bytes(run: Callable[[], None]) -> int:
    """The most bytes that torch's allocator held at once while `run` ran, beyond those from before."""
    from torch._C._profiler import _EventType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    waiting = list(profiled.profiler.kineto_results.experimental_event_tree())
    sizes: list[tuple[int, int]] = []
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag == _EventType.Allocation:
            sizes.append((event.start_time_ns, event.extra_fields.alloc_size))
    held = peak = 0
    for _, size in sorted(sizes):
        held += size
        peak = max(peak, held)
    return peak


def objective_of(loss: str, units: Sequence[Unit], teacher: Any) -> Any:
    if loss == "answers":
        return Answers(units)
    if loss == "soft_targets":
        targets = SoftTargets(torch.tensor([[3]] * 128), torch.ones(128, 1), torch.zeros(128))
        source: Any = SimpleNamespace(targets=lambda rows, vocabulary, folder: (store, {}))
        store: Any = SimpleNamespace(of_batch=lambda batch: targets)
        return Logits(units, source, share=0.5, temperature=1.0)
    beta = 0.5 if loss == "mixture" else 0.0
    return OnPolicy(units, lambda: teacher, Writing(1.0, 1.0, 1, 1, 1), share=0.5, beta=beta, seed=0)


@pytest.mark.parametrize("trained", [True, False], ids=["a step", "an evaluation"])
@pytest.mark.parametrize("loss", ["answers", "soft_targets", "divergence", "mixture"])
def test_a_logit_takes_as_many_bytes_as_the_formula_says(loss: Any, trained: bool, tmp_path: Path) -> None:
    shape, learnt = ModelShape("llama", 32_768, 32, 32, 1, 2, 2, 16, True, 2048), 128
    plan = StepPlan("cpu", learnt, learnt, rank=2, loss=loss)
    student, teacher = (model_of(shape, 1, plan) for _ in range(2))
    units = [Unit("r", (Row("r", list(range(learnt + 1)), ((1, learnt + 1),)),))]
    objective = objective_of(loss, units, teacher.eval().requires_grad_(False))
    objective.prepare(student, units, tmp_path)

    def step() -> None:
        batch = Batch.of(units)
        with torch.set_grad_enabled(trained):
            scores, _ = token_scores(student, batch, objective.scores)
            cost = objective.loss(scores, batch)
        if trained:
            cost.backward()

    step()
    objective._of = None  # what it remembers of the batch before is not this one's
    counted = peak_bytes(step) / learnt / shape.vocabulary
    assert counted == pytest.approx(logits_bytes(shape, plan, 1, trained=trained) / shape.vocabulary, rel=0.03)


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("adapter", ["lora", "dora", "full"])
def test_as_many_parameters_are_trained_as_the_formula_says(family: str, adapter: Any) -> None:
    shape = SHAPES[family]
    plan = StepPlan("cpu", 64, 0, adapter=adapter, rank=4)
    model = model_of(shape, shape.layers, plan)
    assert sum(each.numel() for each in model.parameters() if each.requires_grad) == trained_parameters(shape, plan)


@pytest.mark.parametrize("base", ["Qwen/Qwen3-0.6B", "google/gemma-3-1b-it", "meta-llama/Llama-3.1-8B"])
def test_known_shapes_build_models_of_their_size(base: str) -> None:
    shape = KNOWN[base].shape
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config_of(shape, shape.layers))
    assert sum(each.numel() for each in model.parameters()) == shape.parameters

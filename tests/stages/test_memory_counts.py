"""The memory estimate against what is really saved and allocated: counted in the layers that train."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
import transformers

from potstill.known_bases import KNOWN
from potstill.model_shape import ModelShape
from training.attention import rows_apart
from training.batch import inner_of
from training.lean import LoraGroup, make_lean
from training.memory import StepPlan, saved_bytes_a_token, trained_parameters

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

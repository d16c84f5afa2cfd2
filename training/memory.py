"""What a training step holds in memory, by part, from the shape of the base and the settings: bytes, no model loaded.

The activations are those that autograd keeps for the backward pass of a decoder layer in bfloat16, counted in the
code that runs (saved tensors), not taken from a rule of thumb; a test counts them again. Notation in comments:
h hidden width, f width between the MLP's layers, H and K heads of queries and of keys, d width of a head, r rank.
Method: Korthikanti et al. 2023 (activation recomputation); Dettmers et al. 2023 (QLoRA) for NF4.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from potstill.model_shape import ModelShape
from potstill.records import Json

MIB = 2**20
BF16, FLOAT32 = 2, 4
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # 4 bits; 8 bits of scale for 64 weights; a float32 for 256 of those scales
MASTER_ADAMW_BYTES = 12  # float32 master copy and two moments
PAGED_8BIT_BYTES = 2.0625  # two moments of a byte each, a float32 scale for 256 of either
LOGITS_BYTES = 14  # a logit at the peak: float32, its log-softmax, its gradient in float32 and again in bfloat16
PROCESS_CPU = 700 * MIB  # torch, transformers, peft and the tokenizer imported: resident before any weight
PROCESS_GPU = 600 * MIB  # the CUDA context, kernels and the workspace of the matrix library; not measured here
SLACK_CPU, SLACK_GPU = 0.05, 0.08  # freed but not given back, fragments: a share of what steps allocate


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one training process does in a step. Tokens are those of one micro-batch; `shards` devices hold a copy."""

    device: Literal["cpu", "cuda"]
    micro_tokens: int
    supervised_tokens: int
    adapter: Literal["lora", "dora", "full"] = "lora"
    rank: int = 16
    quantization: Literal["none", "nf4"] = "none"
    checkpointing: bool = False
    optimizer: Literal["adamw", "paged_8bit"] = "adamw"
    shards: int = 1


def estimate(shape: ModelShape, plan: StepPlan) -> dict[str, int]:
    """Bytes by part, and their sum as `total`: the peak of the process on a CPU, of one card on a GPU."""
    trained = trained_parameters(shape, plan)
    whole = {
        "weights": weight_bytes(shape, plan.quantization),
        "adapter": 0 if plan.adapter == "full" else trained * BF16,
        "gradients": trained * BF16,
        "optimizer": round(trained * (PAGED_8BIT_BYTES if plan.optimizer == "paged_8bit" else MASTER_ADAMW_BYTES)),
    }
    parts = {name: -(-size // plan.shards) for name, size in whole.items()}
    parts["activations"] = activation_bytes(shape, plan)
    parts["logits"] = plan.supervised_tokens * shape.vocabulary * LOGITS_BYTES
    parts["scratch"] = scratch_bytes(shape, plan)
    parts["process"] = PROCESS_CPU if plan.device == "cpu" else PROCESS_GPU
    moved = parts["activations"] + parts["logits"] + parts["scratch"] + parts["gradients"]
    parts["slack"] = round(moved * (SLACK_CPU if plan.device == "cpu" else SLACK_GPU))
    return parts | {"total": sum(parts.values())}


def trained_parameters(shape: ModelShape, plan: StepPlan) -> int:
    """Parameters with a gradient: all, or the adapter's (rank times inputs and outputs; DoRA: and one an output)."""
    if plan.adapter == "full":
        return shape.parameters - shape.other_parameters
    each = sum(plan.rank * (inputs + outputs) for inputs, outputs in shape.linears.values())
    magnitudes = sum(outputs for _, outputs in shape.linears.values()) if plan.adapter == "dora" else 0
    return shape.layers * (each + magnitudes)


def weight_bytes(shape: ModelShape, quantization: Literal["none", "nf4"]) -> int:
    """The base's weights: quantised are the linear layers of the decoder alone, the rest stays in bfloat16."""
    rest = shape.parameters - shape.linear_parameters
    return round(shape.linear_parameters * (NF4_BYTES if quantization == "nf4" else BF16)) + rest * BF16


def saved_bytes_a_token(shape: ModelShape, plan: StepPlan) -> int:
    """What autograd keeps of one token in one decoder layer of transformers, attention by SDPA."""
    hidden, queries, keys = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms = 4 if shape.family == "gemma3" else 2
    saved = norms * FLOAT32 * (hidden + 1)  # a norm's input in float32, and what it is scaled by
    saved += 2 * BF16 * hidden  # inputs of q, k, v and of gate, up
    saved += 2 * BF16 * queries + 2 * BF16 * keys + FLOAT32 * shape.heads  # q, k, v, what attention gives; log-sums
    saved += 4 * BF16 * shape.intermediate  # gate, its activation, up, their product
    if shape.family in ("qwen3", "gemma3"):  # norms of q and k
        saved += FLOAT32 * (queries + keys + shape.heads + shape.kv_heads)
    if plan.adapter == "full":
        wide = FLOAT32 if shape.family == "gemma3" else BF16
        saved += norms * wide * hidden  # normed values, for the gradient of the norm's weight
        saved += wide * (queries + keys) if shape.family in ("qwen3", "gemma3") else 0
    else:
        saved += len(shape.linears) * BF16 * plan.rank  # what stands between the adapter's two matrices
    if plan.adapter == "dora":
        saved += sum(2 * BF16 * outputs for _, outputs in shape.linears.values())
    return saved


def activation_bytes(shape: ModelShape, plan: StepPlan) -> int:
    """Kept from forward to backward: every layer's, or with checkpointing each layer's input and one layer's all."""
    layer = saved_bytes_a_token(shape, plan)
    kept = shape.layers * layer
    if plan.checkpointing:
        kept = shape.layers * BF16 * shape.hidden + layer
    ends = (FLOAT32 + 2 * BF16) * shape.hidden  # the last norm, the embedding, the gradient that runs back
    return plan.micro_tokens * (kept + ends)


def scratch_bytes(shape: ModelShape, plan: StepPlan) -> int:
    """Held within one operation: gradients on their way through a layer, a weight dequantised, an update."""
    widest = max(shape.intermediate, shape.hidden, shape.heads * shape.head_dim)
    moving = plan.micro_tokens * widest * BF16 * 3
    largest = max(inputs * outputs for inputs, outputs in shape.linears.values())
    dequantised = largest * BF16 if plan.quantization == "nf4" else 0
    updated = max(largest, shape.vocabulary * shape.hidden) * FLOAT32 * 2 if plan.adapter == "full" else 0
    gathered = 2 * largest * BF16 * len(shape.linears) if plan.shards > 1 else 0
    return max(moving + dequantised + gathered, updated)


def described(plan: StepPlan) -> Json:
    """The plan as figures for `--json`."""
    return asdict(plan)

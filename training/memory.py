"""What a training step holds in memory, by part, from the shape of the base and the settings: bytes, no model loaded.

The activations are those that autograd keeps for the backward pass of a decoder layer in bfloat16, counted in the code
that runs (saved tensors), not taken from a rule of thumb; a test counts them again. Notation in comments: h hidden
width, f width inside the MLP, q and k widths of all queries and of all keys, H and K their heads, r rank.
After Korthikanti et al. 2023 (activation memory) and Dettmers et al. 2023 (NF4 with double quantisation).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from potstill.model_shape import ModelShape
from potstill.records import Json

MIB = 2**20
BF16, FLOAT32 = 2, 4
NF4_SCALES = 1 / 64 + 4 / (64 * 256)  # 8 bits of scale for 64 weights; a float32 for 256 of those scales
NF4_BYTES = 0.5 + NF4_SCALES
ADAMW_BYTES = 16  # float32: master copy, gradient, two moments
PAGED_8BIT_BYTES = 10.0625  # master copy and gradient as before; moments of a byte each, a float32 for 256 of either
SAVED_COPIES = 2  # a checkpoint's tensors are serialised in memory: safetensors' buffer and the bytes made of it
Loss = Literal["answers", "soft_targets", "divergence", "mixture"]
# Bytes a logit of the student's at the peak of a step, and without a backward pass (a test counts again).
LOGITS_BYTES: dict[Loss, tuple[int, int]] = {
    "answers": (12, 8),  # float32: log-softmax, its gradient, the gradient before it
    "soft_targets": (16, 12),  # a second log-softmax
    "divergence": (24, 24),  # the teacher's, probabilities, differences
    "mixture": (40, 28),  # the same to both sides of a mixture
}
ASKED_BYTES, DRAWN_BYTES = 8, 21  # a logit of a teacher's that is asked beforehand: of a micro-batch, of the row drawn
LOGITS_CHUNK = 1024  # learnt tokens whose logits stand in memory at once (batch.py)
REFERENCE_TOKENS = 4096  # of which the reference of a second phase is asked at once
LONG_ROW = 256  # tokens of a row from which attention is the library's fused kernel (attention.py)
PROCESS_CPU = 640 * MIB  # torch, transformers, peft, the tokenizer and oneDNN's kernels: measured, before any weight
PROCESS_GPU = 600 * MIB  # the CUDA context, its kernels and the matrix library's workspace: assumed, not measured
SLACK_CPU = 0.30  # measured: glibc keeps what steps free, in pieces that the next step's sizes do not quite fit
SLACK_GPU = 0.08  # assumed: blocks that torch's allocator rounds up or cannot join


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one training process does in a step: tokens of a micro-batch and how many of them are learnt.

    `row_tokens` is the length of the row that an average token stands in, `longest_row` that of the longest;
    `shared_tokens` are those of a micro-batch that are not computed again, being of beginnings that rows share;
    `largest_unit` what no micro-batch cuts (a row, or both rows of a pair). `held_tokens` are those of a micro-batch of
    validation rows, `reference_tokens` those of which a reference is asked at once. `teacher_parameters` are those of a
    teacher that is asked at every step or, with `asked_tokens` (learnt tokens of a micro-batch, `asked_row` of the
    longest row), once before the first. The frozen weights are spread over `shards` devices; what is trained stands
    whole on each.
    """

    device: Literal["cpu", "cuda"]
    micro_tokens: int
    supervised_tokens: int
    adapter: Literal["lora", "dora", "full"] = "lora"
    rank: int = 16
    quantization: Literal["none", "nf4"] = "none"
    checkpointing: bool = False
    optimizer: Literal["adamw", "paged_8bit"] = "adamw"
    row_tokens: int = 128
    longest_row: int = 512
    largest_unit: int = 0
    shared_tokens: int = 0
    held_tokens: int = 0
    reference_tokens: int = 0
    loss: Loss = "answers"
    teacher_parameters: int = 0
    asked_tokens: int = 0
    asked_row: int = 0
    shards: int = 1

    @property
    def computed_tokens(self) -> int:
        """Tokens of a micro-batch that go through the model."""
        return self.micro_tokens - self.shared_tokens

    @property
    def lean(self) -> bool:
        """Whether norms and gates are our own (lean.py): on a CPU, with a frozen base."""
        return self.device == "cpu" and self.adapter != "full"

    @property
    def grouped(self) -> bool:
        """Whether linear layers of one input are one matrix product (lean.py): plain LoRA alone."""
        return self.lean and self.adapter == "lora"


def estimate(shape: ModelShape, plan: StepPlan) -> dict[str, int]:
    """Bytes by part, and their sum as `total`: the peak of the process on a CPU, of one card on a GPU."""
    trained = trained_parameters(shape, plan)
    parts = {
        "weights": weight_bytes(shape, plan.quantization, plan.shards),
        "adapter": 0 if plan.adapter == "full" else trained * BF16,
        "gradients": trained * BF16,
        "optimizer": round(trained * (PAGED_8BIT_BYTES if plan.optimizer == "paged_8bit" else ADAMW_BYTES)),
    }
    before = sum(parts.values()) - parts["gradients"] - parts["optimizer"]
    parts["teacher"] = 0 if plan.asked_tokens else plan.teacher_parameters * BF16
    parts["dequantized"] = dequantized_bytes(shape, plan)
    parts["activations"] = activation_bytes(shape, plan)
    parts["logits"] = logits_bytes(shape, plan, plan.supervised_tokens)
    parts["scratch"] = scratch_bytes(shape, plan)
    parts["loading"] = loading_bytes(shape, plan, sum(parts.values()))
    step = parts["activations"] + parts["logits"] + parts["scratch"]
    parts["evaluation"] = max(0, evaluation_bytes(shape, plan) - step)
    parts["slack"] = round((step + parts["evaluation"]) * (SLACK_CPU if plan.device == "cpu" else SLACK_GPU))
    parts["checkpoint"] = SAVED_COPIES * 3 * FLOAT32 * trained if plan.device == "cpu" else 0
    if plan.asked_tokens:  # it is gone before the first step: what counts is how far it reaches beyond one
        after = sum(parts.values()) - before - parts["dequantized"]
        parts["teacher"] = max(0, asking_bytes(shape, plan) - after)
    parts["process"] = PROCESS_CPU if plan.device == "cpu" else PROCESS_GPU
    return parts | {"total": sum(parts.values())}


def logits_bytes(shape: ModelShape, plan: StepPlan, learnt: int, *, trained: bool = True) -> int:
    """The tensors as wide as the vocabulary: a chunk's, and of a teacher that judges each token all of its logits."""
    step, untrained = LOGITS_BYTES[plan.loss]
    judged = learnt * BF16 if plan.loss in ("divergence", "mixture") else 0
    return (min(learnt, LOGITS_CHUNK) * (step if trained else untrained) + judged) * shape.vocabulary


def asking_bytes(shape: ModelShape, plan: StepPlan) -> int:
    """A teacher that is asked before the first step: its weights, and its distributions until targets are drawn."""
    wide = plan.asked_tokens * ASKED_BYTES + plan.asked_row * DRAWN_BYTES
    return plan.teacher_parameters * BF16 + wide * shape.vocabulary


def trained_parameters(shape: ModelShape, plan: StepPlan) -> int:
    """Parameters with a gradient: all, or the adapter's (rank times inputs and outputs; DoRA: and one an output)."""
    if plan.adapter == "full":
        return shape.parameters - shape.other_parameters
    each = sum(plan.rank * (inputs + outputs) for inputs, outputs in shape.linears.values())
    return shape.layers * (each + (_outputs(shape) if plan.adapter == "dora" else 0))


def weight_bytes(shape: ModelShape, quantization: Literal["none", "nf4"], shards: int = 1) -> int:
    """The base's weights: quantised are the linear layers of the decoder alone, the rest stays in bfloat16.

    Of several shards one has its part of the linear layers; the rest and NF4's scales stand on each card.
    """
    spread, kept = (NF4_BYTES - NF4_SCALES, NF4_SCALES) if quantization == "nf4" else (BF16, 0.0)
    rest = shape.parameters - shape.linear_parameters
    return round(shape.linear_parameters * (spread / shards + kept)) + rest * BF16


def loading_bytes(shape: ModelShape, plan: StepPlan, held: int) -> int:
    """What loading takes beyond what a step holds: a card quantises the whole base before its weights are spread."""
    if plan.shards == 1 or plan.quantization == "none":
        return 0
    return max(0, weight_bytes(shape, "nf4") - held)


def dequantized_bytes(shape: ModelShape, plan: StepPlan) -> int:
    """Weights that stand a second time: on a CPU those put together or dequantised once, on a GPU one at a time."""
    if plan.grouped and plan.quantization == "nf4":
        return shape.linear_parameters * BF16
    if plan.grouped:  # the file they were read from stays mapped beside them
        together = [shape.linears[name] for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")]
        return shape.layers * sum(inputs * outputs for inputs, outputs in together) * BF16
    return _largest(shape) * BF16 if plan.quantization == "nf4" else 0


def saved_bytes_a_token(shape: ModelShape, plan: StepPlan) -> int:
    """What autograd keeps of one token in one decoder layer."""
    hidden, queries, keys = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    full = plan.adapter == "full"
    norms = 4 if shape.family == "gemma3" else 2
    normed = 0 if not full else FLOAT32 if shape.family == "gemma3" else BF16  # for the gradient of a norm's weight
    saved = norms * (((BF16 if plan.lean else FLOAT32) + normed) * hidden + FLOAT32)
    saved += 2 * BF16 * hidden + BF16 * queries  # inputs of q, k, v, of gate, up, and of o
    saved += _attention_bytes(shape, plan, queries, keys)
    if shape.family in ("qwen3", "gemma3"):  # norms of q and k; grouped, what they read is what is kept of v
        wide = 0 if plan.grouped else BF16 if plan.lean else FLOAT32
        saved += (wide + normed) * (queries + keys) + FLOAT32 * (shape.heads + shape.kv_heads)
    gate = 3 if plan.lean and shape.family != "gemma3" else 4  # gate, up, product; else also the activated gate
    saved += gate * BF16 * shape.intermediate
    if not full:
        saved += len(shape.linears) * BF16 * plan.rank  # what stands between the adapter's two matrices
    if plan.adapter == "dora":
        saved += 2 * BF16 * _outputs(shape)  # the base's and the adapter's output, for the magnitudes' gradients
    return saved


def _attention_bytes(shape: ModelShape, plan: StepPlan, queries: int, keys: int) -> int:
    """Attention inside rows: short ones keep their weights, long ones the fused kernel's sums."""
    qk_norm = shape.family in ("qwen3", "gemma3")
    together = BF16 * (queries + 2 * keys)  # q, k, v as the one tensor that a grouped product gave
    if plan.longest_row <= LONG_ROW:
        kept = BF16 * (queries + 2 * keys) + BF16 * shape.heads * plan.row_tokens
        return kept + (together if plan.grouped and qk_norm else 0)
    kept = BF16 * (2 * queries + keys) + FLOAT32 * shape.heads
    return kept + (together if plan.grouped else BF16 * keys)


def attended_bytes_a_token(shape: ModelShape, plan: StepPlan) -> int:
    """What attention keeps of a token in one decoder layer for each row that it stands in."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    inside = BF16 * shape.heads * plan.row_tokens if plan.longest_row <= LONG_ROW else BF16 * queries
    return BF16 * (queries + 2 * keys) + inside


def activation_bytes(shape: ModelShape, plan: StepPlan) -> int:
    """Kept from forward to backward: every layer's, or with checkpointing each layer's input and one layer's all."""
    layer = saved_bytes_a_token(shape, plan)
    kept, again = shape.layers * layer, shape.layers * attended_bytes_a_token(shape, plan)
    if plan.checkpointing:
        kept, again = shape.layers * BF16 * shape.hidden + layer, attended_bytes_a_token(shape, plan)
    ends = (FLOAT32 + 2 * BF16) * shape.hidden  # the last norm, the embedding, the gradient that runs back
    return plan.computed_tokens * (kept + ends) + plan.shared_tokens * again


def evaluation_bytes(shape: ModelShape, plan: StepPlan) -> int:
    """A forward pass over validation rows, or for a reference: nothing is kept, but it may be of more tokens."""
    tokens = max(plan.held_tokens, plan.reference_tokens)
    learnt = round(tokens * plan.supervised_tokens / max(plan.micro_tokens, 1))
    inside = tokens * BF16 * (4 * shape.intermediate + 4 * shape.hidden)
    return logits_bytes(shape, plan, learnt, trained=False) + inside


def scratch_bytes(shape: ModelShape, plan: StepPlan) -> int:
    """Held within one operation: gradients on their way through a layer, norms of weights, an update's copies."""
    moving = plan.computed_tokens * BF16 * (4 * shape.intermediate + 2 * shape.hidden)
    if plan.adapter == "dora":  # the adapter's product as a matrix, from an identity, and its sum with the weight
        moving += BF16 * (4 * _largest(shape) + max(inputs for inputs, _ in shape.linears.values()) ** 2)
    if plan.adapter == "full" and shape.tied:  # the gradients of the embedding and of the head, before they are one
        moving += shape.vocabulary * shape.hidden * BF16
    gathered = 2 * BF16 * shape.linear_parameters // shape.layers if plan.shards > 1 else 0
    return moving + gathered


def _outputs(shape: ModelShape) -> int:
    return sum(outputs for _, outputs in shape.linears.values())


def _largest(shape: ModelShape) -> int:
    return max(inputs * outputs for inputs, outputs in shape.linears.values())


def described(plan: StepPlan) -> Json:
    """The plan as figures for `--json`."""
    return asdict(plan)

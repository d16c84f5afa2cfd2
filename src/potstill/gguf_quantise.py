"""Which type each tensor of a GGUF file has, and its bytes in that type.

The mixtures are llama.cpp's (`llama_tensor_get_type`): the output matrix, and in `_m` the value projections and the
down projections of some layers, have more bits. K-quants cut rows into blocks of 256; a row that is no multiple of
it has llama.cpp's own second choice, with blocks of 32. The kernels are libgguf's, byte for byte those of ggml (a
test compares them with the engine's own library), so that equal weights give equal files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from potstill.cores import usable_cores
from potstill.errors import PotstillError
from potstill.gguf_layout import Tensor, rope_row_order

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Quantisation = Literal["f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"]
QUANTISATIONS: tuple[Quantisation, ...] = get_args(Quantisation)
# The type of most tensors, and llama.cpp's name for the whole.
MOSTLY = {"f16": "F16", "q8_0": "Q8_0", "q6_k": "Q6_K", "q5_k_m": "Q5_K", "q4_k_m": "Q4_K"}
SECOND_CHOICE = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "Q8_0": "F16", "Q5_0": "F16", "Q5_1": "F16"}
SEVENTY_BILLION_LAYERS = 80  # llama.cpp knows its 70B by them, where eight heads share a value projection
ROWS = 256
F16_MAX = 65504.0


@dataclass(frozen=True, slots=True)
class Choice:
    """The type that a tensor has in the file, and the one that the mixture wanted for it."""

    kind: str
    wanted: str


def file_type(quantisation: Quantisation) -> int:
    """llama.cpp's number for the quantisation (`general.file_type`)."""
    from gguf import LlamaFileType

    return int(LlamaFileType[f"MOSTLY_{quantisation.upper()}"])


def choose(tensors: Sequence[Tensor], quantisation: Quantisation) -> list[Choice]:
    """The type of every tensor; vectors stay in F32, which llama.cpp's arithmetic expects."""
    names = {tensor.name for tensor in tensors}
    layers = sum(name.endswith(".ffn_down.weight") for name in names)
    choices = []
    for tensor in tensors:
        wanted = _wanted(tensor, quantisation, layers, tied="output.weight" not in names)
        choices.append(Choice(_possible(wanted, tensor.shape[-1]), wanted))
    return choices


def _wanted(tensor: Tensor, quantisation: Quantisation, layers: int, *, tied: bool) -> str:
    mostly = MOSTLY[quantisation]
    if len(tensor.shape) == 1:
        return "F32"
    if tensor.name == "output.weight" or (tied and tensor.name == "token_embd.weight"):
        return "Q6_K" if mostly.endswith("_K") else mostly
    if not quantisation.endswith("_k_m") or not tensor.name.startswith("blk."):
        return mostly
    _, layer, part, _ = tensor.name.split(".")
    if part in ("attn_v", "ffn_down") and more_bits(int(layer), layers):
        return "Q6_K"
    if part == "attn_v" and layers == SEVENTY_BILLION_LAYERS and mostly == "Q4_K":
        return "Q5_K"
    return mostly


def more_bits(layer: int, layers: int) -> bool:
    """Whether a layer is among the first or last eighth, or every third of the rest (llama.cpp's `use_more_bits`)."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _possible(kind: str, columns: int) -> str:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    while columns % GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0]:
        kind = SECOND_CHOICE[kind]
    return kind


def size_bytes(tensor: Tensor, kind: str) -> int:
    """Bytes of the tensor in that type."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return math.prod(tensor.shape) // block * size


def encode(tensor: Tensor, values: Any, kind: str, importance: NDArray[np.float32] | None = None) -> NDArray[Any]:
    """The tensor's bytes in a type, made by blocks of rows; raises PotstillError on a non-finite weight.

    `importance` weighs the squared error of each column; without it the kernels weigh by the weights themselves.
    """
    import numpy as np

    if len(tensor.shape) == 1:
        return _checked(_float32(values), tensor.source, math.inf) + np.float32(tensor.shift)
    order = rope_row_order(tensor.shape[0], tensor.heads) if tensor.heads else None

    def block(start: int) -> NDArray[Any]:
        rows = values[start : start + ROWS] if order is None else values[order[start : start + ROWS]]
        return _quantised(_checked(_float32(rows), tensor.source, F16_MAX), kind, importance)

    # rows are independent of each other, and the kernels let other threads run
    with ThreadPoolExecutor(usable_cores()) as pool:
        blocks = list(pool.map(block, range(0, tensor.shape[0], ROWS)))
    return np.concatenate(blocks) if len(blocks) > 1 else blocks[0]


def _quantised(rows: NDArray[np.float32], kind: str, importance: NDArray[np.float32] | None) -> NDArray[Any]:
    import libgguf
    import numpy as np
    from gguf import GGMLQuantizationType

    if kind == "F16":
        return rows.astype(np.float16)
    found: NDArray[Any] = libgguf.quantize_rows(rows, GGMLQuantizationType[kind], importance)
    return found


def _float32(values: Any) -> NDArray[np.float32]:
    """A torch or numpy tensor as contiguous float32 (numpy knows no bfloat16, so torch widens its own)."""
    import numpy as np

    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    return np.ascontiguousarray(values, dtype=np.float32)


def _checked(block: NDArray[np.float32], source: str, limit: float) -> NDArray[np.float32]:
    import numpy as np

    largest = float(np.abs(block).max(initial=0.0))
    if not (math.isfinite(largest) and largest <= limit):
        raise PotstillError(
            f"GGUF: {source} holds {largest}, expected finite weights up to {F16_MAX:g}; "
            "the training diverged, repeat it"
        )
    return block

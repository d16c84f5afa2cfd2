"""How much of what training changed is still there in a quantised file.

Quantisation rounds by more than a short training moves most weights. Where the rounding falls at random, the change
survives on average; where the weights were quantised before, it can fall back onto their old grid, and the file then
answers as the untrained base does, although each weight errs little.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.gguf_layout import layout, rope_row_order

from .merge import FolderWeights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .formats import Source

MATRICES = 24  # spread over the layers: dequantising all of a large file takes minutes and says the same


def update_kept(file: Path, source: Source) -> float | None:
    """<file - base, trained - base> / |trained - base|^2 over some of the changed matrices: 1 all, 0 nothing is kept.

    None where training changed no matrix of the base.
    """
    import numpy as np
    from gguf import GGUFReader

    from .importance import spread

    base, held = FolderWeights(source.base), {each.name: each for each in GGUFReader(file).tensors}
    matrices = [each for each in layout(source.config) if len(each.shape) == 2 and each.name.startswith("blk.")]
    above = below = 0.0
    for tensor in spread(matrices, MATRICES):
        before, trained = (_float32(weights[tensor.source]) for weights in (base, source.weights))
        change = trained - before
        below += float(np.square(change, dtype=np.float64).sum())
        written = _dequantised(held[tensor.name], tensor.shape[-1])
        if tensor.heads:
            in_order = np.empty_like(written)
            in_order[rope_row_order(len(written), tensor.heads)] = written
            written = in_order
        above += float(np.multiply(written - before, change, dtype=np.float64).sum())
    return above / below if below else None


def _float32(values: Any) -> NDArray[np.float32]:
    found: NDArray[np.float32] = values.float().numpy()
    return found


def _dequantised(tensor: Any, columns: int) -> NDArray[np.float32]:
    import libgguf
    import numpy as np

    data = np.array(tensor.data)
    if tensor.tensor_type.name in ("F16", "F32"):
        return data.astype(np.float32)
    found: NDArray[np.float32] = libgguf.dequantize_rows(data, tensor.tensor_type, columns)
    return found

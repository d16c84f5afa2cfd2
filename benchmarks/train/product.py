"""How fast this machine multiplies matrices, and how much multiplying a training step needs.

Work of a step = tokens x (4 x frozen linear weights + 6 x adapter weights) + learnt tokens x 4 x output weights:
two operations a weight and token forward, two for the gradient of the input, two more for the gradient of a weight
where it is trained. Attention between tokens, norms and the optimiser are left out, as are padding, recomputed
activations and logits of tokens that are not learnt: what a candidate does beyond the need counts as time alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CPU_SHAPES = ((1024, 576, 1536), (1024, 1536, 576), (1024, 576, 576), (2048, 2048, 2048))
CUDA_SHAPES = ((4096, 4096, 4096), (8192, 8192, 8192), (8192, 4096, 12288))
SECONDS_A_SHAPE = 0.4
# Dense bf16 operations a second that the maker names, by a part of the device's name.
NOMINAL = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "RTX 4090": 165e12}


@dataclass(frozen=True)
class Weights:
    """Numbers of weights of a LoRA student: frozen linear ones in the body, the adapter's, those of the output."""

    frozen: int
    adapter: int
    output: int

    def work(self, tokens: int, learnt: int) -> float:
        """Floating-point operations that a step over so many tokens, of them so many learnt, cannot do without."""
        return tokens * (4.0 * self.frozen + 6.0 * self.adapter) + learnt * 4.0 * self.output


def weights_of(config: Mapping[str, Any], rank: int) -> Weights:
    """Counted from a Llama or Qwen3 config.json, adapters of this rank on every linear layer but the output."""
    hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    heads = int(config["num_attention_heads"])
    head = int(config.get("head_dim") or hidden // heads)
    queries, keys = heads * head, int(config.get("num_key_value_heads") or heads) * head
    linear = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    linear += [(hidden, inner), (hidden, inner), (inner, hidden)]
    layers = int(config["num_hidden_layers"])
    return Weights(
        frozen=layers * sum(a * b for a, b in linear),
        adapter=layers * rank * sum(a + b for a, b in linear),
        output=hidden * int(config["vocab_size"]),
    )


def product_rates(device: str, seconds: float = SECONDS_A_SHAPE) -> dict[str, float]:
    """Operations a second of bf16 matrix products by shape, `rows x in x out`, best of the runs in `seconds`."""
    import torch

    rates = {}
    for rows, width, out in CUDA_SHAPES if device == "cuda" else CPU_SHAPES:
        left = torch.randn(rows, width, device=device).to(torch.bfloat16)
        right = torch.randn(out, width, device=device).to(torch.bfloat16)
        took: list[float] = []
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or len(took) < 3:
            settle(device)
            start = time.perf_counter()
            for _ in range(4):
                torch.nn.functional.linear(left, right)
            settle(device)
            took.append((time.perf_counter() - start) / 4)
        rates[f"{rows}x{width}x{out}"] = 2.0 * rows * width * out / min(took)
    return rates


def settle(device: str) -> None:
    """Wait until the device has done what was asked of it."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def nominal(device_name: str) -> float | None:
    """Dense bf16 operations a second on the data sheet of a GPU of this name; None for one not listed here."""
    return next((rate for part, rate in NOMINAL.items() if part in device_name), None)

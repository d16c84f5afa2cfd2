"""How fast this machine multiplies, and how much of that a training step uses."""

from __future__ import annotations

import time
from typing import Any

LEAST_PRODUCTS = 5


def matrix_product_flops(device: str = "cpu", *, size: int = 1024, seconds: float = 0.3) -> float:
    """Floating-point operations a second of a bf16 product of two square matrices: the best of several.

    The first one makes its kernel, which may take longer than `seconds`: it alone says nothing.
    """
    import torch

    left, right = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    best, done, end = float("inf"), 0, time.perf_counter() + seconds
    while done < LEAST_PRODUCTS or time.perf_counter() < end:
        start = time.perf_counter()
        product = left @ right
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
        done += 1
        del product
    return 2 * size**3 / best


def flops_a_token(model: Any) -> tuple[float, float]:
    """Operations of a training step for each token, and for each learnt token beside them.

    Forward 2 for each weight of a linear layer, 2 for the gradient of its input, 2 for its own where it is trained.
    Attention's products between tokens are not counted (few in short rows), nor is anything computed twice.
    """
    import torch

    head = model.get_output_embeddings()
    body = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            weights = module.in_features * module.out_features
            body += weights * (6 if module.weight.requires_grad else 4)
    learnt = 0.0 if head is None else 4.0 * head.weight.shape[0] * head.weight.shape[1]
    return body, learnt

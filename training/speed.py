"""How fast one device multiplies, and how much of that a training step uses."""

from __future__ import annotations

import time
from typing import Any

from .batch import inner_of

LEAST_PRODUCTS = 5
SIZE, CUDA_SIZE = 1024, 4096  # a GPU is done with the smaller one before the next can be launched
CUDA_TOGETHER = 4  # products between two looks at the clock, which would cost a GPU a tenth of one


def matrix_product_flops(device: str = "cpu", *, size: int | None = None, seconds: float = 0.3) -> float:
    """Floating-point operations a second of a bf16 product of two square matrices: the best of several.

    The first one makes its kernel, which may take longer than `seconds`: it alone says nothing.
    """
    import torch

    on_gpu = device != "cpu"
    size = size or (CUDA_SIZE if on_gpu else SIZE)
    together = CUDA_TOGETHER if on_gpu else 1
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    if on_gpu:
        torch.cuda.synchronize()  # or what loading has left to do would be timed
    best, done, end = float("inf"), 0, time.perf_counter() + seconds
    while done < LEAST_PRODUCTS or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(together):
            product = left @ right
        if on_gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
        done += 1
        del product
    return 2 * size**3 * together / best


def flops_a_token(model: Any) -> tuple[float, float]:
    """Operations of a training step for each token, and for each learnt token beside them.

    Forward 2 for each weight of a linear layer, 2 for the gradient of its input, 2 for its own where it is trained.
    Attention's products between tokens are not counted (few in short rows), nor is anything computed twice.
    """
    import torch

    inner = inner_of(model)
    head = inner.get_output_embeddings()
    body = 0.0
    for module in inner.get_decoder().modules():
        if isinstance(module, torch.nn.Linear):
            body += module.in_features * module.out_features * (6 if module.weight.requires_grad else 4)
    learnt = 0.0
    if head is not None:
        learnt = (6.0 if head.weight.requires_grad else 4.0) * head.weight.shape[0] * head.weight.shape[1]
    return body, learnt

"""`train.deterministic`: on a GPU, operations that add in a fixed order alone: a resumed run has the same bits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from potstill.errors import PotstillError

# read when cuBLAS starts, and at every call
FIXED_ORDER = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "FLASH_ATTENTION_DETERMINISTIC": "1"}


@contextmanager
def repeatable(asked: bool) -> Iterator[None]:
    """Where asked, only operations that give the same bits again while the block lasts; torch names one that has none.

    To be entered before CUDA computes; raises PotstillError when it has, with cuBLAS free to choose its workspace.
    """
    if not asked:
        yield
        return
    import torch

    filled: Any = torch.utils.deterministic
    if torch.cuda.max_memory_allocated() and not os.environ.get("CUBLAS_WORKSPACE_CONFIG"):
        raise PotstillError(
            "train.deterministic: CUDA has computed in this process without a fixed workspace; start the command again "
            "with CUBLAS_WORKSPACE_CONFIG=:4096:8 in its environment"
        )
    for name, value in FIXED_ORDER.items():
        os.environ.setdefault(name, value)
    before = torch.are_deterministic_algorithms_enabled(), filled.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    filled.fill_uninitialized_memory = False  # a help in search of faults, which costs a pass over new memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        filled.fill_uninitialized_memory = before[1]

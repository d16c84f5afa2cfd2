"""How many processor cores this process may use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """The cores this process may be scheduled on, at least 1: fewer than the machine's under taskset or a cpuset.

    A container's CPU quota is not seen here: it limits time, not the cores that the time is taken on.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1

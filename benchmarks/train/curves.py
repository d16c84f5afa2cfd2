"""Loss curves over the same rows in the same order: how far apart they are, and a picture of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def smoothed(losses: Sequence[float], window: int = 5) -> list[float]:
    """Means over `window` steps, the last of them this one; of fewer at the beginning."""
    return [sum(part) / len(part) for at in range(len(losses)) if (part := losses[max(0, at + 1 - window) : at + 1])]


def deviation(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Largest difference of the smoothed curves, relative to theirs; None unless both have the same steps."""
    if not ours or len(ours) != len(theirs):
        return None
    pairs = zip(smoothed(ours), smoothed(theirs), strict=True)
    return max(abs(a - b) / abs(b) for a, b in pairs)


def plot(curves: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draw the curves, each step and smoothed, into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for at, (name, losses) in enumerate(curves.items()):
        steps = range(1, len(losses) + 1)
        axes.plot(steps, losses, color=f"C{at}", alpha=0.3, linewidth=0.8)
        axes.plot(steps, smoothed(losses), color=f"C{at}", linewidth=4 - 2.5 * min(at, 1), label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("loss a learnt token")
    axes.set_title("Same rows, same order, same adapter weights at the start")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)

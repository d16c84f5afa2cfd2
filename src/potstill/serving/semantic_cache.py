"""A request that means the same as an earlier one gets its answer, with a bounded error rate (`caches/semantic.py`).

Never across tenants or versions; one turn, greedy, no tools. Which answers are the same is the task's own equality.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill.serving.steps import Step

if TYPE_CHECKING:
    from potstill.serving.server import Server


def make(server: Server) -> Step | None:
    """Raises RecipeError where the package of the embeddings is not installed."""
    cache = server.settings.cache
    if cache is None or cache.semantic is None:
        return None
    from potstill.serving.caches.semantic import SemanticCache

    return SemanticCache(server, cache.semantic)

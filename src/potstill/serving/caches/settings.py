"""The settings of `serve.cache`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from potstill.recipe import Section

Shared = Annotated[
    bool,
    Field(description="kept in serve.state too (SQLite, or Redis where set): survives restarts, shared by workers"),
]
Timeout = Annotated[float, Field(gt=0, le=10, description="of one Redis command; past it the cache knows nothing")]


class ExactCacheSettings(Section):
    """Answers to requests that are the same in everything that an answer depends on."""

    ttl_s: Annotated[float, Field(gt=0, description="age from which an answer is not given any more")] = 3600.0
    max_entries: Annotated[int, Field(ge=1, description="kept in memory; as many again in SQLite")] = 100_000
    max_bytes: Annotated[int, Field(ge=1)] = 100_000_000
    any_temperature: Annotated[bool, Field(description="keep answers of requests that sample, too")] = False
    truncated: Annotated[bool, Field(description="keep answers that ended at their longest, too")] = False
    wait_s: Annotated[
        float, Field(gt=0, description="longest wait for the answer to an identical request before one more asks")
    ] = 10.0
    shared: Shared = False
    timeout_s: Timeout = 0.1


class SemanticCacheSettings(Section):
    """Answers to requests that mean the same, with an error rate that is held to `delta` by learning what is the same.

    `bound` says of what share wrong answers are counted: of all `answers` (the promise of the vCache paper), or of the
    `hits` alone, which is stricter and gives fewer hits.
    """

    delta: Annotated[float, Field(gt=0, lt=0.5, description="share of wrong answers that is tolerated")] = 0.01
    bound: Literal["answers", "hits"] = "hits"
    ttl_s: Annotated[float, Field(gt=0)] = 86_400.0
    max_entries: Annotated[int, Field(ge=1, le=1_000_000, description="over all tenants, 1 KB and the answer each")] = (
        100_000
    )
    max_chars: Annotated[int, Field(ge=1, description="a longer text is not looked up")] = 2000
    multi_turn: Annotated[bool, Field(description="also where earlier turns are the same, word for word")] = False
    shared: Shared = False
    timeout_s: Timeout = 0.1


class CacheSettings(Section):
    """Neither is on unless named; `{exact: {}}` takes the defaults."""

    exact: ExactCacheSettings | None = None
    semantic: SemanticCacheSettings | None = None

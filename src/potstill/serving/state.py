"""Where a server keeps what outlives a request: a folder of SQLite files, or Redis for several machines."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from potstill.errors import RecipeError
from potstill.recipe import PathText, Section
from potstill.serving.names import VariableName

if TYPE_CHECKING:
    from redis.asyncio import Redis


class StateSettings(Section):
    """What outlives a request and is shared by the workers of a server: budgets, keys, caches, batches."""

    dir: Annotated[PathText | None, Field(description="folder of the SQLite files; unset: in the work folder")] = None
    redis: Annotated[
        VariableName | None,
        Field(description="NAME of the variable with the Redis URL; set: shared by several machines, SQLite unused"),
    ] = None

    def connect(self, timeout_s: float = 0.25) -> Redis | None:
        """A client of the running event loop, None where SQLite is used; raises RecipeError for a variable not set.

        Every command ends within `timeout_s`, answered or not: what then holds is the step's own rule.
        """
        if self.redis is None:
            return None
        url = os.environ.get(self.redis, "")
        if not url:
            raise RecipeError([f"serve.state.redis: environment variable {self.redis} is not set; export the URL"])
        from redis.asyncio import Redis

        try:
            client: Redis = Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
        except ValueError as fault:
            raise RecipeError([f"serve.state.redis: {self.redis} holds no Redis URL ({fault})"]) from fault
        return client

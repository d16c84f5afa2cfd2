"""Where a server keeps what outlives a request: a folder of SQLite files, or Redis for several machines."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import Field

from potstill.errors import RecipeError
from potstill.recipe import PathText, Section
from potstill.serving.names import VariableName

if TYPE_CHECKING:
    from redis import Redis as BlockingRedis
    from redis.asyncio import Redis

Client = TypeVar("Client")


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
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        # The client by itself would try again three times, seconds apart.
        return self._client(Redis, timeout_s, Retry(NoBackoff(), 0))

    def connect_blocking(self, timeout_s: float = 1.0) -> BlockingRedis | None:
        """The same for a thread of its own or a command."""
        if self.redis is None:
            return None
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        return self._client(Redis, timeout_s, Retry(NoBackoff(), 0))

    def _client(self, kind: type[Client], timeout_s: float, retry: object) -> Client:
        url = os.environ.get(self.redis or "", "")
        if not url:
            raise RecipeError([f"serve.state.redis: environment variable {self.redis} is not set; export the URL"])
        maker: Any = kind
        try:
            client: Client = maker.from_url(
                url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=retry
            )
        except ValueError as fault:
            raise RecipeError([f"serve.state.redis: {self.redis} holds no Redis URL ({fault})"]) from fault
        return client

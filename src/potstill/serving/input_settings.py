"""How much a request may be: the `input:` part of `serve:`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from potstill.recipe import Section


class InputSettings(Section):
    """Bounds that are checked before anything is computed. The size of a body is `max_body_bytes`."""

    max_depth: Annotated[int, Field(ge=8, le=200, description="levels of a body's JSON")] = 64
    max_messages: Annotated[int, Field(ge=1)] = 2000
    max_tools: Annotated[int, Field(ge=0)] = 128
    max_stops: Annotated[int, Field(ge=0)] = 16
    max_choices: Annotated[int, Field(ge=1, le=128, description="the most that `n` may ask for")] = 8
    max_schema_bytes: Annotated[int, Field(ge=100, description="of one JSON Schema in a request")] = 64_000
    read_timeout_s: Annotated[
        float,
        Field(gt=0, description="for a request's head, and for its body (and a second more for every 16 kB of it)"),
    ] = 6.0

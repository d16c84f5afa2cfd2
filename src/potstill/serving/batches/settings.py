"""The `batches:` part of `serve:`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from potstill.recipe import Section


class BatchSettings(Section):
    """Bounds hold for each owner (tenant, or key) by itself."""

    share: Annotated[float, Field(gt=0, le=1, description="of the slots that batches may take; at least one")] = 0.5
    max_file_bytes: Annotated[int, Field(ge=1)] = 100_000_000
    max_lines: Annotated[int, Field(ge=1, description="requests in one batch")] = 50_000
    max_files: Annotated[int, Field(ge=1)] = 500
    max_stored_bytes: Annotated[int, Field(ge=1)] = 2_000_000_000
    window_h: Annotated[float, Field(gt=0, description="hours until what is not answered yet expires")] = 24.0
    keep_days: Annotated[float, Field(gt=0, description="until a file is deleted")] = 30.0

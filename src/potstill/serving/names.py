"""Types of names in settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

VariableName = Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$", description="NAME of an environment variable")]

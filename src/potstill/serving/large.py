"""The large model behind the student: whom it was distilled from, asked where the student should not answer alone."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import Field

from potstill.errors import RecipeError
from potstill.recipe import Section
from potstill.serving.backends import Address
from potstill.serving.names import VariableName
from potstill.serving.prices import PriceSettings


class LargeSettings(Section):
    """Any address that speaks OpenAI's API."""

    url: Annotated[str, Field(description="with its /v1, as https://api.openai.com/v1")]
    model: str
    key: Annotated[VariableName | None, Field(description="NAME of the environment variable with its key")] = None
    price: PriceSettings = PriceSettings()
    max_tokens: Annotated[
        int, Field(ge=1, description="of an answer where the client set none; what a model thinks first counts")
    ] = 2048
    timeout_s: Annotated[float, Field(gt=0)] = 30.0

    def address(self) -> Address:
        """Raises RecipeError for an address that is none, or a key that is not set."""
        headers = {}
        if self.key is not None:
            secret = os.environ.get(self.key, "")
            if not secret:
                raise RecipeError([f"serve.large.key: environment variable {self.key} is not set; export it"])
            headers["authorization"] = f"Bearer {secret}"
        try:
            return Address(self.url, self.model, headers)
        except ValueError as fault:
            raise RecipeError([f"serve.large.url: {fault}"]) from fault

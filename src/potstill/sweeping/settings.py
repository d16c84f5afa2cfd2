"""The `sweep:` section of a recipe: which keys of `train` are searched, over which values, by what."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from potstill.recipe import Section

Number = int | float
Scalar = bool | int | float | str | None


class Space(Section):
    """The values of one key: exactly one of `range`, `log` (both ends included, whole when both are) or `choice`."""

    range: Annotated[tuple[Number, Number] | None, Field(description="[low, high], drawn evenly")] = None
    log: Annotated[tuple[Number, Number] | None, Field(description="[low, high], drawn evenly by order")] = None
    choice: Annotated[list[Scalar] | None, Field(description="two or more values")] = None

    @model_validator(mode="after")
    def _is_one_space(self) -> Space:
        given = [name for name in ("range", "log", "choice") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"found {' and '.join(given) or 'none'}, expected one of range, log, choice")
        if self.choice is not None:
            if len({(type(each), each) for each in self.choice}) != len(self.choice) or len(self.choice) < 2:
                raise ValueError(f"choice is {self.choice}, expected two or more values, all different")
        else:
            low, high = self.ends
            if not low < high or (self.log is not None and low <= 0):
                expected = "0 < low < high" if self.log is not None else "low < high"
                raise ValueError(f"{given[0]} is [{low}, {high}], expected {expected}")
        return self

    @property
    def kind(self) -> Literal["range", "log", "choice"]:
        return "choice" if self.choice is not None else "log" if self.log is not None else "range"

    @property
    def ends(self) -> tuple[Number, Number]:
        """Low and high of `range` or `log`."""
        ends = self.range or self.log
        assert ends is not None
        return ends

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are drawn."""
        return self.choice is None and all(isinstance(end, int) for end in self.ends)


class SweepSettings(Section):
    """Section `sweep`. Keys are written dotted and whole, as on the command line: `train.lora.rank`."""

    keys: Annotated[dict[str, Space], Field(default_factory=dict, description="space of each key, as train.lora.rank")]
    trials: Annotated[int, Field(ge=1, le=1000, description="in all, the recipe as it stands included")] = 12
    metric: Annotated[Literal["score", "loss"], Field(description="on the validation split")] = "score"
    prune: Annotated[bool, Field(description="stop a trial that falls behind three of four others")] = True
    seed: int = 0

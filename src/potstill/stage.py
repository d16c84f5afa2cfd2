"""What every stage is given and what it gives back.

A stage's run file holds `Settings` (its section of the recipe), `NOUN` (the folder that it makes), `NEEDS` (the
folders that it reads), and two functions:

    inputs(settings, shared) -> list[Input]                    outside files it reads, with digests (traffic, gold)
    main(settings, shared, upstream, out) -> facts             does the work, writes files into `out`

The pipeline names the folder, skips what is unchanged, and writes the manifest (with `facts`) last. Where the settings
hold `sign` (a `potstill.signing.SignSettings`), it signs the folder after that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from potstill.manifest import Input
from potstill.records import Json
from potstill.tasks import Task, task_from

Noun = Literal["dataset", "adapter", "artifact", "report", "version"]


@dataclass(frozen=True, slots=True)
class Shared:
    """The four keys that every stage sees, resolved: absolute paths, labels and schema read in.

    `task_definition` is what `Task.describe` gives; `work_dir` is the folder of this recipe's noun folders; `tracked`
    says that runs are logged to `tracking_uri` (the pipeline sets it; `--no-track` unsets it).
    """

    name: str
    task_definition: Json
    base_model: str
    work_dir: Path
    tracking_uri: str
    recipe_path: Path | None = None
    tracked: bool = False

    def task(self) -> Task:
        return task_from(self.task_definition)

    @property
    def cache_dir(self) -> Path:
        """Converted bases and the like, shared by all recipes of the working folder."""
        return self.work_dir.parent / "cache"


Upstream = Mapping[Noun, Path]


class Stage(Protocol):
    """The module form of a stage (its run file)."""

    NOUN: Noun
    NEEDS: tuple[Noun, ...]
    Settings: Any

    def inputs(self, settings: Any, shared: Shared) -> list[Input]: ...

    def main(self, settings: Any, shared: Shared, upstream: Upstream, out: Path) -> Json: ...

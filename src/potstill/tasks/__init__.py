"""Task kinds, one file each; `task_from` builds the one that a recipe or a manifest describes."""

from __future__ import annotations

from potstill.errors import RecipeError
from potstill.records import Json
from potstill.tasks.base import Constraint, Metric, Parsed, Task
from potstill.tasks.classification import Classification
from potstill.tasks.extraction import Extraction
from potstill.tasks.generation import Generation
from potstill.tasks.sql import SqlDatabase
from potstill.tasks.tool_calls import ToolCalls

__all__ = ["KINDS", "Constraint", "Metric", "Parsed", "Task", "task_from"]

KINDS = ("classification", "extraction", "tool_calls", "generation")


def task_from(definition: Json) -> Task:
    """The task that `definition` (what `Task.describe` gives) stands for; raises RecipeError for none."""
    kind = definition.get("kind")
    if kind == "classification":
        return Classification(tuple(definition["labels"]))
    if kind == "extraction":
        return Extraction(definition["schema"])
    if kind == "tool_calls":
        return ToolCalls()
    if kind == "generation":
        return Generation(sql=SqlDatabase(**definition["sql"]) if definition.get("sql") else None)
    raise RecipeError([f"task.kind: found {kind!r}, expected one of {', '.join(KINDS)}"])

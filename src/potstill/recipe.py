"""A recipe: one YAML file a task, read into one small settings model a stage, every fault reported at once.

    recipe.yaml:11:3: train.packign: not a setting (did you mean packing?)

`load_recipe` is given the settings model of every section by its caller (the command line), because the library
imports no stage. Paths in the file are relative to it; paths on the command line to where the command stands.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from potstill.errors import RecipeError
from potstill.recipe_faults import described, dotted, where
from potstill.records import Json
from potstill.safe_names import safe_name
from potstill.stage import Shared
from potstill.tasks import task_from
from potstill.yaml_positions import (
    KeyPath,
    LocatedStr,
    Positioned,
    apply_overrides,
    place_values,
    read_positioned,
)

M = TypeVar("M", bound=BaseModel)
SHARED_KEYS = ("name", "task", "base_model", "work_dir", "tracking_uri")


def _absolute(value: Any) -> Any:
    if not isinstance(value, str) or "://" in value or value.startswith("package:"):
        return value
    folder = value.folder if isinstance(value, LocatedStr) else Path.cwd()
    return str(folder / Path(value).expanduser())


PathText = Annotated[str, BeforeValidator(_absolute)]
"""A path or address in a recipe: made absolute by where it was written."""


def _model_spec(value: Any) -> Any:
    """A relative folder or .gguf beside the recipe becomes absolute; package:... and hub ids stay."""
    if not isinstance(value, str) or value.startswith("package:"):
        return value
    path = Path(_absolute(value))
    return str(path) if path.suffix == ".gguf" or path.is_dir() or value.startswith(".") else str(value)


ModelSpec = Annotated[str, BeforeValidator(_model_spec)]
"""A model in a recipe: a folder, a .gguf file, package:MODULE/FILE.gguf, or a hub id."""


class Section(BaseModel):
    """Base of every section's settings: unknown keys fail, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SqlSettings(Section):
    """Generated answers are queries, judged by what they return from this SQLite file (read-only, bounded)."""

    database: PathText
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 5.0
    max_rows: Annotated[int, Field(ge=1)] = 10_000


class TaskSettings(Section):
    """What is asked of the model. `labels` is a list or a file with one a line; `schema` an object or a file."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    kind: Literal["classification", "extraction", "tool_calls", "generation"]
    labels: list[str] | PathText | None = None
    schema_: Annotated[dict[str, Any] | PathText | None, Field(alias="schema")] = None
    sql: SqlSettings | None = None

    def definition(self) -> Json:
        """The definition with files read in; raises RecipeError when it does not fit the kind."""
        labels, schema = self.labels, self.schema_
        needs = {"classification": "labels", "extraction": "schema"}.get(self.kind)
        if (needs == "labels") != (labels is not None) or (needs == "schema") != (schema is not None):
            raise RecipeError([f"task: {self.kind} needs {needs or 'neither labels nor schema'}"])
        if self.sql is not None and (self.kind != "generation" or not Path(self.sql.database).is_file()):
            missing = f"{self.sql.database} does not exist"
            what = missing if self.kind == "generation" else "is for kind generation alone"
            raise RecipeError([f"task.sql: {what}; give an SQLite file to task.sql.database of a generation task"])
        if isinstance(labels, str):
            labels = [line.strip() for line in _text_of("task.labels", labels).splitlines() if line.strip()]
        if isinstance(schema, str):
            try:
                schema = json.loads(_text_of("task.schema", schema))
            except ValueError as fault:
                raise RecipeError([f"task.schema: {self.schema_} is not JSON: {fault}"]) from fault
        definition: Json = {"kind": self.kind}
        definition |= {"labels": labels} if labels is not None else {}
        definition |= {"schema": schema} if schema is not None else {}
        definition |= {"sql": self.sql.model_dump()} if self.sql is not None else {}
        return task_from(definition).describe()


def _text_of(key: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as fault:
        raise RecipeError([f"{key}: {path}: {fault.strerror}"]) from fault


class SharedSettings(Section):
    """The keys that every stage sees. `work_dir` is relative to where the command stands unless written here."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$"), AfterValidator(safe_name)]
    task: TaskSettings
    base_model: str
    work_dir: PathText = "work"
    tracking_uri: str | None = None


@dataclass(frozen=True)
class Recipe:
    """A recipe as validated: shared keys, one settings model a section, and what was passed as it was passed."""

    path: Path
    shared: Shared
    sections: Mapping[str, BaseModel]
    passed: Mapping[str, Json]
    overrides: Sequence[str] = field(default_factory=tuple)


def recipe_model(sections: Mapping[str, type[BaseModel]]) -> type[BaseModel]:
    """The whole recipe as one model: the shared keys, then a section a stage, each with its defaults."""
    fields: dict[str, Any] = {
        key: (model, model.model_construct() if _has_no_required(model) else ...) for key, model in sections.items()
    }
    with warnings.catch_warnings():
        # `register` is also a method of pydantic's metaclass; as a field it is ours to name.
        warnings.filterwarnings("ignore", message='Field name "register"')
        return create_model("Recipe", __base__=SharedSettings, **fields)


def _has_no_required(model: type[BaseModel]) -> bool:
    return not any(each.is_required() for each in model.model_fields.values())


def recipe_json_schema(sections: Mapping[str, type[BaseModel]]) -> Json:
    """JSON Schema of a recipe, for completion in editors."""
    schema = recipe_model(sections).model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Potstill recipe"
    return schema


def load_recipe(
    path: Path,
    overrides: Sequence[str],
    sections: Mapping[str, type[BaseModel]],
    instead: Mapping[KeyPath, tuple[Any, KeyPath]] | None = None,
) -> Recipe:
    """Read and validate; raises RecipeError with every fault, each at its place.

    `instead` sets keys to values that are written elsewhere in the recipe (a sweep's); faults are named there.
    """
    document = read_positioned(path)
    if not isinstance(document.data, dict):
        raise RecipeError([f"{path}:1:1: expected a mapping with name, task and base_model"])
    origins, faults = apply_overrides(document, overrides)
    for at, wrong in place_values(document, instead or {}):
        faults.append(f"{where(path, document, at, origins)}: {dotted(at)}: {wrong}")
    faults += [f"{where(path, document, at, origins)}: {dotted(at)}: given twice" for at in document.duplicates]
    whole: Any = None
    try:
        whole = recipe_model(sections).model_validate(document.data)
    except ValidationError as fault:
        faults += described(fault, path, document, origins, recipe_model(sections))
    definition = _definition(path, document, origins, faults)
    if faults or whole is None or definition is None:
        raise RecipeError(sorted(set(faults), key=_place))
    work = Path(whole.work_dir).resolve()
    shared = Shared(
        name=whole.name,
        task_definition=definition,
        base_model=_model_spec(document.data["base_model"]),
        work_dir=work / whole.name,
        tracking_uri=whole.tracking_uri or f"sqlite:///{work}/mlflow.db",
        recipe_path=path.resolve(),
    )
    return Recipe(
        path,
        shared,
        {key: getattr(whole, key) for key in sections},
        {key: document.data.get(key) or {} for key in sections},
        tuple(overrides),
    )


def settings_of(overrides: Sequence[str], model: type[M]) -> M:
    """One section from `key=value` words alone; raises RecipeError with every fault."""
    document = Positioned({})
    origins, faults = apply_overrides(document, overrides)
    found: M | None = None
    try:
        found = model.model_validate(document.data)
    except ValidationError as fault:
        faults += described(fault, Path("command line"), document, origins, model)
    if faults or found is None:
        raise RecipeError(faults)
    return found


def place_of(path: Path, overrides: Sequence[str], at: KeyPath) -> str:
    """`file:line:column` of a key, or the override that set it."""
    document = read_positioned(path)
    origins, _ = apply_overrides(document, overrides)
    return where(path, document, at, origins)


def _definition(path: Path, document: Positioned, origins: Mapping[KeyPath, str], faults: list[str]) -> Json | None:
    """The task with its files read in, judged even when other sections are at fault."""
    try:
        return TaskSettings.model_validate(document.data.get("task")).definition()
    except ValidationError:
        return None  # already reported by the whole recipe's validation
    except RecipeError as fault:
        for line in fault.faults:
            key = line.partition(":")[0]
            faults.append(f"{where(path, document, tuple(key.split('.')), origins)}: {line}")
        return None


def _place(fault: str) -> tuple[int, int, str]:
    parts = fault.split(": ")[0].rsplit(":", 2)
    line, column = parts[-2:] if len(parts) == 3 else ("", "")
    return (int(line), int(column), fault) if line.isdigit() and column.isdigit() else (10**9, 0, fault)

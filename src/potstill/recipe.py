"""A recipe: one YAML file a task, read into one small settings model a stage, every fault reported at once.

    recipe.yaml:11:3: train.packign: not a setting (did you mean packing?)

`load_recipe` is given the settings model of every section by its caller (the command line), because the library
imports no stage. Paths in the file are relative to it; paths on the command line to where the command stands.
"""

from __future__ import annotations

import difflib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from potstill.errors import RecipeError
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
        faults.append(f"{_where(path, document, at, origins)}: {_dotted(at)}: {wrong}")
    faults += [f"{_where(path, document, at, origins)}: {_dotted(at)}: given twice" for at in document.duplicates]
    whole: Any = None
    try:
        whole = recipe_model(sections).model_validate(document.data)
    except ValidationError as fault:
        for each in _to_the_point(fault.errors(), document.data):
            faults.append(_describe(path, document, origins, each, recipe_model(sections)))
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


def place_of(path: Path, overrides: Sequence[str], at: KeyPath) -> str:
    """`file:line:column` of a key, or the override that set it."""
    document = read_positioned(path)
    origins, _ = apply_overrides(document, overrides)
    return _where(path, document, at, origins)


def _definition(path: Path, document: Positioned, origins: Mapping[KeyPath, str], faults: list[str]) -> Json | None:
    """The task with its files read in, judged even when other sections are at fault."""
    try:
        return TaskSettings.model_validate(document.data.get("task")).definition()
    except ValidationError:
        return None  # already reported by the whole recipe's validation
    except RecipeError as fault:
        for line in fault.faults:
            key = line.partition(":")[0]
            faults.append(f"{_where(path, document, tuple(key.split('.')), origins)}: {line}")
        return None


def _describe(
    path: Path, document: Positioned, origins: Mapping[KeyPath, str], error: Any, model: type[BaseModel]
) -> str:
    at = _existing(error, document.data)
    where = _where(path, document, at, origins)
    kind, found = error["type"], error.get("input")
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(at[-1]), _keys_at(model, at[:-1]), n=1, cutoff=0.5)
        return f"{where}: {_dotted(at)}: not a setting" + (f" (did you mean {near[0]}?)" if near else "")
    if kind == "missing":
        return f"{_where(path, document, at[:-1], origins)}: {_dotted(at)}: missing"
    if kind == "literal_error":
        near = difflib.get_close_matches(str(found), re.findall(r"'([^']*)'", error["ctx"]["expected"]), n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return f"{where}: {_dotted(at)}: found {found!r}, expected {error['ctx']['expected']}{hint}"
    shown = "" if isinstance(found, dict | list) else f"found {found!r}; "
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {_dotted(at)}: {shown}{message[:1].lower()}{message[1:]}"


def _to_the_point(errors: Sequence[Any], data: Any) -> list[Any]:
    """Without "expected a number" for a mapping when another error says what in that mapping is wrong."""
    places = [_existing(each, data) for each in errors]
    return [
        each
        for each, at in zip(errors, places, strict=True)
        if not (each["type"].endswith("_type") and isinstance(each["input"], dict))
        or not any(len(other) > len(at) and other[: len(at)] == at for other in places)
    ]


def _existing(error: Any, data: Any) -> KeyPath:
    """pydantic's location without what it adds of its own (union members): only keys that stand in the data."""
    loc = error["loc"]
    at: list[str | int] = []
    for place, word in enumerate(loc):
        inside = (isinstance(data, dict) and word in data) or (
            isinstance(data, list) and isinstance(word, int) and word < len(data)
        )
        if inside:
            at.append(word)
            data = data[word]
        elif place == len(loc) - 1 and error["type"] == "missing":
            at.append(word)  # a missing key: named, though it does not stand there
    return tuple(at)


def _keys_at(model: Any, at: KeyPath) -> list[str]:
    """The settings that exist at a place of the recipe."""
    in_mapping = False
    for word in at:
        if isinstance(word, int) or in_mapping:
            in_mapping = False
            continue
        info = model.model_fields.get(word)
        inner = _model_in(info.annotation) if info else None
        if inner is None:
            return []
        model = inner
        in_mapping = info is not None and get_origin(info.annotation) is dict  # the next word is a key of its own
    return [info.alias or name for name, info in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for each in getattr(annotation, "__args__", ()):
        found = _model_in(each)
        if found is not None:
            return found
    return None


def _where(path: Path, document: Positioned, at: KeyPath, origins: Mapping[KeyPath, str]) -> str:
    at = document.written_at(at)
    for length in range(len(at), 0, -1):
        if at[:length] in origins:
            return f"command line: {origins[at[:length]]}"
    for length in range(len(at), -1, -1):
        if at[:length] in document.positions:
            line, column = document.positions[at[:length]]
            return f"{path}:{line}:{column}"
    return f"{path}:1:1"


def _dotted(at: KeyPath) -> str:
    return ".".join(str(word) for word in at) or "recipe"


def _place(fault: str) -> tuple[int, int, str]:
    parts = fault.split(": ")[0].rsplit(":", 2)
    line, column = parts[-2:] if len(parts) == 3 else ("", "")
    return (int(line), int(column), fault) if line.isdigit() and column.isdigit() else (10**9, 0, fault)

"""What `pyfunc` callers hand over, as requests; and answers as the table that they get back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from potstill.errors import RecipeError
from potstill.records import Json

if TYPE_CHECKING:
    import pandas as pd

    from potstill.pyfunc import Answer

COLUMNS = ("messages", "text", "tools")
EXPECTED = (
    "expected a DataFrame with a column `messages` or `text` (and `tools`), a text, a list of texts, one conversation "
    "as a list of messages, a list of conversations, or bodies of chat completions ({'messages': [...], ...})"
)


def requests_of(given: Any) -> list[Json]:
    """One chat-completion body a row; raises RecipeError for what cannot be read as rows at all.

    A text becomes one user message. What stands inside a row is checked later, row by row, as the server does.
    """
    if hasattr(given, "columns"):
        return _from_frame(given)
    given = _plain(given)
    if isinstance(given, str | Mapping):
        return [_request(given)]
    if not isinstance(given, list):
        raise RecipeError([f"model_input: found {type(given).__name__}, {EXPECTED}"])
    if given and all(isinstance(each, Mapping) and "role" in each for each in given):
        return [{"messages": given}]
    return [_request(each) for each in given]


def _request(row: Any) -> Json:
    if isinstance(row, str):
        return {"messages": [{"role": "user", "content": row}]}
    if isinstance(row, list):
        return {"messages": row}
    if not isinstance(row, Mapping) or ("messages" in row) == ("text" in row):
        found = f"a row with {sorted(row)}" if isinstance(row, Mapping) else f"a row of type {type(row).__name__}"
        raise RecipeError([f"model_input: found {found}, {EXPECTED}"])
    rest = {key: value for key, value in row.items() if key not in ("text", "model") and not _missing(value)}
    return rest | (_request(row["text"]) if "text" in row else {})


def _from_frame(frame: pd.DataFrame) -> list[Json]:
    """Columns besides those that are read may hold anything: ids, gold answers, times."""
    read = [name for name in COLUMNS if name in frame.columns]
    if not {"messages", "text"} & set(read):
        if len(frame.columns) != 1:
            raise RecipeError([f"model_input: found the columns {[str(each) for each in frame.columns]}, {EXPECTED}"])
        return [_request(each) for each in _plain(frame.iloc[:, 0])]
    columns = {name: _plain(frame[name]) for name in read}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [_request({key: value for key, value in row.items() if not _missing(value)}) for row in rows]


def _plain(value: Any) -> Any:
    """Arrays and series as lists, all the way down: Parquet and Spark hand messages over as arrays."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _missing(value: Any) -> bool:
    """None, or the NaN that pandas puts where a row has nothing."""
    return value is None or (isinstance(value, float) and value != value)


def table_of(answers: Sequence[Answer], index: Any = None) -> pd.DataFrame:
    """A row an answer, in order, with the columns of Answer; `index` is that of the rows asked for."""
    import pandas as pd

    from potstill.pyfunc import Answer

    rows = [{name: getattr(each, name) for name in Answer.__dataclass_fields__} for each in answers]
    frame = pd.DataFrame(rows, columns=list(Answer.__dataclass_fields__), index=index, dtype=object)
    types = {"valid": "boolean", "prompt_tokens": "Int64", "completion_tokens": "Int64"}
    return frame.astype(types)

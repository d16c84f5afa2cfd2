"""The traces of an MLflow experiment as JSON records, page by page.

An address is `mlflow+` and the tracking address, `#` and the experiment's name or number:
`mlflow+sqlite:////abs/path/mlflow.db#support` or `mlflow+http://host:5000#support`. Reading changes nothing: a database
that is not there is not made, and the process's own tracking address stays as it is.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError, RecipeError
from potstill.records import Json, canonical_json

from .tracking import NOISY, without_password

PREFIX = "mlflow+"
PAGE_TRACES = 50  # a trace may hold megabytes: what is in memory at once is one page
ANSWER_TIMEOUT_S = 10.0
_EXPECTED = "expected mlflow+sqlite:////abs/path/mlflow.db#EXPERIMENT or mlflow+http://host:port#EXPERIMENT"


@dataclass(frozen=True, slots=True)
class TraceAddress:
    """Where traces are: a tracking address, and an experiment's name or number."""

    uri: str
    experiment: str

    def __str__(self) -> str:
        return f"{PREFIX}{without_password(self.uri)}#{self.experiment}"


def is_trace_address(text: str) -> bool:
    """Whether a source's path names the traces of an MLflow experiment rather than files."""
    return text.startswith(PREFIX)


def parse_trace_address(text: str) -> TraceAddress:
    """The parts of an address; raises RecipeError for one of another form."""
    uri, _, experiment = text.removeprefix(PREFIX).partition("#")
    known = uri.startswith(("sqlite:////", "http://", "https://"))
    if not is_trace_address(text) or not known or not experiment:
        raise RecipeError([f"{without_password(text)}: not the address of an MLflow experiment, {_EXPECTED}"])
    return TraceAddress(uri, experiment)


def trace_records(address: str, page_traces: int = PAGE_TRACES) -> Iterator[Json]:
    """Every trace with its spans and assessments, oldest first (by id where the time is equal), one page in memory.

    Traces that are added meanwhile come last. Raises RecipeError for an unknown experiment or database, and
    PotstillError when the server does not answer.
    """
    where = parse_trace_address(address)
    client = _client(where)
    experiment = _experiment_id(client, where)
    token: str | None = None
    while True:
        with_spans = _page(client, where, experiment, page_traces, token)
        for trace in with_spans:
            yield trace.to_dict()
        token = with_spans.token
        if not token:
            return


def traces_digest(address: str) -> str:
    """The sha256 of all traces in order, assessments included: equal digests mean equal records."""
    digest = hashlib.sha256()
    for record in trace_records(address):
        digest.update(canonical_json(record).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _client(where: TraceAddress) -> Any:
    """An `mlflow.MlflowClient` of that address, once it is known that something is there."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    if where.uri.startswith("sqlite:"):
        path = Path(where.uri.removeprefix("sqlite:///"))
        if not path.is_file():  # MLflow would make an empty one
            raise RecipeError([f"{where}: no database {path}; give the address of one that holds traces"])
    else:
        _check_answers(where)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=where.uri)


def _check_answers(where: TraceAddress) -> None:
    """Ask the server once: MLflow's own client tries again for minutes."""
    import httpx

    try:
        httpx.get(where.uri.rstrip("/") + "/health", timeout=ANSWER_TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as fault:
        raise PotstillError(
            f"{where}: MLflow does not answer ({fault}); start the server, or correct the address"
        ) from fault


def _experiment_id(client: Any, where: TraceAddress) -> str:
    """The number of the experiment; raises RecipeError naming those that are there."""
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_experiment_by_name(where.experiment)
        if found is None and where.experiment.isdecimal():
            found = next((each for each in _experiments(client) if each.experiment_id == where.experiment), None)
        if found is not None and found.lifecycle_stage == "active":
            return str(found.experiment_id)
        names = ", ".join(sorted(each.name for each in _experiments(client))[:10]) or "none"
    except MlflowException as fault:
        raise PotstillError(f"{where}: MLflow refused the experiment ({fault.message})") from fault
    state = "is deleted; restore it" if found is not None else "does not exist"
    raise RecipeError([f"{where}: experiment {where.experiment!r} {state}; there are: {names}"])


def _experiments(client: Any) -> list[Any]:
    return list(client.search_experiments(max_results=1000))


def _page(client: Any, where: TraceAddress, experiment: str, size: int, token: str | None) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client.search_traces(
            locations=[experiment], max_results=size, order_by=["timestamp_ms ASC"], page_token=token
        )
    except MlflowException as fault:
        raise PotstillError(f"{where}: MLflow did not give the next traces ({fault.message})") from fault

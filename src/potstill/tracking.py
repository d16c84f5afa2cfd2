"""The MLflow side of a run: address, experiment, a run a stage, dataset inputs, a logged model a candidate.

The registry (versions, aliases, promotion) stands in `tracking_versions`, the choice of what a stage folder tells
MLflow in `tracking_stages`. Only these three import mlflow, always inside functions: its import costs 2 to 3 s.
No MLflow object leaves them. Nothing is pickled: what is logged is text, Parquet, safetensors and GGUF.
"""

from __future__ import annotations

import getpass
import logging
import math
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from potstill.addresses import credentials_aside, without_passwords
from potstill.addresses import without_password as without_password
from potstill.errors import PotstillError
from potstill.manifest import Manifest
from potstill.progress import say
from potstill.records import Json
from potstill.safe_names import safe_name

DIGEST_DIGITS = 32  # MLflow keeps at most 36 characters of a dataset's digest
LIVE = "potstill.live"  # the tag of a run that grows while its stage works (see tracking_live)
METRICS_A_BATCH = 1000  # MLflow's limits for one call
PARAMS_A_BATCH = 100
NOISY = ("alembic", "mlflow.store.db.utils", "mlflow.store.model_registry.abstract_store", "mlflow.tracking.fluent")


@dataclass(frozen=True, slots=True)
class Tracking:
    """An opened tracking address; `artifact_root` is None where a server decides where artifacts go."""

    uri: str
    artifact_root: Path | None


@dataclass(frozen=True, slots=True)
class DatasetUse:
    """A dataset that a run read: our content digest, where it stood, and what it was read for."""

    name: str
    digest: str
    path: str
    context: str

    @property
    def short(self) -> str:
        return self.digest[:DIGEST_DIGITS]


@dataclass(frozen=True, slots=True)
class Point:
    """One metric value: at a training step, or about a logged model on a dataset."""

    key: str
    value: float
    step: int = 0
    time_ms: int | None = None
    model_id: str | None = None
    dataset: DatasetUse | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes two runs the same one: experiment, stage, content digest and settings key."""

    experiment: str
    stage: str
    digest: str
    key: str = ""


def default_uri(work_dir: Path) -> str:
    """The SQLite address used when a recipe names none; absolute, so that no command makes a second database."""
    return f"sqlite:///{work_dir.resolve() / 'mlflow.db'}"


def open_tracking(uri: str) -> Tracking:
    """Connect, creating an SQLite database where there is none (some 7 s of migrations, once).

    Sets the process's tracking address, since MLflow resolves `models:/` sources by it. Telemetry and the loading of
    pickles are switched off.
    """
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # standard output belongs to `--json`
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    path = _database(uri)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            say(f"MLflow: making {path} (first use of a database takes some seconds)")
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    import mlflow

    uri = credentials_aside(uri)
    tracking = Tracking(uri, path.parent / "mlartifacts" if path is not None else None)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        client(tracking).search_experiments(max_results=1)
    except Exception as fault:
        raise PotstillError(
            f"{without_password(uri)}: MLflow does not answer ({without_passwords(str(fault))}); start the server, or "
            "correct `tracking_uri`"
        ) from None  # its traceback would show the address whole
    return tracking


def _database(uri: str) -> Path | None:
    if not uri.startswith("sqlite:///"):
        return None
    path = Path(uri.removeprefix("sqlite:///"))
    if not path.is_absolute():
        raise PotstillError(f"{uri}: a relative address, expected sqlite:////absolute/path/mlflow.db")
    return path


def client(tracking: Tracking) -> Any:
    """An `mlflow.MlflowClient`; for the tracking modules alone."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking.uri, registry_uri=tracking.uri)


def experiment_id(tracking: Tracking, name: str) -> str:
    """The id of the recipe's experiment, made on first use with its artifacts beside the database."""
    from mlflow.exceptions import MlflowException

    api = client(tracking)
    found = api.get_experiment_by_name(name)
    if found is None:
        root = tracking.artifact_root
        where = None if root is None else experiment_folder(root, name).as_uri()
        try:
            tags = {"potstill.recipe": name, "mlflow.experimentKind": "custom_model_development"}
            return str(api.create_experiment(name, artifact_location=where, tags=tags))
        except MlflowException:  # somebody else made it in between
            found = api.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        api.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def experiment_folder(root: Path, name: str) -> Path:
    """Where an experiment's artifacts stand beside the database."""
    return root / safe_name(quote(name, safe="", errors="surrogateescape"), "experiment")


def log_stage(
    tracking: Tracking,
    experiment: str,
    stage: str,
    manifest: Manifest,
    folder: Path,
    *,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    artifacts: Sequence[str] = (),
    datasets: Sequence[DatasetUse] = (),
    points: Sequence[Point] = (),
    tags: Mapping[str, str] | None = None,
) -> str:
    """The id of the one run of this stage on this content; logged now, unless a finished one is there.

    A run that grew while the stage worked is completed. `artifacts` are paths inside `folder`. `points` holds curves,
    and metrics about a logged model.
    """
    identity = Identity(experiment, stage, manifest.digest, manifest.key)
    live = find_live_run(tracking, identity)
    if found := find_run(tracking, identity):
        if live:
            client(tracking).delete_run(live)  # the stage was done again and made the same
        return found
    with _new_run(tracking, identity, manifest, {**_origin_tags(manifest, folder), **(tags or {})}, live) as run_id:
        curves = missing_points(tracking, run_id, points) if live else list(points)
        log_points(tracking, run_id, [Point(key, value) for key, value in metrics.items()] + curves)
        _log_params(tracking, run_id, params)
        _log_datasets(tracking, run_id, datasets)
        for name in artifacts:
            client(tracking).log_artifact(run_id, str(folder / name), str(Path(name).parent) if "/" in name else None)
    return run_id


def find_run(tracking: Tracking, identity: Identity) -> str | None:
    """The finished run with this identity, or None."""
    wanted = [
        f"tags.stage = '{identity.stage}'",
        f"tags.`potstill.digest` = '{identity.digest}'",
        f"tags.`potstill.key` = '{identity.key}'" if identity.key else "",
        "attributes.status = 'FINISHED'",
    ]
    found = client(tracking).search_runs(
        [experiment_id(tracking, identity.experiment)], " and ".join(filter(None, wanted)), max_results=1
    )
    return str(found[0].info.run_id) if found else None


def find_live_run(tracking: Tracking, identity: Identity) -> str | None:
    """The run that a stage in work has, whatever its status (a kill leaves it RUNNING); by its key alone."""
    if not identity.key:
        return None
    wanted = f"tags.`{LIVE}` = 'true' and tags.stage = '{identity.stage}' and tags.`potstill.key` = '{identity.key}'"
    found = client(tracking).search_runs([experiment_id(tracking, identity.experiment)], wanted, max_results=1)
    return str(found[0].info.run_id) if found else None


def missing_points(tracking: Tracking, run_id: str, points: Sequence[Point]) -> list[Point]:
    """The points at steps where the run has none of that name yet."""
    api = client(tracking)
    known = {
        key: {each.step for each in api.get_metric_history(run_id, metric_key(key))}
        for key in {each.key for each in points}
    }
    return [each for each in points if each.step not in known[each.key]]


@contextmanager
def _new_run(
    tracking: Tracking, identity: Identity, manifest: Manifest, tags: Mapping[str, str], live: str | None = None
) -> Iterator[str]:
    """A run that is FINISHED only when the block ends well, so that a half-logged one is never taken for it.

    A `live` one is taken for it, and is live no more once it is whole.
    """
    api = client(tracking)
    ended = epoch_ms(manifest.created)
    wall_s = manifest.facts.get("wall_s")
    name = f"{tags.get('potstill.candidate', identity.stage)}-{identity.key or identity.digest[:10]}"
    tags = {**tags, "stage": identity.stage, "potstill.digest": identity.digest, "potstill.key": identity.key}
    if live is not None:
        for key, value in tags.items():
            api.set_tag(live, key, value)
        run_id = live
    else:
        made = api.create_run(
            experiment_id(tracking, identity.experiment),
            start_time=ended - int(1000 * wall_s) if ended and isinstance(wall_s, (int, float)) else ended,
            tags=tags,
            run_name=name,
        )
        run_id = str(made.info.run_id)
    try:
        yield run_id
    except BaseException:
        api.set_terminated(run_id, "FAILED")
        raise
    if live is not None:
        api.delete_tag(run_id, LIVE)  # last: until then, what failed is completed the next time
    api.set_terminated(run_id, "FINISHED", ended)


def _origin_tags(manifest: Manifest, folder: Path) -> dict[str, str]:
    tags = {
        "mlflow.user": getpass.getuser(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": manifest.command or "potstill",
        "potstill.folder": str(folder),
        "potstill.version": manifest.potstill,
    }
    if commit := manifest.code.get("commit"):
        tags |= {"mlflow.source.git.commit": commit, "potstill.dirty": str(manifest.code.get("dirty")).lower()}
    by_role: dict[str, list[str]] = {}
    for each in manifest.inputs:
        by_role.setdefault(each.role, []).append(each.digest)
    return tags | {f"potstill.input.{metric_key(role)}": ",".join(digests) for role, digests in by_role.items()}


def log_points(tracking: Tracking, run_id: str, points: Sequence[Point]) -> None:
    """Log metric values in MLflow's batches; values that are not finite are left out."""
    from mlflow.entities import Metric

    now = int(1000 * time.time())
    metrics = [
        Metric(
            metric_key(each.key),
            float(each.value),
            each.time_ms or now,
            each.step,
            model_id=each.model_id,
            dataset_name=each.dataset.name if each.dataset else None,
            dataset_digest=each.dataset.short if each.dataset else None,
            run_id=run_id,
        )
        for each in points
        if math.isfinite(each.value)
    ]
    for at in range(0, len(metrics), METRICS_A_BATCH):
        client(tracking).log_batch(run_id, metrics=metrics[at : at + METRICS_A_BATCH])


def _log_params(tracking: Tracking, run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    entries = [Param(metric_key(key), str(value)) for key, value in params.items()]
    for at in range(0, len(entries), PARAMS_A_BATCH):
        client(tracking).log_batch(run_id, params=entries[at : at + PARAMS_A_BATCH])


def _log_datasets(tracking: Tracking, run_id: str, datasets: Sequence[DatasetUse]) -> None:
    """Dataset inputs of a run, under our digest: a path's own hash would say nothing of its content."""
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    entries = []
    for each in datasets:
        with warnings.catch_warnings():  # MLflow knows local files under two equal names, and says so each time
            warnings.simplefilter("ignore", UserWarning)
            source = resolve_dataset_source(each.path)
        dataset = MetaDataset(source, name=each.name, digest=each.short)  # type: ignore[abstract]
        tags = [InputTag("mlflow.data.context", each.context), InputTag("potstill.digest", each.digest)]
        entries.append(DatasetInput(dataset._to_mlflow_entity(), tags))
    if entries:
        client(tracking).log_inputs(run_id, datasets=entries)


def logged_model(
    tracking: Tracking,
    experiment: str,
    name: str,
    digest: str,
    *,
    source_run: str | None,
    params: Mapping[str, str] | None = None,
) -> str:
    """The id of the logged model of a candidate whose files stand outside MLflow; one for each name and digest."""
    import mlflow

    where = experiment_id(tracking, experiment)
    wanted = f"tags.`potstill.digest` = '{digest}' and tags.`potstill.candidate` = '{name}'"
    found = client(tracking).search_logged_models([where], filter_string=wanted, max_results=1)
    if found:
        return str(found[0].model_id)
    made = mlflow.create_external_model(
        name=model_name(name),
        source_run_id=source_run,
        tags={"potstill.candidate": name, "potstill.digest": digest},
        params=dict(params or {}),
        model_type="potstill-candidate",
        experiment_id=where,
    )
    return str(made.model_id)


def link_models(tracking: Tracking, run_id: str, *, read: Sequence[str] = (), made: Sequence[str] = ()) -> None:
    """Show logged models as a run's inputs or outputs."""
    from mlflow.entities import LoggedModelInput, LoggedModelOutput

    if read:
        client(tracking).log_inputs(run_id, models=[LoggedModelInput(model_id=each) for each in read])
    if made:
        client(tracking).log_outputs(run_id, models=[LoggedModelOutput(model_id=each, step=0) for each in made])


def model_name(candidate: str) -> str:
    """A candidate's name as MLflow allows it: `artifact:gguf-q8_0` becomes `artifact-gguf-q8_0`."""
    return re.sub(r"[/:.%\"']", "-", candidate)


def metric_key(name: str) -> str:
    """A metric, parameter or tag name as MLflow allows it."""
    return re.sub(r"[^\w./ -]", "-", name).strip("./") or "unnamed"


def epoch_ms(created: str) -> int | None:
    """Milliseconds since 1970 of an ISO 8601 time; None when there is none."""
    return int(datetime.fromisoformat(created).timestamp() * 1000) if created else None


def flat_numbers(facts: Json, prefix: str = "", widest: int = 30) -> dict[str, float]:
    """Every finite number in nested facts under its dotted name; tables wider than `widest` are left out."""
    found: dict[str, float] = {}
    for key, value in facts.items():
        if isinstance(value, dict) and len(value) <= widest:
            found |= flat_numbers(value, f"{prefix}{key}.", widest)
        elif isinstance(value, (bool, int, float)) and math.isfinite(value):
            found[f"{prefix}{key}"] = float(value)
    return found

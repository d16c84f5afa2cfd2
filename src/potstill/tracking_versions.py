"""The registry: versions with their evidence, what their aliases are, and whether one may become champion.

A version's source is a folder in MLflow with `adapter/`, `artifact/` and `report/` exactly as the stages left them
(manifests included, so that each can be verified where it lies) and `dataset/` with the dataset's manifest and card,
so that a version leads back to its traffic even where the working folder is gone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import ManifestMismatch, RecipeError
from potstill.manifest import MANIFEST, Manifest, code_state, read_manifest, sha256_json
from potstill.progress import say
from potstill.records import Json
from potstill.safe_names import safe_name
from potstill.tracking import Point, Tracking, client, experiment_id, log_points, model_name, without_password
from potstill.tracking_evidence import link_prompt, record_prompt, rule_of
from potstill.tracking_journal import ENDING, last_accepted, patiently
from potstill.tracking_pyfunc import log_pyfunc
from potstill.tracking_stages import candidate_metrics, datasets_read, gate_word, shipped_candidate
from potstill.tracking_trust import check_trust, distrust

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
CARRIED = ("adapter", "artifact", "report")
PRUNED = "pruned"  # the tag of a version whose files were given up by `potstill prune`
DIGESTS_IN_TAG = 50


@dataclass(frozen=True, slots=True)
class Evidence:
    """The four finished folders that a version is made of."""

    dataset: Path
    adapter: Path
    artifact: Path
    report: Path


@dataclass(frozen=True, slots=True)
class Version:
    """A registered version as it stands now; `tags` hold its lineage, without the `potstill.` in front."""

    model: str
    version: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    run_id: str | None

    @property
    def uri(self) -> str:
        return f"models:/{self.model}/{self.version}"


@dataclass(frozen=True, slots=True)
class ResolvedVersion:
    """A version with its verified artifact folder on this machine; `root` holds the rest of its evidence."""

    version: Version
    artifact: Path
    root: Path
    digest: str


def register_version(
    tracking: Tracking, model: str, experiment: str, evidence: Evidence, *, run_id: str, alias: str = CANDIDATE
) -> Version:
    """The version of exactly this artifact with exactly this report; made now unless it is there. Moves `alias`."""
    manifests = {noun: read_manifest(getattr(evidence, noun), noun, verify=False) for noun in ("dataset", *CARRIED)}
    tags = lineage_tags(experiment, evidence, manifests)
    found = _same_version(tracking, model, tags)
    if found is None:
        from mlflow.exceptions import MlflowException

        api = client(tracking)
        prompt = record_prompt(tracking, experiment, rule_of(evidence.dataset))
        tags |= {"prompt": prompt} if prompt else {}
        model_id = _stored_model(tracking, model, experiment, evidence, manifests, tags, run_id)
        if prompt:
            link_prompt(tracking, prompt, run_id=run_id, model_id=model_id)
        try:
            api.create_registered_model(model, tags={"potstill.recipe": experiment})
        except MlflowException as fault:
            if fault.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        made = api.create_model_version(
            model, f"models:/{model_id}", run_id=run_id, model_id=model_id,
            tags={f"potstill.{key}": value for key, value in tags.items()},
        )  # fmt: skip
        found = str(made.version)
    client(tracking).set_registered_model_alias(model, alias, found)
    return _version(tracking, model, found)


def lineage_tags(experiment: str, evidence: Evidence, manifests: Mapping[str, Manifest]) -> dict[str, str]:
    """What a version says of where it comes from: digests of every step, the gate, recipe and commit."""
    report: Json = json.loads((evidence.report / "report.json").read_text())
    traffic = [each.digest for each in manifests["dataset"].inputs if each.role.split(".")[0] == "traffic"]
    judged = [each.digest for each in manifests["report"].inputs if each.role == "artifact"]
    code = manifests["artifact"].code or code_state()
    return {
        "recipe": experiment,
        "traffic": ",".join(traffic) if len(traffic) <= DIGESTS_IN_TAG else sha256_json(traffic),
        **{noun: manifests[noun].digest for noun in ("dataset", *CARRIED)},
        "report_on": ",".join(judged),
        "gate": gate_word(report),
        "shipped": shipped_candidate(report) or "",
        "commit": str(code.get("commit")),
        "dirty": str(code.get("dirty")).lower(),
    }


def _same_version(tracking: Tracking, model: str, tags: Mapping[str, str]) -> str | None:
    for each in client(tracking).search_model_versions(f"name = '{_quoted(model)}'"):
        same = all(each.tags.get(f"potstill.{noun}") == tags[noun] for noun in ("artifact", "report"))
        if same and f"potstill.{PRUNED}" not in each.tags:
            return str(each.version)
    return None


def _quoted(model: str) -> str:
    if re.search(r"[/:'\"]", model):
        raise RecipeError([f"{model!r}: a registered model's name holds no slash, colon or quote"])
    if model.endswith(ENDING):
        raise RecipeError([f"{model!r}: names that end in {ENDING} are those of journals; choose another name"])
    return model


def _stored_model(
    tracking: Tracking, model: str, experiment: str, evidence: Evidence, manifests: Mapping[str, Manifest],
    tags: Mapping[str, str], run_id: str,
) -> str:  # fmt: skip
    """The id of a logged model that holds the version's files; it becomes READY when the last one is copied."""

    api = client(tracking)
    stored = api.create_logged_model(
        experiment_id(tracking, experiment),
        name=model_name(model),
        source_run_id=run_id,
        tags={f"potstill.{key}": value for key, value in tags.items()},
        model_type="potstill-version",
    )
    try:
        for noun in CARRIED:
            say(f"MLflow: copying {noun} of {model}")
            api.log_model_artifacts(stored.model_id, str(getattr(evidence, noun)), noun)
        with tempfile.TemporaryDirectory() as scratch:
            for name in (MANIFEST, "card.md"):
                if (evidence.dataset / name).is_file():
                    shutil.copy2(evidence.dataset / name, scratch)
            api.log_model_artifacts(stored.model_id, scratch, "dataset")
        log_pyfunc(tracking, str(stored.model_id), manifests["artifact"], tags["shipped"])
        _log_shipped_metrics(tracking, experiment, evidence, manifests["report"], str(stored.model_id), run_id)
    except BaseException:
        api.finalize_logged_model(stored.model_id, "FAILED")
        raise
    api.finalize_logged_model(stored.model_id, "READY")
    return str(stored.model_id)


def _log_shipped_metrics(
    tracking: Tracking, experiment: str, evidence: Evidence, manifest: Manifest, model_id: str, run_id: str
) -> None:
    report: Json = json.loads((evidence.report / "report.json").read_text())
    shipped = shipped_candidate(report)
    datasets = datasets_read(experiment, manifest, evidence.report)
    metrics = candidate_metrics(report["candidates"][shipped]) if shipped else {}
    dataset = datasets[0] if datasets else None
    log_points(tracking, run_id, [Point(k, v, model_id=model_id, dataset=dataset) for k, v in metrics.items()])


@contextmanager
def _known(what: str, advice: str) -> Iterator[None]:
    """Turn MLflow's own 'does not exist' into a sentence that says what to do."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as fault:
        if fault.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise RecipeError([f"{what}: not in the registry ({fault.message}); {advice}"]) from fault


def _version(tracking: Tracking, model: str, number: str) -> Version:
    with _known(f"models:/{model}/{number}", "`potstill status` lists what is registered"):
        found = client(tracking).get_model_version(model, number)
    tags = {k.removeprefix("potstill."): v for k, v in found.tags.items() if k.startswith("potstill.")}
    return Version(model, str(found.version), tags, tuple(sorted(found.aliases)), found.run_id or None)


def aliases(tracking: Tracking, model: str) -> dict[str, str]:
    """Version numbers by alias; `champion` and `previous` as the journal has them, which MLflow's may lag behind."""
    found, born = stored_aliases(tracking, model)
    last = last_accepted(tracking, model)
    if last is None or last.born != born:
        return found
    moved = {CHAMPION: last.version, PREVIOUS: last.previous}
    return {alias: version for alias, version in (found | moved).items() if version is not None}


def stored_aliases(tracking: Tracking, model: str) -> tuple[dict[str, str], int]:
    """Version numbers by alias as MLflow has them, and when the registered model was made (ms since 1970)."""
    with _known(model, "run `potstill register` first"):
        found = patiently(lambda: client(tracking).get_registered_model(_quoted(model)))
    return {str(alias): str(version) for alias, version in found.aliases.items()}, int(found.creation_timestamp)


def find_version(tracking: Tracking, uri: str) -> Version:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/3` names; raises RecipeError when there is none."""
    match = re.fullmatch(r"models:/([^/@:]+)(?:@([\w-]+)|/(\d+))", uri)
    if match is None:
        raise RecipeError([f"{uri!r}: not a version, expected models:/NAME@ALIAS or models:/NAME/3"])
    model, alias, number = match.groups()
    if alias is not None:
        known = aliases(tracking, model)
        if alias not in known:
            have = ", ".join(f"{name} ({version})" for name, version in sorted(known.items())) or "none"
            raise RecipeError([f"{uri}: {model} has no alias {alias!r}; it has {have}"])
        number = known[alias]
    return _version(tracking, model, number)


def version_folder(tracking: Tracking, version: Version, cache: Path | None = None) -> Path:
    """The folder with a version's files: in place where MLflow's artifacts are local, else downloaded to `cache`."""
    from mlflow.artifacts import download_artifacts

    where = client(tracking).get_model_version_download_uri(version.model, version.version)
    if where.startswith(("file:", "/")):
        return Path(download_artifacts(artifact_uri=where, tracking_uri=tracking.uri))
    kept = kept_download(tracking, version.model, version.version, where, cache)
    assert kept is not None
    root = kept.parent
    if not kept.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        say(f"MLflow: downloading {version.uri}")
        with tempfile.TemporaryDirectory(dir=root, suffix=".partial") as scratch:
            download_artifacts(artifact_uri=version.uri, dst_path=scratch, tracking_uri=tracking.uri)
            Path(scratch).rename(kept)
            Path(scratch).mkdir()  # what TemporaryDirectory takes away
    return kept


def kept_download(tracking: Tracking, model: str, number: str, where: str, cache: Path | None = None) -> Path | None:
    """Where a version's downloaded files stand, if they were downloaded; None where they lie on this machine anyway."""
    if where.startswith(("file:", "/")):
        return None
    address = sha256_json([without_password(tracking.uri), where])[:12]
    return (cache or _default_cache()) / safe_name(f"{model}-{number}-{address}", "model")


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "potstill" / "versions"


def resolve_model_uri(tracking: Tracking, uri: str, cache: Path | None = None) -> ResolvedVersion:
    """The version with its artifact folder, verified against its manifest and against the version's own tag."""
    version = find_version(tracking, uri)
    if PRUNED in version.tags:
        raise ManifestMismatch(
            f"{version.uri}: its files were given up by `potstill prune` ({version.tags[PRUNED]}); register it again"
        )
    root = version_folder(tracking, version, cache)
    manifest = read_manifest(root / "artifact", "artifact")
    if manifest.digest != version.tags.get("artifact"):
        raise ManifestMismatch(
            f"{version.uri}: the stored artifact is {manifest.digest[:12]}, the version was registered with "
            f"{version.tags.get('artifact', 'none')[:12]}; register again, and do not serve this one"
        )
    check_trust(tracking, version, root / "artifact")
    return ResolvedVersion(version, root / "artifact", root, manifest.digest)


def download_version(tracking: Tracking, uri: str, dest: Path) -> Path:
    """A copy of a version's artifact folder at `dest` (which must not exist), verified after copying."""
    resolved = resolve_model_uri(tracking, uri)
    shutil.copytree(resolved.artifact, dest)
    read_manifest(dest, "artifact")
    return dest


def refusals(tracking: Tracking, version: Version) -> list[str]:
    """Why this version may not become champion, from its files rather than its tags; empty when it may."""
    if PRUNED in version.tags:
        return [f"its files were given up by `potstill prune` ({version.tags[PRUNED]}); register it again"]
    root = version_folder(tracking, version)
    try:
        found = {noun: read_manifest(root / noun, noun) for noun in ("artifact", "report")}
        report: Json = json.loads((root / "report" / "report.json").read_text())
    except (ManifestMismatch, OSError, ValueError) as fault:
        return [f"its stored files cannot be trusted: {fault}"]
    reasons = [
        f"the stored {noun} is {found[noun].digest[:12]}, registered was {version.tags.get(noun, 'none')[:12]}"
        for noun in ("artifact", "report")
        if found[noun].digest != version.tags.get(noun)
    ]
    judged = [each.digest for each in found["report"].inputs if each.role == "artifact"]
    if found["artifact"].digest not in judged:
        about = ", ".join(digest[:12] for digest in judged) or "no exported file"
        reasons.append(f"its report judged {about}, but the artifact that ships is {found['artifact'].digest[:12]}")
    elif ",".join(judged) != version.tags.get("report_on"):
        reasons.append("its report's manifest names another artifact than it did when it was registered")
    elif not (shipped_candidate(report) or "").startswith("artifact:"):
        reasons.append(f"its gate judged {shipped_candidate(report) or 'nothing'}, and not an exported file")
    if gate_word(report) != "passed":
        given: Sequence[Any] = report.get("gate", {}).get("reasons") or ["the report gives no reason"]
        reasons += [f"its gate failed: {each}" for each in given]
    return reasons + distrust(tracking, version, root / "artifact")

"""Report, artifact and adapter in; a registered version out, with its runs, logged models and lineage in MLflow.

    potstill register RECIPE [register.alias=shadow] [register.require_gate=true]

Every stage folder becomes one run of the recipe's experiment, every candidate of the report a run and a logged model
of its own, and the exported file a version of the recipe's registered model under the alias `candidate`. Doing it
again logs nothing twice. `potstill promote` then makes a version champion, if its report allows it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from potstill.errors import GateRefused, ManifestMismatch
from potstill.manifest import (
    Input,
    Manifest,
    code_state,
    library_versions,
    read_manifest,
    sha256_json,
    write_atomically,
)
from potstill.progress import say
from potstill.recipe import Section
from potstill.records import Json
from potstill.safe_names import safe_name
from potstill.signing import TrustSettings, fingerprint_of, refuse_untrusted
from potstill.stage import Noun, Shared, Upstream

if TYPE_CHECKING:
    from potstill.tracking import Tracking
    from potstill.tracking_versions import Version

NOUN: Noun = "version"
NEEDS: tuple[Noun, ...] = ("dataset", "adapter", "artifact", "report")
VERSION = "version.json"


class Settings(Section):
    """How a version enters the registry."""

    model: str | None = Field(
        default=None, pattern=r"^[\w.-]+$", description="registered model; the recipe's name if not given"
    )
    alias: str = Field(default="candidate", pattern=r"^[A-Za-z][\w-]*$", description="alias that the new version gets")
    require_gate: bool = Field(default=False, description="refuse to register a version whose gate failed")
    trust: TrustSettings | None = Field(default=None, description="key that has to have signed the artifact")

    @field_validator("model")
    @classmethod
    def _also_a_folder(cls, model: str | None) -> str | None:
        return model and safe_name(model, "register.model")  # captured traffic goes to a folder of this name

    @field_validator("alias")
    @classmethod
    def _not_by_registering(cls, alias: str) -> str:
        if alias in ("champion", "previous"):
            raise ValueError(f"{alias!r} is moved by `potstill promote` alone, which checks the gate; use `candidate`")
        return alias


def inputs(settings: Settings, shared: Shared) -> list[Input]:
    """The registry itself: another address needs its own version. Another trusted key asks for the signature again."""
    from potstill.tracking import without_password

    where = without_password(shared.tracking_uri)
    trust = settings.trust
    keys = [Input("trusted key", trust.public_key, fingerprint_of(Path(trust.public_key)))] if trust else []
    return [Input("tracking", where, sha256_json(where)), *keys]


def main(settings: Settings, shared: Shared, upstream: Upstream, out: Path) -> Json:
    """Log the runs, the candidates and the version; write version.json. Raises GateRefused under `require_gate`."""
    from potstill.tracking import link_models, open_tracking, without_password
    from potstill.tracking_stages import record_candidates, record_folder
    from potstill.tracking_trust import remember_trust

    manifests = {noun: read_manifest(upstream[noun], noun, verify=False) for noun in NEEDS}
    said = refuse_untrusted(upstream["artifact"], settings.trust)
    gate = _gate(upstream["report"])
    if settings.require_gate and gate.get("passed") is not True:
        raise GateRefused(f"{upstream['report'].name} was not registered", gate.get("reasons") or ["its gate failed"])
    tracking = open_tracking(shared.tracking_uri)
    say(f"MLflow: {without_password(shared.tracking_uri)}, experiment {shared.name}; artifact {said}")
    runs: dict[str, str] = {noun: record_folder(tracking, shared.name, upstream[noun]) for noun in NEEDS}
    digests = {noun: manifest.digest for noun, manifest in manifests.items()} | _base_digest(manifests["adapter"])
    models = record_candidates(tracking, shared.name, upstream["report"], runs, digests)
    runs["version"] = _register_run(tracking, settings, shared, manifests, out)
    link_models(tracking, runs["version"], read=list(models.values()))
    version = _register(tracking, settings, shared, upstream, runs["version"])
    remember_trust(tracking, version, settings.trust)
    facts: Json = {
        "model": version.model,
        "version": version.version,
        "uri": version.uri,
        "aliases": list(version.aliases),
        "gate": gate,
        "run_ids": runs,
        "logged_models": models,
        "tracking_uri": without_password(shared.tracking_uri),
        "signature": said,
        "lineage": dict(version.tags),
    }
    write_atomically(out / VERSION, json.dumps(facts, indent=1, ensure_ascii=False).encode())
    say(f"registered {version.uri} as {settings.alias}; gate {version.tags.get('gate')}")
    return facts


def _gate(report: Path) -> Json:
    found: Json = json.loads((report / "report.json").read_text()).get("gate", {})
    return found


def _base_digest(adapter: Manifest) -> dict[str, str]:
    base = adapter.facts.get("base")
    if not isinstance(base, dict) or "digest" not in base:
        raise ManifestMismatch(
            f"adapter manifest: facts.base names no digest (found {base!r}), so the base has no identity; train again"
        )
    return {"base": str(base["digest"])}


def _register_run(
    tracking: Tracking, settings: Settings, shared: Shared, manifests: Mapping[Noun, Manifest], out: Path
) -> str:
    """The run of this stage; its identity is what it registers, since its own manifest is written after it."""
    from potstill.tracking import log_stage

    sources = tuple(Input(noun, "", manifest.digest) for noun, manifest in manifests.items())
    used = settings.model_dump(mode="json")
    standing = Manifest(
        kind=NOUN,
        digest=sha256_json([shared.name, used, [[each.role, each.digest] for each in sources]]),
        files={},
        settings_passed=used,
        settings_used=used,
        inputs=sources,
        facts={},
        code=code_state(),
        versions=library_versions(),
        command="potstill register",
    )
    return log_stage(tracking, shared.name, "register", standing, out, params=used, metrics={})


def _register(tracking: Tracking, settings: Settings, shared: Shared, upstream: Upstream, run_id: str) -> Version:
    from potstill.tracking_versions import Evidence, register_version

    evidence = Evidence(*(upstream[noun] for noun in NEEDS))
    return register_version(
        tracking, settings.model or shared.name, shared.name, evidence, run_id=run_id, alias=settings.alias
    )

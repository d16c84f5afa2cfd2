"""Promises of the registry about signatures: whoever registers, promotes, resolves or serves asks for the key."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from evaluation import register
from potstill import cli
from potstill.errors import ManifestMismatch, PotstillError, Untrusted
from potstill.manifest import Input, read_manifest, sha256_file, write_manifest
from potstill.records import Json
from potstill.signature import SIGNATURE
from potstill.signing import sign_folder
from potstill.stage import Noun, Shared, Upstream
from potstill.tracking import Tracking, client, default_uri, open_tracking
from potstill.tracking_trust import TRUST
from potstill.tracking_versions import aliases, resolve_model_uri
from tests.unit.signed_folders import FILES, TAMPERINGS, Signed, signed, write_artifact


@dataclass(frozen=True)
class Registry:
    """A tracking database, keys, and versions on demand."""

    work: Path
    tracking: Tracking
    made: Signed

    def version(self, name: str, *, key: Path | None, weights: bytes = b"1", **settings: Any) -> tuple[Json, Upstream]:
        """A registered version whose artifact is signed with `key`."""
        root = self.work / name / weights.decode()
        traffic = self.work / "traffic.jsonl"
        traffic.write_text("the traffic\n")
        dataset = folder(
            root / "dataset", "dataset", [Input("traffic", str(traffic), sha256_file(traffic))], {"card.md": "#"}
        )
        facts = {"base": {"spec": "base", "digest": "b" * 64}}
        adapter = folder(root / "adapter", "adapter", [standing(dataset)], {"contract.json": "{}"}, facts)
        artifact = write_artifact(root / "artifact", FILES | {"model-q8_0.gguf": FILES["model-q8_0.gguf"] + weights})
        if key is not None:
            sign_folder(artifact, key)
        inputs = [standing(dataset), standing(adapter), standing(artifact)]
        report = folder(root / "report", "report", inputs, {"report.json": json.dumps(REPORT), "report.html": "<p>"})
        upstream: dict[Noun, Path] = {"dataset": dataset, "adapter": adapter, "artifact": artifact, "report": report}
        shared = Shared(name, {"kind": "generation"}, "base", self.work / name, self.tracking.uri)
        out = root / "version"
        out.mkdir()
        return register.main(register.Settings.model_validate(settings), shared, upstream, out), upstream

    def stored(self, facts: Json) -> Path:
        """The artifact as it lies in the registry."""
        return resolve_model_uri(self.tracking, facts["uri"]).artifact

    def command(self, *words: str) -> int:
        return cli.main([*words, "--tracking-uri", self.tracking.uri])


SCORE = {"metric": "accuracy", "value": 0.9, "low": 0.8, "high": 1.0, "n": 40}
REPORT: Json = {
    "candidates": {"artifact:gguf-q8_0": {"quality": SCORE, "agreement": SCORE, "valid_rate": 1.0, "latency_ms": {}}},
    "comparisons": [],
    "gate": {"passed": True, "reasons": [], "candidate": "artifact:gguf-q8_0"},
}


def folder(path: Path, kind: str, inputs: list[Input], files: dict[str, str], facts: Json | None = None) -> Path:
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name).write_text(text)
    write_manifest(path, kind, settings_passed={}, settings_used={}, inputs=inputs, facts=facts or {}, key=path.name)
    return path


def standing(path: Path) -> Input:
    manifest = read_manifest(path)
    return Input(manifest.kind, str(path), manifest.digest)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    work = tmp_path_factory.mktemp("work")
    return Registry(work, open_tracking(default_uri(work)), signed(work / "signed"))


def trusting(registry: Registry) -> Json:
    return {"trust": {"public_key": str(registry.made.keys.public)}}


def test_a_signed_version_goes_the_whole_way(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    keys = registry.made.keys
    facts, _ = registry.version("way", key=keys.private, **trusting(registry))
    assert facts["signature"] == f"signed by the trusted key {keys.fingerprint[:16]}"
    assert client(registry.tracking).get_registered_model("way").tags[TRUST] == keys.public.read_text()
    assert registry.command("promote", "way", "--why", "good") == 0
    capsys.readouterr()
    assert registry.command("verify", "models:/way@champion", "--key", str(keys.public), "--json") == 0
    assert json.loads(capsys.readouterr().out)["signature"] == "trusted"


@pytest.mark.parametrize("key", ["none", "another's"])
def test_register_refuses_an_artifact_that_the_trusted_key_did_not_sign(registry: Registry, key: str) -> None:
    name = f"register-{key[:4]}"
    private = registry.made.others.private if key != "none" else None
    with pytest.raises(Untrusted, match=r"not signed, expected|trusted is"):
        registry.version(name, key=private, **trusting(registry))
    with pytest.raises(PotstillError):
        aliases(registry.tracking, name)


@pytest.mark.parametrize("key", ["none", "another's"])
def test_promote_refuses_a_later_version_that_came_in_without_the_key(
    registry: Registry, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second recipe without `trust` may register; what the model asks for holds for its versions all the same."""
    name = f"later-{key[:4]}"
    registry.version(name, key=registry.made.keys.private, **trusting(registry))
    assert registry.command("promote", name, "--why", "first") == 0
    private = registry.made.others.private if key != "none" else None
    facts, _ = registry.version(name, key=private, weights=b"2")
    capsys.readouterr()
    assert registry.command("promote", name, "--why", "second") == 3
    assert "its signature is refused" in capsys.readouterr().err
    assert aliases(registry.tracking, name)["champion"] == "1"
    with pytest.raises(Untrusted):
        resolve_model_uri(registry.tracking, facts["uri"])
    assert registry.command("verify", facts["uri"]) == 4
    assert registry.command("serve", facts["uri"], "port=0") == 4


def test_without_trust_unsigned_versions_are_promoted_as_before(registry: Registry) -> None:
    facts, _ = registry.version("plain", key=None)
    assert facts["signature"] == "not signed"
    assert registry.command("promote", "plain", "--why", "good") == 0


@pytest.fixture(scope="module")
def kept(registry: Registry) -> Json:
    """A version in the store that every tampering meets, and that is as it was after each."""
    return registry.version("kept", key=registry.made.keys.private, **trusting(registry))[0]


@pytest.mark.parametrize("how", TAMPERINGS)
def test_every_tampering_in_the_store_is_refused_by_promote_and_by_whoever_resolves(
    registry: Registry, kept: Json, how: str, tmp_path: Path
) -> None:
    stored = registry.stored(kept)
    shutil.copytree(stored, tmp_path / "as it was")
    try:
        TAMPERINGS[how](stored, registry.made)
        with pytest.raises((Untrusted, ManifestMismatch)):
            resolve_model_uri(registry.tracking, kept["uri"])
        assert registry.command("promote", "kept", "--why", "x") == 3
        assert registry.command("verify", kept["uri"]) == 4
        assert registry.command("serve", kept["uri"], "port=0") == 4
        assert "champion" not in aliases(registry.tracking, "kept")
    finally:
        shutil.rmtree(stored)
        shutil.copytree(tmp_path / "as it was", stored)
    registry.stored(kept)


def test_rollback_refuses_a_version_whose_signature_went(registry: Registry) -> None:
    facts, _ = registry.version("back", key=registry.made.keys.private, **trusting(registry))
    assert registry.command("promote", "back", "--why", "first") == 0
    registry.version("back", key=registry.made.keys.private, weights=b"2", **trusting(registry))
    assert registry.command("promote", "back", "--why", "second") == 0
    (registry.stored(facts) / SIGNATURE).unlink()
    assert registry.command("rollback", "back", "--why", "back") == 4
    assert aliases(registry.tracking, "back")["champion"] == "2"

"""Registering, promoting and rolling back against a real MLflow database, on small folders with real manifests."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation import register
from potstill.errors import GateRefused, ManifestMismatch, PotstillError, RecipeError
from potstill.lineage import lineage
from potstill.manifest import read_manifest, sha256_file
from potstill.tracking import client, default_uri, experiment_id, open_tracking
from potstill.tracking_moves import history, promote, rollback
from potstill.tracking_stages import record_folder
from potstill.tracking_versions import aliases, download_version, find_version
from potstill.tracking_versions import resolve_model_uri as resolve
from tests.stages.registry_workshop import STEPS, Workshop, folder_of, input_of, report_of


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    work = tmp_path_factory.mktemp("work")
    return Workshop(work, open_tracking(default_uri(work)))


def test_a_version_carries_the_digests_of_every_step_back_to_the_traffic(workshop: Workshop) -> None:
    upstream = workshop.folders("tags")
    version = find_version(workshop.tracking, workshop.register("tags", upstream)["uri"])
    for noun, folder in upstream.items():
        assert version.tags[noun] == read_manifest(folder).digest
    assert version.tags["traffic"] == sha256_file(workshop.work / "tags.jsonl")
    assert version.tags["recipe"] == "tags"
    assert version.tags["gate"] == "passed"
    assert version.aliases == ("candidate",)


def test_registering_the_same_things_again_makes_no_second_version_run_or_model(workshop: Workshop) -> None:
    upstream = workshop.folders("twice")
    first, second = workshop.register("twice", upstream), workshop.register("twice", upstream)
    assert second == first
    api, where = client(workshop.tracking), experiment_id(workshop.tracking, "twice")
    stages = [run.data.tags["stage"] for run in api.search_runs([where])]
    assert sorted(stages) == sorted(["distill", "train", "export", "evaluate", "register", *["candidate"] * 4])
    assert len(api.search_logged_models([where])) == 5  # four candidates and the version's own
    assert len(api.search_model_versions("name = 'twice'")) == 1


def test_a_new_report_on_the_same_artifact_is_a_new_version(workshop: Workshop) -> None:
    first = workshop.register("again", workshop.folders("again", passed=True))
    second = workshop.register("again", workshop.folders("again", passed=False))
    assert (first["version"], second["version"]) == ("1", "2")
    assert aliases(workshop.tracking, "again") == {"candidate": "2"}


def test_candidate_metrics_name_both_the_model_and_the_dataset(workshop: Workshop) -> None:
    upstream = workshop.folders("metrics")
    facts = workshop.register("metrics", upstream)
    api = client(workshop.tracking)
    model = api.get_logged_model(facts["logged_models"]["teacher"])
    quality = {metric.key: metric for metric in model.metrics}["quality.accuracy"]
    assert quality.value == pytest.approx(0.7)
    assert read_manifest(upstream["dataset"]).digest.startswith(quality.dataset_digest)
    run = api.get_run(facts["run_ids"]["report"])
    assert run.data.metrics["quality.accuracy"] == pytest.approx(0.79)
    assert run.data.metrics["latency_p50_ms"] == 40.0
    assert run.data.tags["verdict.artifact-gguf-q8_0.teacher"] == "superior"
    assert [each.dataset.name for each in run.inputs.dataset_inputs] == ["metrics-dataset"]


def test_training_curves_keep_their_steps_and_parameters_stay_few(workshop: Workshop) -> None:
    upstream = workshop.folders("curves")
    run_id = record_folder(workshop.tracking, "curves", upstream["adapter"])
    api = client(workshop.tracking)
    found = {point.step: point.value for point in api.get_metric_history(run_id, "loss")}
    assert found == {each["step"]: each["loss"] for each in STEPS}
    params = api.get_run(run_id).data.params
    assert len(params) == 15
    assert params["learning_rate"] == "0.0005"


def test_a_run_cut_off_while_logging_is_not_taken_for_a_finished_one(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = workshop.folders("cut")
    card = upstream["dataset"] / "card.md"
    hidden = card.with_name("card.hidden")

    def lose_the_card(*_: object) -> None:
        card.rename(hidden)

    with monkeypatch.context() as patch:
        patch.setattr("potstill.tracking._log_params", lose_the_card)
        with pytest.raises(FileNotFoundError):
            record_folder(workshop.tracking, "cut", upstream["dataset"])
    hidden.rename(card)
    run_id = record_folder(workshop.tracking, "cut", upstream["dataset"])
    runs = client(workshop.tracking).search_runs([experiment_id(workshop.tracking, "cut")])
    assert {run.info.run_id: run.info.status for run in runs}[run_id] == "FINISHED"
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]


def test_promote_refuses_a_failed_gate_and_says_why(workshop: Workshop) -> None:
    workshop.register("failed", workshop.folders("failed", passed=False))
    with pytest.raises(GateRefused, match=r"inferior to teacher by 0\.30") as refused:
        promote(workshop.tracking, "failed", by="ann", why="hope")
    assert refused.value.exit_code == 3
    assert "champion" not in aliases(workshop.tracking, "failed")
    assert history(workshop.tracking, "failed") == []


def test_promote_refuses_a_passing_report_about_another_artifact(workshop: Workshop) -> None:
    good = workshop.folders("other", weights=b"1")
    workshop.register("other", workshop.folders("other", weights=b"2", about=good["artifact"]))
    with pytest.raises(GateRefused, match="its report judged"):
        promote(workshop.tracking, "other", by="ann", why="looks fine")


def test_promote_refuses_a_gate_that_judged_the_adapter(workshop: Workshop, tmp_path: Path) -> None:
    upstream = dict(workshop.folders("adapter-only"))
    judged = report_of(True) | {"gate": {"passed": True, "reasons": [], "candidate": "adapter"}}
    inputs = [input_of(upstream[noun]) for noun in ("dataset", "adapter", "artifact")]
    upstream["report"] = folder_of(tmp_path / "report-2", "report", inputs, {"report.json": json.dumps(judged)}, {})
    workshop.register("adapter-only", upstream)
    with pytest.raises(GateRefused, match="judged adapter, and not an exported file"):
        promote(workshop.tracking, "adapter-only", by="ann", why="x")


def test_promote_refuses_a_report_whose_manifest_was_turned_to_another_artifact(workshop: Workshop) -> None:
    good = workshop.folders("turned", weights=b"1")
    facts = workshop.register("turned", workshop.folders("turned", weights=b"2", about=good["artifact"]))
    root = resolve(workshop.tracking, facts["uri"]).root
    manifest = root / "report" / "manifest.json"
    judged, ships = (read_manifest(folder).digest for folder in (good["artifact"], root / "artifact"))
    manifest.write_text(manifest.read_text().replace(judged, ships))
    with pytest.raises(GateRefused, match="names another artifact than it did"):
        promote(workshop.tracking, "turned", by="ann", why="x")


def test_promote_believes_files_and_not_tags(workshop: Workshop) -> None:
    facts = workshop.register("forged", workshop.folders("forged", passed=False))
    client(workshop.tracking).set_model_version_tag("forged", facts["version"], "potstill.gate", "passed")
    with pytest.raises(GateRefused, match="gate failed"):
        promote(workshop.tracking, "forged", by="ann", why="tag says so")


def test_a_flipped_byte_in_the_store_is_refused_by_promote_and_by_serving(workshop: Workshop) -> None:
    facts = workshop.register("flipped", workshop.folders("flipped"))
    stored = resolve(workshop.tracking, facts["uri"]).artifact / "model-q8_0.gguf"
    stored.write_bytes(b"GGUF2")
    with pytest.raises(ManifestMismatch, match=r"model-q8_0\.gguf"):
        resolve(workshop.tracking, facts["uri"])
    with pytest.raises(GateRefused, match=r"model-q8_0\.gguf"):
        promote(workshop.tracking, "flipped", by="ann", why="x")


def test_a_whole_other_artifact_in_the_store_is_refused(workshop: Workshop) -> None:
    facts = workshop.register("swapped", workshop.folders("swapped"))
    stored = resolve(workshop.tracking, facts["uri"]).artifact
    shutil.rmtree(stored)
    shutil.copytree(workshop.folders("swapped", weights=b"7")["artifact"], stored)
    with pytest.raises(ManifestMismatch, match="was registered with"):
        resolve(workshop.tracking, facts["uri"])


def test_rollback_undoes_promotions_one_by_one_and_history_tells_who(workshop: Workshop) -> None:
    tracking = workshop.tracking
    for weights in (b"1", b"2", b"3"):
        workshop.register("moves", workshop.folders("moves", weights=weights))
        promote(tracking, "moves", by="ann", why=f"weights {weights.decode()}")
    assert aliases(tracking, "moves") == {"candidate": "3", "champion": "3", "previous": "2"}
    rollback(tracking, "moves", by="bob", why="complaints")
    assert aliases(tracking, "moves") == {"candidate": "3", "champion": "2", "previous": "1"}
    rollback(tracking, "moves", by="bob", why="still")
    assert aliases(tracking, "moves") == {"candidate": "3", "champion": "1"}
    with pytest.raises(PotstillError, match="nothing to roll back to"):
        rollback(tracking, "moves", by="bob", why="again")
    promote(tracking, "moves", "3", by="ann", why="fixed")
    assert aliases(tracking, "moves") == {"candidate": "3", "champion": "3", "previous": "1"}
    told = [(move.action, move.before, move.version, move.by, move.why) for move in history(tracking, "moves")]
    assert told == [
        ("promote", None, "1", "ann", "weights 1"),
        ("promote", "1", "2", "ann", "weights 2"),
        ("promote", "2", "3", "ann", "weights 3"),
        ("rollback", "3", "2", "bob", "complaints"),
        ("rollback", "2", "1", "bob", "still"),
        ("promote", "1", "3", "ann", "fixed"),
    ]


def test_promoting_the_champion_again_keeps_previous(workshop: Workshop) -> None:
    for weights in (b"1", b"2"):
        workshop.register("same", workshop.folders("same", weights=weights))
        promote(workshop.tracking, "same", by="ann", why="first")
    promote(workshop.tracking, "same", by="ann", why="twice by mistake")
    assert aliases(workshop.tracking, "same") == {"candidate": "2", "champion": "2", "previous": "1"}
    assert len(history(workshop.tracking, "same")) == 2


def test_promote_notices_that_somebody_else_moved_champion_meanwhile(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = workshop.tracking
    for weights in (b"1", b"2"):
        workshop.register("race", workshop.folders("race", weights=weights))

    def while_verifying(*_: object) -> list[str]:
        client(tracking).set_registered_model_alias("race", "champion", "1")
        return []

    monkeypatch.setattr("potstill.tracking_moves.refusals", while_verifying)
    with pytest.raises(PotstillError, match="somebody else moved"):
        promote(tracking, "race", "2", by="bob", why="at the same moment")
    assert aliases(tracking, "race")["champion"] == "1"


def test_a_failed_gate_can_be_passed_by_neither_under_require_gate_nor_through_an_alias(workshop: Workshop) -> None:
    with pytest.raises(GateRefused):
        workshop.register("strict", workshop.folders("strict", passed=False), require_gate=True)
    assert client(workshop.tracking).search_model_versions("name = 'strict'") == []
    for alias in ("champion", "previous"):
        with pytest.raises(ValueError, match="potstill promote"):
            register.Settings(alias=alias)


def test_a_downloaded_version_verifies_as_an_artifact(workshop: Workshop, tmp_path: Path) -> None:
    upstream = workshop.folders("download")
    workshop.register("download", upstream)
    promote(workshop.tracking, "download", by="ann", why="ship")
    copy = download_version(workshop.tracking, "models:/download@champion", tmp_path / "copy")
    assert read_manifest(copy, "artifact").digest == read_manifest(upstream["artifact"]).digest


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("models:/nobody@champion", "not in the registry"),
        ("models:/uris@prod", r"it has candidate \(1\)"),
        ("models:/uris/99", "not in the registry"),
        ("models:/uris", "expected models:/NAME@ALIAS"),
    ],
)
def test_an_unknown_version_is_named_with_what_there_is(workshop: Workshop, uri: str, says: str) -> None:
    workshop.register("uris", workshop.folders("uris"))
    with pytest.raises(RecipeError, match=says):
        find_version(workshop.tracking, uri)


def test_lineage_of_a_version_leads_to_the_traffic_hash_even_without_the_working_folder(
    workshop: Workshop, tmp_path: Path
) -> None:
    facts = workshop.register("origin", workshop.folders("origin"))
    hashed = sha256_file(workshop.work / "origin.jsonl")
    for work in (workshop.work, tmp_path):
        tree = lineage(facts["uri"], work, workshop.tracking.uri)
        assert hashed in [node.digest for node in tree.origins() if node.kind == "traffic"]
        assert hashed[:12] in tree.to_text()


def test_lineage_runs_from_the_traffic_forward_and_from_a_digest_prefix_or_file_back(workshop: Workshop) -> None:
    upstream = workshop.folders("forward")
    traffic = workshop.work / "forward.jsonl"
    forward = lineage(str(traffic), workshop.work)
    assert forward.kind == "traffic"
    assert [node.kind for node in forward.made_into] == ["dataset"]
    made = {node.kind for node in forward.made_into[0].made_into}
    assert made == {"adapter", "report"}
    artifact = read_manifest(upstream["artifact"])
    back = lineage(artifact.digest[:12], workshop.work / "forward")
    assert [node.kind for node in back.origins()] == ["traffic"]
    weights = lineage(str(upstream["artifact"] / "model-q8_0.gguf"), workshop.work / "forward")
    assert (weights.kind, weights.made_from[0].digest) == ("file", artifact.digest)


def test_lineage_refuses_a_hash_that_nothing_holds(workshop: Workshop) -> None:
    with pytest.raises(RecipeError, match="no manifest"):
        lineage("0123456789abcdef" * 4, workshop.work)
    with pytest.raises(RecipeError, match="at least 6 digits"):
        lineage("no-such-folder", workshop.work)


def test_another_registry_address_asks_for_its_own_version_but_a_password_does_not(workshop: Workshop) -> None:
    shared = workshop.shared("address")
    digests = [
        register.inputs(register.Settings(), replace(shared, tracking_uri=uri))[0].digest
        for uri in ("http://ann:secret@host/", "http://bob:other@host/", "http://elsewhere/")
    ]
    assert digests[0] == digests[1] != digests[2]


def test_nothing_here_imports_mlflow_before_it_is_needed() -> None:
    names = "potstill.tracking, potstill.tracking_stages, potstill.tracking_versions, potstill.lineage"
    code = f"import sys, {names}, evaluation.register; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0

"""What `potstill prune` takes and leaves, on a working folder with several generations of everything."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from potstill import cli
from potstill.errors import PotstillError
from potstill.lineage import lineage
from potstill.manifest import MANIFEST, read_manifest, sha256_file, write_manifest
from potstill.retention import GOING
from potstill.tracking import default_uri, open_tracking
from potstill.tracking_journal import append
from potstill.tracking_moves import history, promote, rollback
from potstill.tracking_versions import find_version, resolve_model_uri
from tests.stages.registry_workshop import Workshop, input_of

Json = dict[str, Any]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Five versions: the first was never champion, the third is, the second is previous, the fifth candidate."""
    work = tmp_path_factory.mktemp("built") / "work"
    work.mkdir()
    made = Workshop(work, open_tracking(default_uri(work)))
    for number in range(1, 6):
        generation(made, number)
    for version in ("2", "3"):
        promote(made.tracking, "pot", version, by="ann", why="good")
    kept = work.with_name("kept")
    shutil.copytree(work, kept)
    return made


@pytest.fixture
def workshop(built: Workshop) -> Workshop:
    """The five versions as they were built, whatever the test before did: files and database put back."""
    kept = built.work.with_name("kept")
    for path in built.work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    for path in kept.iterdir():
        if path.is_dir():
            shutil.copytree(path, built.work / path.name)
    with closing(sqlite3.connect(kept / "mlflow.db")) as old, closing(sqlite3.connect(built.work / "mlflow.db")) as new:
        old.backup(new)
    return built


def generation(workshop: Workshop, number: int) -> None:
    """Folders of one more training, its version, and the answers that its report was made from."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    weights = str(number).encode()
    upstream = workshop.folders("pot", weights=weights)
    workshop.version("pot", weights)
    out = workshop.work / "pot" / f"version-{number}"
    out.mkdir()
    facts = {"model": "pot", "version": str(number), "tracking_uri": workshop.tracking.uri}
    (out / "version.json").write_text(json.dumps(facts))
    inputs = [input_of(each) for each in upstream.values()]
    write_manifest(out, "version", settings_passed={}, settings_used={}, inputs=inputs, facts=facts)
    row = {"id": "row-1", "text": f"answer {number}", "candidate": "adapter", "gold": "a", "teacher": "a"}
    pq.write_table(pa.Table.from_pylist([row]), upstream["report"] / "predictions.parquet")
    cached = workshop.work / "cache" / "predictions" / f"adapter-{number}.jsonl"
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.write_text(json.dumps(row) + "\n")
    for at, path in enumerate([cached, *(each / MANIFEST for each in (*upstream.values(), out))]):
        os.utime(path, (1e9 + 100 * number + at, 1e9 + 100 * number + at))


def prune(workshop: Workshop, capsys: pytest.CaptureFixture[str], *words: str) -> Json:
    capsys.readouterr()
    assert cli.main(["prune", "--work-dir", str(workshop.work), "--by", "cleaner", "--json", *words]) == 0
    found: Json = json.loads(capsys.readouterr().out)
    return found


def names(found: Json, *, stays: bool) -> set[str]:
    return {each["where"].rpartition("/")[2] for each in found["items"] if each["stays"] is stays}


def everything(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_dry_run_says_what_would_go_how_big_and_why_and_deletes_nothing(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(workshop.work / "pot") | everything(workshop.work / "mlartifacts")
    found = prune(workshop, capsys, "--dry-run")
    assert everything(workshop.work / "pot") | everything(workshop.work / "mlartifacts") == before
    why = {each["where"].rpartition("/")[2]: each["why"] for each in found["items"]}
    assert "champion" in why["adapter-3"]
    assert "previous" in why["adapter-2"]
    assert "newest adapter" in why["adapter-5"]
    assert "was made from it" in why["dataset-1"]
    assert why["adapter-1"] == "nothing needs it"
    sizes = {each["where"].rpartition("/")[2]: each["size_bytes"] for each in found["items"]}
    adapter = workshop.work / "pot" / "adapter-1"
    assert sizes["adapter-1"] == sum(path.stat().st_size for path in adapter.rglob("*") if path.is_file())
    assert found["freed_bytes"] == sum(each["size_bytes"] for each in found["items"] if not each["stays"])
    assert cli.main(["prune", "--work-dir", str(workshop.work), "--dry-run"]) == 0
    assert "adapter-1  (nothing needs it)" in capsys.readouterr().out


def test_what_goes_is_what_nothing_needs_and_nothing_else(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    found = prune(workshop, capsys)
    for number in ("1", "4"):
        gone = {f"adapter-{number}", f"artifact-{number}", f"report-{number}-True-", f"adapter-{number}.jsonl", number}
        assert gone <= names(found, stays=False)
    for number in ("2", "3", "5"):
        kept = {f"adapter-{number}", f"artifact-{number}", f"report-{number}-True-", f"adapter-{number}.jsonl", number}
        assert kept <= names(found, stays=True)
    assert "dataset-1" in names(found, stays=True)
    for each in found["items"]:
        if each["kind"] != "version":
            assert Path(each["where"]).exists() is each["stays"], each
    assert names(prune(workshop, capsys), stays=False) == set()


def test_a_pruned_tree_still_serves_leads_back_to_its_traffic_and_rolls_back(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    prune(workshop, capsys)
    tracking = workshop.tracking
    traffic = sha256_file(workshop.work / "pot.jsonl")
    for uri in ("models:/pot@champion", "models:/pot@previous", "models:/pot@candidate"):
        served = resolve_model_uri(tracking, uri)
        assert read_manifest(served.artifact, "artifact").digest == served.digest
    for uri in ("models:/pot@champion", "models:/pot/1"):  # what was given up keeps its lineage and its report
        assert traffic in [node.digest for node in lineage(uri, workshop.work, tracking.uri).origins()]
    for folder in ("adapter-3", "report-2-True-", "artifact-5"):
        tree = lineage(str(workshop.work / "pot" / folder), workshop.work)
        assert traffic in [node.digest for node in tree.origins()]
    rollback(tracking, "pot", by="bob", why="complaints")
    assert resolve_model_uri(tracking, "models:/pot@champion").version.version == "2"
    last = history(tracking, "pot")[-2]
    assert (last.action, last.by, set(last.pruned)) == ("prune", "cleaner", {"1", "4"})
    for refused in (lambda: promote(tracking, "pot", "4", by="x", why="x"),
                    lambda: resolve_model_uri(tracking, "models:/pot/4")):  # fmt: skip
        with pytest.raises(PotstillError, match="given up by `potstill prune`"):
            refused()


def test_a_rollback_passes_over_versions_whose_files_are_gone(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    for version in ("4", "5"):
        promote(workshop.tracking, "pot", version, by="ann", why="good")
    prune(workshop, capsys)  # champion 5 over 4; 3, 2 and 1 go
    rollback(workshop.tracking, "pot", by="bob", why="x")
    assert find_version(workshop.tracking, "models:/pot@champion").version == "4"
    with pytest.raises(PotstillError, match="nothing to roll back to"):
        rollback(workshop.tracking, "pot", by="bob", why="x")


def test_a_pruned_version_registered_again_becomes_a_new_one(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    prune(workshop, capsys)
    assert workshop.version("pot", b"4") == "6"
    assert promote(workshop.tracking, "pot", "6", by="ann", why="back").version == "6"


def test_keep_holds_the_newest_of_each_kind(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    assert "adapter-4" in names(prune(workshop, capsys, "--keep", "2"), stays=True)
    assert not (workshop.work / "pot" / "adapter-1").exists()
    assert (workshop.work / "pot" / "adapter-4").exists()


def test_what_a_process_has_open_stays(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    model = workshop.work / "pot" / "artifact-1" / "model-q8_0.gguf"
    code = f"import sys; held = open({str(model)!r}, 'rb'); print('open', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        found = prune(workshop, capsys)
    finally:
        process.communicate()
    assert {"artifact-1", "adapter-1"} <= names(found, stays=True)
    assert f"open in process {process.pid}" in {each["why"] for each in found["items"]}
    assert model.exists()


def test_nothing_is_pruned_while_a_recipe_of_the_folder_is_at_work(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    with (workshop.work / "pot" / ".lock").open("a+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert cli.main(["prune", "--work-dir", str(workshop.work)]) == 1
    assert "another potstill is at work" in capsys.readouterr().err
    assert (workshop.work / "pot" / "adapter-1").exists()


def test_a_promotion_meanwhile_stops_the_pruning_of_versions_and_folders(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def first(*words: Any) -> Any:
        monkeypatch.undo()
        promote(workshop.tracking, "pot", "5", by="ann", why="at that moment")
        return append(*words)

    monkeypatch.setattr("potstill.tracking_moves.append", first)
    assert cli.main(["prune", "--work-dir", str(workshop.work)]) == 1
    assert "somebody else moved first: ann made version 5 champion" in capsys.readouterr().err
    assert (workshop.work / "pot" / "adapter-1").exists()
    assert resolve_model_uri(workshop.tracking, "models:/pot/1").version.version == "1"


def test_what_a_prune_that_was_cut_off_left_behind_goes_the_next_time(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("potstill.retention.shutil.rmtree", cut_off)
        assert cli.main(["prune", "--work-dir", str(workshop.work)]) == 130
    assert [path.name for path in (workshop.work / "pot").glob(f"{GOING}*")] == [f"{GOING}adapter-1"]
    assert not (workshop.work / "pot" / "adapter-1").exists()
    prune(workshop, capsys)
    assert list((workshop.work / "pot").glob(f"{GOING}*")) == []
    assert not (workshop.work / "pot" / "adapter-4").exists()


def test_versions_at_an_address_that_is_not_asked_keep_all_they_were_made_from(
    workshop: Workshop, capsys: pytest.CaptureFixture[str]
) -> None:
    other = workshop.work / "pot" / "version-1" / "version.json"
    other.write_text(json.dumps(json.loads(other.read_text()) | {"tracking_uri": "http://elsewhere"}))
    found = prune(workshop, capsys, "--dry-run")
    why = {each["where"].rpartition("/")[2]: each["why"] for each in found["items"]}
    assert "registered at http://elsewhere" in why["version-1"]
    assert why["adapter-1"].endswith("was made from it")


def test_trials_of_a_sweep_and_unfinished_training_stay(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = workshop.work / "pot" / "sweeps" / "abc"
    sweep.mkdir(parents=True)
    (sweep / "sweep.json").write_text(json.dumps({"trials": [{"folder": "adapter-1"}, {"folder": None}]}))
    for name, at in (("adapter-old", 1e9), ("adapter-new", 2e9)):
        (workshop.work / "pot" / name).mkdir()
        os.utime(workshop.work / "pot" / name, (at, at))
    found = prune(workshop, capsys)
    assert {"adapter-1", "adapter-new"} <= names(found, stays=True)
    assert "adapter-old" in names(found, stays=False)

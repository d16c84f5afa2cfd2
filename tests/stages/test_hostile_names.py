"""Promises of every place where a name from outside becomes a path: nothing outside is read, written or removed.

Each entry point meets the same 2,500 names, with a link out of the working folder lying there, and what stands outside
is compared before and after.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from distillation.relabel.owners import Owner
from distillation.run import main
from evaluation import register
from export.merge import _tensor_files
from potstill.commands.serve import capture_folder
from potstill.manifest import MANIFEST, read_manifest, sha256_file, write_manifest
from potstill.models import locate
from potstill.pipeline import _folder
from potstill.recipe import Recipe, load_recipe
from potstill.records import Json
from potstill.serving.capture import CaptureLog
from potstill.serving.captured import join
from potstill.serving.meter import Meter
from potstill.serving.start import load_artifact
from potstill.signing import make_keys
from potstill.stage import Shared
from potstill.tracking import experiment_folder
from tests.unit.hostile_names import Area
from tests.unit.mail_log import LABELS, exchange, rows_of, settings_for, write_log


@pytest.fixture
def area(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Area:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = Area(tmp_path)
    monkeypatch.chdir(found.work)
    return found


@pytest.fixture
def no_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # as where only the core is installed


def test_recipe_names(area: Area) -> None:
    path = area.work / "recipe.yaml"

    def entry(name: str) -> Path:
        path.write_text(f"name: {json.dumps(name)}\ntask: {{kind: generation}}\nbase_model: some/base\nwork_dir: .\n")
        found = load_recipe(path, [], {})
        found.shared.work_dir.mkdir(parents=True, exist_ok=True)
        return found.shared.work_dir / "made"

    refused, taken = area.attack(entry)
    assert refused > 2000, taken


def test_registered_model_names_and_where_their_traffic_goes(area: Area) -> None:
    def settings(name: str) -> Path:
        model = register.Settings.model_validate({"model": name}).model
        assert model is not None
        return area.work / "captured" / model / "file"

    area.attack(settings)
    area.attack(lambda name: capture_folder(area.work, name) / "file")
    area.attack(lambda name: capture_folder(area.work, f"{name}@3") / "file")
    area.attack(lambda name: experiment_folder(area.work, name) / "file")
    assert capture_folder(area.work, "intents@3") == area.work / "captured" / "intents"
    assert capture_folder(area.work, "") == area.work / "captured" / "unnamed"


def test_version_folders_of_a_remote_registry(area: Area, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache into which versions are downloaded, with MLflow's two answers scripted."""
    import mlflow.artifacts

    from potstill import tracking_versions
    from potstill.tracking import Tracking

    class Registry:
        def get_model_version_download_uri(self, model: str, version: str) -> str:
            return "mlflow-artifacts:/1/models/m/artifacts"

    def download(artifact_uri: str, dst_path: str, tracking_uri: str) -> str:
        (Path(dst_path) / "downloaded").write_text("x")
        return dst_path

    monkeypatch.setattr(tracking_versions, "client", lambda tracking: Registry())
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", download)

    def entry(name: str) -> Path:
        version = tracking_versions.Version(name, "1", {}, (), None)
        tracking = Tracking("http://127.0.0.1:1", None)
        return tracking_versions.version_folder(tracking, version, area.work / "cache") / "downloaded"

    refused, taken = area.attack(entry)
    assert refused > 2000, taken


def test_names_in_a_manifest(area: Area) -> None:
    """Listed files that stand outside, exported files that do, and keys of upstream folders."""
    folder = area.work / "artifact"
    folder.mkdir()
    (folder / "contract.json").write_text("{}")
    write_manifest(folder, "artifact", settings_passed={}, settings_used={}, inputs=[], facts={})
    whole = json.loads((folder / MANIFEST).read_text())
    sentinel = area.outside / "sentinel.txt"
    entry_of = {"sha256": sha256_file(sentinel), "size_bytes": sentinel.stat().st_size}

    def listed(name: str) -> Path:
        changed: Json = {**whole, "files": {**whole["files"], name: entry_of}}
        changed["facts"] = {"formats": {"gguf-q8_0": {"file": name}}}
        (folder / MANIFEST).write_text(json.dumps(changed))
        return load_artifact(folder).model

    assert area.attack(listed) == (len(area.names), 0)

    def shipped(name: str) -> Path:
        (folder / MANIFEST).write_text(json.dumps({**whole, "facts": {"formats": {"gguf-q8_0": {"file": name}}}}))
        return load_artifact(folder).model

    assert area.attack(shipped) == (len(area.names), 0)

    def keyed(name: str) -> Path:
        (folder / MANIFEST).write_text(json.dumps({**whole, "key": name}))
        shared = Shared("x", {"kind": "generation"}, "b", area.work, "sqlite://")
        return _folder(Recipe(area.work, shared, {}, {}), "dataset", read_manifest(folder).key) / "file"

    area.attack(keyed)


def test_weights_named_by_an_index(area: Area) -> None:
    folder = area.work / "base"
    folder.mkdir()

    def entry(name: str) -> Path:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
        return _tensor_files(folder)["w"]

    refused, taken = area.attack(entry)
    assert refused > 2000, taken


def test_bases_inside_packages(area: Area, monkeypatch: pytest.MonkeyPatch) -> None:
    package = area.work / "packaged_base_for_names"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "base.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(area.work))
    assert locate("package:packaged_base_for_names/base.gguf") == package / "base.gguf"
    area.attack(lambda name: locate(f"package:packaged_base_for_names/{name}"))
    area.attack(lambda name: locate(f"package:{name}/base.gguf"))
    sys.modules.pop("packaged_base_for_names", None)


def test_trial_folders_of_a_sweep(area: Area, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial's folder as sweep.json or the study names it, with MLflow's answers scripted."""
    from types import SimpleNamespace

    from potstill import tracking_sweeps
    from potstill.tracking import Tracking

    read: list[Path] = []
    run = SimpleNamespace(data=SimpleNamespace(tags={}))
    api = SimpleNamespace(get_run=lambda run_id: run, set_tag=lambda *words: None)

    def record(tracking: Tracking, experiment: str, folder: Path) -> str:
        read.append(folder)
        return "run"

    monkeypatch.setattr(tracking_sweeps, "client", lambda tracking: api)
    monkeypatch.setattr(tracking_sweeps, "record_folder", record)

    def entry(name: str) -> Path:
        trial = {"state": "done", "number": 0, "folder": name}
        tracking_sweeps.record_trial(Tracking("sqlite:///unused.db", None), "x", "parent", "k", trial, area.work)
        return read[-1] / "file"

    refused, taken = area.attack(entry)
    assert refused > 2000, taken


def test_names_of_keys(area: Area) -> None:
    def entry(name: str) -> Path:
        return make_keys(area.work / "keys", name).private

    refused, taken = area.attack(entry)
    assert refused > 2000, taken


def test_owners_named_by_a_ledger(area: Area) -> None:
    """The file of a dead owner is removed: never one outside."""
    owner = Owner(area.work / "owners")

    def entry(name: str) -> None:
        assert not owner.alive(name)

    area.attack(entry)
    owner.close()


def test_ids_of_exchanges_users_and_feedback_that_a_server_captures(area: Area) -> None:
    before = area.survey()
    log = CaptureLog(area.work / "captured", Meter(), sample=1.0, durable=False, redact=None)
    names = [name for name in area.names if name and "\udcff" not in name]  # half a character pair is no JSON
    assert len(names) > 2000
    for name in names:
        log.put(
            "exchanges",
            exchange(0) | {"id": name, "metadata": {"conversation": name, "tags": {name: name}}},
            sync=False,
        )
        log.put("feedback", {"id": name, "feedback": {"kind": "thumbs", "name": name, "value": True}}, sync=False)
        log.knows(f"not {name}")
    log.close()
    assert area.survey() == before
    found = {each.name.partition("-")[0] for each in (area.work / "captured").iterdir()}
    assert found == {"exchanges", "feedback", "known"}
    assert {each.id for each in join(area.work / "captured")} == set(names)


def distilled(area: Area, lines: list[Json], labels: list[str]) -> list[str]:
    """The names of the files in the dataset that is made of these lines; nothing outside has changed."""
    base, out = area.work / "base", area.work / "out"
    for folder in (base, out):
        folder.mkdir()
    (base / "config.json").write_text("{}")
    log = write_log(area.work / "log.jsonl", lines)
    task = {"kind": "classification", "labels": labels}
    shared = Shared("mail", task, str(base), area.work / "w" / "mail", "sqlite:///unused.db")
    before = area.survey()
    main(settings_for(log, damaged_limit=0.1), shared, {}, out)  # half a character pair is no JSON
    assert area.survey() == before
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found <= {
        "train.parquet", "validation.parquet", "sealed/test.parquet", "rejections.parquet", "card.md",
        "preferences.parquet", "opinions.parquet", "audit.parquet", "members.parquet",
    }  # fmt: skip
    return sorted(found)


def test_ids_conversations_users_and_tags_of_a_log_that_is_distilled(area: Area, no_tokenizers: None) -> None:
    lines = [
        exchange(at, metadata={"conversation": name, "user": name, "tags": {name or "empty": name}})
        | {"id": f"{at}{name}"}
        for at, name in enumerate(area.names)
    ]
    distilled(area, lines, LABELS)
    kept = sum(len(rows) for rows in rows_of(area.work / "out").values())
    assert kept > 1800


def test_labels_never_name_a_file(area: Area, no_tokenizers: None) -> None:
    names = [name for name in area.names if name.strip() == name and name and name.isprintable()][:300]
    assert len(names) == 300
    distilled(area, [exchange(at, label=names[at % 300]) for at in range(900)], [*LABELS, *names])

"""Promises of names that become paths: whatever comes from outside, nothing outside is read, written or removed."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from distillation.relabel.owners import Owner
from evaluation import register
from export.merge import _tensor_files
from potstill.commands.serve import capture_folder
from potstill.errors import PotstillError, UnsafeName
from potstill.manifest import MANIFEST, read_manifest, sha256_file, write_manifest
from potstill.models import locate
from potstill.pipeline import _folder
from potstill.recipe import Recipe, load_recipe
from potstill.records import Json
from potstill.safe_names import fault_of, inside, safe_name, safe_relative
from potstill.serving.capture import CaptureLog
from potstill.serving.captured import join
from potstill.serving.meter import Meter
from potstill.serving.start import load_artifact
from potstill.signing import make_keys
from potstill.stage import Shared
from potstill.tracking import experiment_folder

from .hostile_names import hostile_names, standing
from .mail_log import LABELS, Whole, exchange, rows_of

COUNT = 2500
GOOD = (
    "banking-intents", "model-q8_0.gguf", "sealed/test.parquet", "model-00001-of-00003.safetensors", "tokenizer.json",
    "Ärger 2.json", "模型.gguf", "a+b=c, (d) [e].txt", "report@3", ".gitattributes", "checkpoint-1/state.json", "console.log",
)  # fmt: skip


class Area:
    """A working folder with a link that leads out, and beside it what must not change."""

    def __init__(self, root: Path) -> None:
        self.root, self.work, self.outside = root, root / "area" / "work", root / "outside"
        for folder in (self.work / "inner", self.outside):
            folder.mkdir(parents=True)
        (self.outside / "sentinel.txt").write_text("as it was")
        (self.outside / ".ssh").mkdir()
        (self.outside / ".ssh" / "id").write_text("secret")
        (self.root / "area" / "sentinel.txt").write_text("as it was")
        for link in (self.work / "link", self.work / "inner" / "link"):
            link.symlink_to(self.outside)
        self.names = hostile_names(COUNT, self.outside)
        assert len(set(self.names)) >= 2000

    def survey(self) -> dict[str, str]:
        return standing(self.root, self.work)

    def attack(self, entry: Callable[[str], Path | None]) -> tuple[int, int]:
        """Every name through one entry point; what it gives back is written to. Returns refused and taken."""
        before, refused = self.survey(), 0
        for name in self.names:
            try:
                path = entry(name)
            except (PotstillError, ValidationError):
                refused += 1
                continue
            if path is not None:
                assert path.resolve().is_relative_to(self.work.resolve()), ascii(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.is_dir():
                    path.write_bytes(b"written")
        assert self.survey() == before
        return refused, len(self.names) - refused


@pytest.fixture
def area(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Area:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = Area(tmp_path)
    monkeypatch.chdir(found.work)
    return found


@pytest.mark.parametrize("name", GOOD)
def test_names_that_people_and_stages_give_are_taken_as_they_are(name: str, tmp_path: Path) -> None:
    assert safe_relative(name) == name
    assert inside(tmp_path, name) == tmp_path / name


@given(st.text(max_size=40))
def test_a_safe_name_is_one_component_that_normalisation_leaves_alone(name: str) -> None:
    if fault_of(name) is not None:
        with pytest.raises(UnsafeName) as caught:
            safe_name(name)
        assert str(caught.value).isprintable()
        assert caught.value.exit_code == 4
        return
    for form in (name, unicodedata.normalize("NFKC", name), unicodedata.normalize("NFKD", name)):
        assert not set("/\\:\x00") & set(form)
        assert form.strip(". ")
    assert (Path("/a") / name).parent == Path("/a")


@given(st.lists(st.sampled_from(["..", ".", "a", "", "~", "C:", "a\\b", "．．", "con", "b.json"]), max_size=5))
def test_a_path_is_safe_exactly_when_each_of_its_components_is(parts: list[str]) -> None:
    name = "/".join(parts)
    if name and all(part in ("a", "b.json") for part in parts):
        assert safe_relative(name) == name
    else:
        with pytest.raises(UnsafeName):
            safe_relative(name)


@pytest.mark.parametrize("name", [None, 7, b"x", ["a"], {}])
def test_what_is_no_text_is_no_name(name: object) -> None:
    with pytest.raises(UnsafeName):
        safe_name(name)
    with pytest.raises(UnsafeName):
        safe_relative(name)


def test_no_hostile_name_passes_and_a_link_leads_nowhere(area: Area) -> None:
    assert sum(area.attack(lambda name: inside(area.work, name))) == len(area.names)
    with pytest.raises(UnsafeName, match="symbolic link"):
        inside(area.work, "link/sentinel.txt")
    refused, taken = area.attack(lambda name: area.work / safe_name(name))
    assert refused > 0.97 * len(area.names), taken


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
    names = [name for name in area.names if name.isprintable()]
    assert len(names) > 2000
    for name in names:
        log.put("exchanges", exchange(0) | {"id": name, "metadata": {"conversation": name, "tags": {name: name}}}, sync=False)
        log.put("feedback", {"id": name, "feedback": {"kind": "thumbs", "name": name, "value": True}}, sync=False)
        log.knows(f"not {name}")
    log.close()
    assert area.survey() == before
    assert {each.name.partition("-")[0] for each in (area.work / "captured").iterdir()} == {"exchanges", "feedback"}
    assert {each.id for each in join(area.work / "captured")} == set(names)


def test_ids_conversations_users_and_tags_of_a_log_that_is_distilled(area: Area, whole: Whole) -> None:
    lines = [
        exchange(at, metadata={"conversation": name, "user": name, "tags": {name or "empty": name}}) | {"id": f"{at}{name}"}
        for at, name in enumerate(area.names)
    ]
    before = set(area.survey())
    _, out = whole(lines)
    kept = sum(len(rows) for rows in rows_of(out).values())
    assert kept > 2000
    new = {each for each in set(area.survey()) - before if not each.startswith((out.name, "log", "work"))}
    assert new == set()
    assert (area.outside / "sentinel.txt").read_text() == "as it was"
    assert not (area.outside / "new").exists()


def test_labels_never_name_a_file(area: Area, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distillation.run import main

    from .mail_log import settings_for, write_log

    monkeypatch.setitem(sys.modules, "tokenizers", None)
    names = [name for name in area.names if name.strip() == name and name and name.isprintable()][:300]
    assert len(names) == 300
    base = area.work / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    out = area.work / "out"
    out.mkdir()
    log = write_log(area.work / "log.jsonl", [exchange(at, label=names[at % 300]) for at in range(900)])
    task = {"kind": "classification", "labels": [*LABELS, *names]}
    before = area.survey()
    main(settings_for(log), Shared("mail", task, str(base), area.work / "w" / "mail", "sqlite:///unused.db"), {}, out)
    assert area.survey() == before
    assert {each.name for each in out.rglob("*") if each.is_file()} <= {
        "train.parquet", "validation.parquet", "test.parquet", "rejections.parquet", "card.md", "preferences.parquet",
        "opinions.parquet", "audit.parquet",
    }  # fmt: skip

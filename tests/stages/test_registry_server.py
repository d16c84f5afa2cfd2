"""The registry on what a company runs: `mlflow server` with basic auth and proxied artifacts, over PostgreSQL."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from potstill import cli
from potstill.errors import PotstillError
from potstill.manifest import read_manifest
from potstill.tracking import client, open_tracking
from potstill.tracking_moves import promote
from potstill.tracking_versions import aliases, download_version, find_version
from tests.mlflow_server import ADMIN, ADMIN_PASSWORD, Server, mlflow_server, postgresql
from tests.stages.registry_workshop import Workshop

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with postgresql() as database, mlflow_server(tmp_path_factory.mktemp("server"), database) as started:
        yield started


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def everything_in(folder: Path) -> str:
    """All text under a folder, binary files included."""
    return "\n".join(path.read_bytes().decode(errors="replace") for path in folder.rglob("*") if path.is_file())


def test_register_promote_roll_back_download_and_prune_through_a_server_and_no_password_is_left_anywhere(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workshop = Workshop(tmp_path / "work", open_tracking(server.with_password))
    tracking, where = workshop.tracking, ["--tracking-uri", server.with_password]
    assert workshop.register("served", workshop.folders("served", weights=b"1"))["version"] == "1"
    for weights in (b"2", b"3"):
        workshop.version("served", weights)
    for version in ("1", "2", "3"):
        assert cli.main(["promote", f"served/{version}", "--why", "its gate passed", *where]) == 0
    assert cli.main(["rollback", "served", "--why", "slow", *where]) == 0
    assert {k: v for k, v in aliases(tracking, "served").items() if k != "candidate"} == {
        "champion": "2",
        "previous": "1",
    }
    copy = download_version(tracking, "models:/served@champion", tmp_path / "copy")
    assert read_manifest(copy, "artifact").digest == find_version(tracking, "models:/served/2").tags["artifact"]
    capsys.readouterr()
    assert cli.main(["history", "served", "--json", *where]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(each["action"], each["version"], each["by"]) for each in told] == [
        ("promote", "1", ADMIN), ("promote", "2", ADMIN), ("promote", "3", ADMIN), ("rollback", "2", ADMIN),
    ]  # fmt: skip
    client(tracking).set_registered_model_alias("served", "candidate", "2")
    facts = workshop.register("served", workshop.folders("served", weights=b"4"))
    assert facts["aliases"] == ["candidate"]
    (workshop.work / "served" / "version").rename(workshop.work / "served" / "version-4")  # as the pipeline names it
    prune = ["prune", "--work-dir", str(workshop.work), *where, "--json"]
    assert cli.main(prune) == 0
    found = json.loads(capsys.readouterr().out)
    gone = {each["where"] for each in found["items"] if each["kind"] == "version" and not each["stays"]}
    assert gone == {"models:/served/3"}
    with pytest.raises(PotstillError, match="given up by `potstill prune`"):
        promote(tracking, "served", "3", by="ann", why="x")
    assert cli.main(["rollback", "served", "--why", "still slow", *where]) == 0
    assert aliases(tracking, "served")["champion"] == "1"
    spoken = capsys.readouterr()
    for secret in server.secrets:
        assert secret not in everything_in(tmp_path)
        assert secret not in server.log.read_text()
        assert secret not in spoken.out + spoken.err
        assert secret not in everything_tagged(tracking_uri=server.with_password)


def everything_tagged(tracking_uri: str) -> str:
    """All that MLflow would show: runs, logged models, registered models and versions with their tags."""
    api = client(open_tracking(tracking_uri))
    experiments = [each.experiment_id for each in api.search_experiments()]
    found = [api.search_runs(experiments), api.search_logged_models(experiments), api.search_registered_models()]
    versions = [api.search_model_versions(f"name = '{each.name}'") for each in api.search_registered_models()]
    return "\n".join(str(dict(each)) for group in [*found, *versions] for each in group)


def test_a_user_without_permission_is_told_which_one_is_missing_and_moves_nothing(
    server: Server, tmp_path: Path
) -> None:
    import requests

    workshop = Workshop(tmp_path / "work", open_tracking(server.with_password))
    version = workshop.version("guarded", b"1")
    promote(workshop.tracking, "guarded", version, by=ADMIN, why="x")
    workshop.version("guarded", b"2")
    made = requests.post(
        f"{server.url}/api/2.0/mlflow/users/create",
        json={"username": "reader", "password": "a-readers-secret"},
        auth=(ADMIN, ADMIN_PASSWORD),
    )
    assert made.status_code == 200, made.text
    tracking = open_tracking(server.url.replace("http://", "http://reader:a-readers-secret@"))
    with pytest.raises(PotstillError, match=r"give EDIT on the registered models guarded and guarded\.history"):
        promote(tracking, "guarded", "2", by="reader", why="x")
    assert aliases(tracking, "guarded")["champion"] == "1"


def test_a_wrong_password_is_told_without_showing_it(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    address = server.url.replace("http://", "http://admin:not-the-secret@")
    assert cli.main(["history", "served", "--tracking-uri", address]) == 1
    told = capsys.readouterr().err
    assert server.url in told
    assert "not-the-secret" not in told
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "not-the-secret"

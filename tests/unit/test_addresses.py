"""No password of a tracking address is kept or shown."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from potstill.addresses import credentials_aside, without_password, without_passwords
from potstill.pipeline import run_pipeline
from potstill.recipe import load_recipe
from tests.unit.test_pipeline import RECIPE, stages

SECRET = "p%40ss-w0rd"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"tracking_uri=http://ann:{SECRET}@host:5000/x and more", "tracking_uri=http://host:5000/x and more"),
        (f"postgresql+psycopg2://ann:{SECRET}@host/db", "postgresql+psycopg2://host/db"),
        (f"'https://ann:{SECRET}@a/' \"https://bob:{SECRET}@b\"", "'https://a/' \"https://b\""),
        ("ann@example.org wrote to http://host/~ann@home", "ann@example.org wrote to http://host/~ann@home"),
        ("sqlite:////a/b@c/mlflow.db", "sqlite:////a/b@c/mlflow.db"),
    ],
)
def test_text_keeps_everything_but_user_and_password_of_an_address(text: str, shown: str) -> None:
    assert without_passwords(text) == shown


def test_a_servers_credentials_go_where_mlflow_looks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "before")
    assert credentials_aside(f"http://ann:{SECRET}@host:5000/x") == "http://host:5000/x"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("ann", "p@ss-w0rd")
    for unchanged in ("http://host:5000", "postgresql://ann:x@host/db", "sqlite:////a/mlflow.db"):
        assert credentials_aside(unchanged) == unchanged
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "ann"
    assert without_password("postgresql://ann:x@host/db") == "postgresql://host/db"


def test_a_password_on_the_command_line_reaches_no_file_and_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.txt").write_text("one\n")
    (tmp_path / "r.yaml").write_text(RECIPE)
    modules = stages(tmp_path, [])
    override = f"tracking_uri=http://ann:{SECRET}@127.0.0.1:9/"
    monkeypatch.setattr(sys, "argv", ["potstill", "run", "r.yaml", override, f"work_dir={tmp_path / 'work'}"])
    settings = {name: module.Settings for name, module in modules.items()}
    recipe = load_recipe(tmp_path / "r.yaml", [override, f"work_dir={tmp_path / 'work'}"], settings)
    run_pipeline(recipe, modules, "evaluate", track=False)
    files = [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
    assert sum("http://127.0.0.1:9/" in path.read_text() for path in files if path.name == "manifest.json") == 3
    assert not [path for path in files if SECRET in path.read_text()]
    spoken = capsys.readouterr()
    assert SECRET not in spoken.out + spoken.err

"""Promises of following an alias: what MLflow says is what answers, and MLflow never enters the process that does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from potstill.errors import RecipeError
from potstill.manifest import read_manifest
from potstill.serving.engine_settings import FollowSettings
from potstill.serving.registry import Found, Registry
from potstill.serving.room import sources, wanted_from
from potstill.serving.routing import CanarySettings
from potstill.serving.run import running_server
from potstill.serving.settings import ServeSettings
from potstill.tracking import Tracking, client, default_uri, experiment_id, open_tracking
from tests.serving.test_swaps import ask, gone, load, started, text, until
from tests.serving.versions import settings, version


def register(tracking: Tracking, folder: Path, model: str) -> str:
    """A version of the model around this artifact, as `find_version` and `resolve_model_uri` read it."""
    root = folder.parent / f"root-{folder.name}"
    root.mkdir()
    (root / "artifact").symlink_to(folder)
    api = client(tracking)
    if not api.search_registered_models(f"name = '{model}'"):
        api.create_registered_model(model)
    run = api.create_run(experiment_id(tracking, "follow")).info.run_id
    tags = {"potstill.artifact": read_manifest(folder, "artifact").digest}
    return str(api.create_model_version(model, root.as_uri(), run, tags=tags).version)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One work folder for all: a fresh MLflow database takes seconds. Each test has a model of its own."""
    return tmp_path_factory.mktemp("work")


def test_an_alias_that_moves_swaps_and_one_that_moves_to_a_bad_version_does_not(tmp_path: Path, work: Path) -> None:
    tracking = open_tracking(default_uri(work))
    api = client(tracking)
    first, second = version(tmp_path / "a", "from a"), version(tmp_path / "b", "from b")
    bad = version(tmp_path / "bad", "from bad", canaries=["what was verified"])
    numbers = [register(tracking, each, "m") for each in (first, second, bad)]
    api.set_registered_model_alias("m", "champion", numbers[0])
    made = settings(tmp_path, follow=FollowSettings(every_s=0.2))
    with running_server("models:/m@champion", made, "", tmp_path / "c", registry=Registry(None, work)) as running:
        assert ask(running).json()["model"] == "m@1"
        api.set_registered_model_alias("m", "champion", numbers[1])
        assert until(lambda: text(ask(running)) == "from b", 60)
        assert ask(running).json()["model"] == "m@2"
        api.set_registered_model_alias("m", "champion", numbers[2])
        shown = tmp_path / "root-bad" / "artifact"
        assert until((shown.parent / "seen-artifact.jsonl").exists, 60)
        assert until(lambda: all(gone(pid) for pid in started(shown)))
        assert text(ask(running)) == "from b"
        api.set_registered_model_alias("m", "champion", numbers[0])  # rollback
        assert until(lambda: ask(running).json()["system_fingerprint"] == load(first), 60)


def test_a_registered_canary_comes_and_goes_with_its_alias(tmp_path: Path, work: Path) -> None:
    tracking = open_tracking(default_uri(work))
    api = client(tracking)
    numbers = [register(tracking, version(tmp_path / each, f"from {each}"), "n") for each in ("a", "b")]
    api.set_registered_model_alias("n", "champion", numbers[0])
    share = CanarySettings(share=0.5, by="request")
    made = settings(tmp_path, follow=FollowSettings(every_s=0.2), canary=share)
    with running_server("models:/n@champion", made, "", tmp_path / "c", registry=Registry(None, work)) as running:
        assert {text(ask(running)) for _ in range(8)} == {"from a"}
        api.set_registered_model_alias("n", "challenger", numbers[1])
        assert until(lambda: running.room.fleet.canary("n") is not None, 60)
        assert until(lambda: {text(ask(running)) for _ in range(8)} == {"from a", "from b"})
        api.delete_registered_model_alias("n", "challenger")
        assert until(lambda: running.room.fleet.canary("n") is None, 60)
        assert {text(ask(running)) for _ in range(8)} == {"from a"}


def test_what_the_watcher_does_with_the_aliases_reaches_one_server(tmp_path: Path, work: Path) -> None:
    """Tried, promoted while the one before keeps a share, then alone; at the start too."""
    tracking = open_tracking(default_uri(work))
    api = client(tracking)
    numbers = [register(tracking, version(tmp_path / each, f"from {each}"), "w") for each in ("a", "b")]
    api.set_registered_model_alias("w", "champion", numbers[0])
    api.set_registered_model_alias("w", "challenger", numbers[1])
    share = CanarySettings(share=0.5, by="request")
    made = settings(tmp_path, follow=FollowSettings(every_s=0.2), canary=share)
    with running_server("models:/w@champion", made, "", tmp_path / "c", registry=Registry(None, work)) as running:
        assert until(lambda: {text(ask(running)) for _ in range(8)} == {"from a", "from b"})
        api.set_registered_model_alias("w", "champion", numbers[1])
        api.set_registered_model_alias("w", "challenger", numbers[0])
        assert until(lambda: running.room.fleet.first.name == "w@2", 60)
        assert until(lambda: {text(ask(running)) for _ in range(8)} == {"from a", "from b"}, 60)
        canary = running.room.fleet.canary("w")
        assert canary is not None
        assert canary.name == "w@1"
        api.delete_registered_model_alias("w", "challenger")
        assert until(lambda: {text(ask(running)) for _ in range(8)} == {"from b"}, 60)


def test_a_canary_that_cannot_be_served_does_not_keep_the_server_from_its_start(
    tmp_path: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracking = open_tracking(default_uri(work))
    api = client(tracking)
    good, bad = version(tmp_path / "a", "from a"), version(tmp_path / "bad", "from bad", canaries=["what was verified"])
    numbers = [register(tracking, each, "v") for each in (good, bad)]
    api.set_registered_model_alias("v", "champion", numbers[0])
    api.set_registered_model_alias("v", "challenger", numbers[1])
    made = settings(tmp_path, canary=CanarySettings(share=1.0))
    with running_server("models:/v@champion", made, "", tmp_path / "c", registry=Registry(None, work)) as running:
        assert text(ask(running)) == "from a"
        assert "the canary v@2 is REFUSED" in capsys.readouterr().err


def test_what_names_nothing_is_refused_and_no_look_up_imports_mlflow_here(tmp_path: Path, work: Path) -> None:
    tracking = open_tracking(default_uri(work))
    number = register(tracking, version(tmp_path / "a", "from a"), "o")
    client(tracking).set_registered_model_alias("o", "champion", number)
    code = (
        "import sys; from pathlib import Path; from potstill.serving.registry import Registry; "
        "import potstill.serving.run, potstill.serving.worker, potstill.commands.serve; "
        f"found = Registry(None, Path({str(work)!r})).find('models:/o@champion'); "
        "print(found[0].name, 'mlflow' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert said.stdout.split() == ["o@1", "False"]
    with pytest.raises(RecipeError, match="no alias 'challenger'"):
        Registry(None, work).find("models:/o@challenger")
    with pytest.raises(RecipeError, match="nothing to serve"):
        sources(ServeSettings(), None, "")


def test_a_registered_version_is_served_in_the_format_that_ships() -> None:
    source = sources(ServeSettings(), "models:/m@champion", "")[0]
    found = Found("models:/m@champion", "m", "7", Path("a"), "d", "gguf-q8_0")
    assert (source.key, wanted_from(source, found).name, wanted_from(source, found).format) == (
        "m", "m@7", "gguf-q8_0",
    )  # fmt: skip
    chosen = sources(ServeSettings(format="gguf-f16"), "models:/m@champion", "")[0]
    assert wanted_from(chosen, found).format == "gguf-f16"

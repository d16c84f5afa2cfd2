"""Forgetting a user once everything is made: what learnt is refused until the same recipe has run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from potstill import cli
from potstill.dataset import read_examples, read_sealed
from potstill.errors import GateRefused
from potstill.lineage import lineage
from potstill.manifest import read_manifest
from potstill.pipeline import newest
from tests.stages.test_whole_way import RECIPE, exchange
from tests.stages.tiny_llama import tiny_base

USER, MINE = "walter-u7", ("x11", "x57", "x102", "x200")


def make(folder: Path) -> Path:
    base = tiny_base(folder / "base")
    pairs = [exchange(at) for at in range(300)]
    for row, _ in pairs:
        row["metadata"]["user"] = USER if row["id"] in MINE else f"u-{row['id']}"
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row, _ in pairs))
    (folder / "gold.jsonl").write_text("".join(json.dumps(gold) + "\n" for _, gold in pairs))
    (folder / "recipe.yaml").write_text(RECIPE.format(base=base.path).replace("epochs: 16", "epochs: 2"))
    return folder / "recipe.yaml"


def ids(dataset: Path) -> set[str]:
    rows = [*read_examples(dataset, "train"), *read_examples(dataset, "validation"), *read_sealed(dataset)]
    return {each.id for each in rows}


@pytest.mark.slow
def test_a_forgotten_user_is_refused_in_every_model_until_the_recipe_has_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make(tmp_path)
    monkeypatch.chdir(tmp_path)
    work = tmp_path / "work"

    def run() -> Any:
        capsys.readouterr()
        assert cli.main(["run", str(recipe), "--json"]) in (0, GateRefused.exit_code)
        return json.loads(capsys.readouterr().out)

    first = run()
    before = ids(Path(first["dataset"]["path"]))
    assert set(MINE) <= before
    assert cli.main(["forget", "--user", USER, "--work-dir", str(work), "--yes", "--refuse", "--json"]) == 0
    forgotten = json.loads(capsys.readouterr().out)
    assert forgotten["versions"] == 1
    assert not [path for path in work.rglob("*") if path.is_file() and USER.encode() in path.read_bytes()]
    artifact = Path(first["artifact"]["path"])
    assert read_manifest(artifact).digest == first["artifact"]["digest"]
    words = ["promote", "models:/tiny/1", "--why", "x", "--tracking-uri", f"sqlite:///{work}/mlflow.db"]
    for command in (["serve", str(artifact), "port=0"], ["serve", "models:/tiny/1", "port=0"], words):
        capsys.readouterr()
        assert cli.main(command) == GateRefused.exit_code
        assert "must be retrained" in capsys.readouterr().err

    second = run()
    assert not any(second[noun]["skipped"] for noun in ("dataset", "adapter", "artifact", "report", "version"))
    assert ids(Path(second["dataset"]["path"])) == before - set(MINE)
    assert newest(work / "tiny", "dataset") == Path(second["dataset"]["path"])
    capsys.readouterr()
    cli.main(["promote", "models:/tiny/2", *words[2:]])
    assert "must be retrained" not in capsys.readouterr().err
    kinds = lineage("x12", work).to_text()
    assert str(artifact) in kinds
    assert second["version"]["path"] in kinds

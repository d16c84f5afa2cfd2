"""Comparing bases: each trained on the same slice in a process of its own, failures as rows, nothing done twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from potstill import cli
from potstill.dataset import SEALED, read_examples
from potstill.lineage import lineage
from potstill.manifest import read_manifest, sha256_file
from tests.stages.test_whole_way import exchange
from tests.stages.tiny_llama import tiny_base

RECIPE = """\
name: tiny
task: {{kind: classification, labels: [bad, good, plain]}}
base_model: {base}
work_dir: work
distill:
  sources: [{{path: log.jsonl}}]
  split: {{test: 0.2, validation: 0.3}}
  duplicates: {{threshold: 1.0}}
train:
  {{learning_rate: 0.01, epochs: 6, batch_tokens: 256, window: 128, evals: 1, score_rows: 4, chat_template: base}}
evaluate: {{prices: {{usd_per_hour: 0.36}}}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    small = tiny_base(folder / "small")
    tiny_base(folder / "wide", seed=1, hidden_size=96, intermediate_size=192)
    card = "---\nlicense: other\nlicense_name: tiny-terms\n---\n# A card\n"
    (folder / "wide" / "README.md").write_text(card)
    log = [json.dumps(exchange(at)[0]) for at in range(260)]
    (folder / "log.jsonl").write_text("".join(f"{line}\n" for line in log))
    (folder / "recipe.yaml").write_text(RECIPE.format(base=small.path))
    return folder


def run(place: Path, capsys: Any, *words: str) -> tuple[int, Any]:
    command = ["compare-bases", str(place / "recipe.yaml"), "--json", "--no-track", "--rows", "90", *words]
    capsys.readouterr()
    code = cli.main(command)
    return code, json.loads(capsys.readouterr().out)


def test_two_bases_and_one_that_does_not_exist_side_by_side_and_never_twice(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bases = ["--bases", str(place / "small"), str(place / "wide"), str(place / "gone")]
    code, report = run(place, capsys, *bases, "train.seed=3")
    assert code == 0
    rows = {row["name"]: row for row in report["bases"]}
    assert rows["gone"]["status"] == "failed"
    assert "does not exist" in rows["gone"]["reason"]

    for name in ("small", "wide"):
        row = rows[name]
        assert row["status"] == "done", row
        assert row["quality"]["n"] == report["slice"]["judged"]
        assert 0 <= row["quality"]["low"] <= row["quality"]["value"] <= row["quality"]["high"] <= 1
        assert row["valid_rate"] == 1.0  # answers are constrained to the labels
        assert row["training"]["peak_memory_bytes"] > 100e6  # torch alone takes more
        assert row["training"]["tokens_per_second"] > 0
        assert row["training"]["full_seconds"] > row["training"]["seconds"]  # the slice is a part of the rows
        serving = row["serving"]
        assert serving["usd_per_million"] == pytest.approx(serving["seconds_per_thousand"] / 1000 / 3600 * 0.36 * 1e6)
        assert row["window"] == 512
    assert rows["wide"]["parameters"] > rows["small"]["parameters"] > 0
    assert rows["small"]["size_bytes"]["bf16"] == 2 * rows["small"]["parameters"]
    assert (rows["wide"]["licence"]["name"], rows["wide"]["licence"]["source"]) == ("tiny-terms", "model card")
    assert rows["small"]["licence"]["name"].startswith("unknown: look before you ship")
    assert sorted(row["standing"] for row in (rows["small"], rows["wide"]))[0] == "best"

    folder = Path(report["folder"])
    read_manifest(folder, "comparison")  # every file as listed
    page = (folder / "comparison.html").read_text()
    assert "small" in page
    assert "gone" in page
    assert "http" not in page.replace("http-equiv", "")

    trained = {path: path.stat().st_mtime_ns for path in folder.glob("adapter-*/manifest.json")}
    assert len(trained) == 2
    code, again = run(place, capsys, *bases, "train.seed=3")
    assert code == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("adapter-*/manifest.json")} == trained
    assert again["bases"] == report["bases"]


def test_slice_opens_no_test_row_keeps_judged_rows_from_training_and_leads_back_to_the_log(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report = run(place, capsys, "--bases", str(place / "gone"))
    assert code == 1  # no base has a result
    (sliced,) = Path(report["folder"]).glob("dataset-*")
    assert not (sliced / SEALED).exists()
    judged, watched = read_examples(sliced / "judged", "validation"), read_examples(sliced, "validation")
    train = read_examples(sliced, "train")
    assert len(train) == 90
    assert len(judged) > len(watched) > 0
    ids = [{each.id for each in rows} for rows in (judged, watched, train)]
    assert sum(map(len, ids)) == len(set.union(*ids))
    assert sha256_file(place / "log.jsonl")[:12] in lineage(str(sliced), place / "work").to_text()

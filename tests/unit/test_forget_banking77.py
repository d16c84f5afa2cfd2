"""`forget` on Banking77, the whole log through the real distil: every trace found, and exactly those rows differ."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from potstill import cli
from potstill.manifest import read_manifest
from potstill.pipeline import newest
from potstill.records import Json
from tests.shared_traffic import shared_log

from .forget_place import Place, add_descendants, distil

LABELS = Path(__file__).resolve().parents[2] / "configs" / "banking77" / "labels.txt"
USER = "customer-quokka"
RECIPE = """\
name: mail
task: {{kind: classification, labels: {labels}}}
base_model: {base}
work_dir: work
distill:
  sources: [{{path: {log}, format: openai_pairs}}, {{path: {captured}/exchanges-*.jsonl, format: openai_pairs}}]
  prompt: internalise
  audit: {{enabled: false}}
  split: {{test: {{where: {{metadata.split: test}}}}, validation: 0.05}}
"""


def rows_by_id(dataset: Path) -> dict[str, tuple[str, Json]]:
    """Split and every column of each row."""
    return {
        row["id"]: (path.stem, row)
        for path in sorted(dataset.rglob("*.parquet"))
        if path.stem in ("train", "validation", "test")
        for row in pq.read_table(path).to_pylist()
    }


def members(dataset: Path) -> list[Json]:
    found: list[Json] = pq.read_table(dataset / "members.parquet").to_pylist()
    return found


def without_number(row: Json) -> Json:
    """A cluster is called by its smallest row number, which counts the rows that are gone: compared apart."""
    return {name: each for name, each in row.items() if name != "cluster"}


def planted(line: Json, at: int) -> Json:
    line = json.loads(json.dumps(line))
    line["request"]["messages"][-1]["content"] += f" My quokka's name is Zanzibar-{at:02d}, please remember it."
    return line


def owned(lines: list[Json], mine: set[str], plant: set[str]) -> list[Json]:
    """The log with users: one owns the rows named, everybody else a row."""
    out = []
    for at, line in enumerate(lines):
        user = USER if line["id"] in mine else f"customer-{at:05d}"
        made = planted(line, at) if line["id"] in plant else line
        out.append(made | {"metadata": made["metadata"] | {"user": user}})
    return out


def write_recipe(root: Path) -> Path:
    captured = root / "work" / "captured" / "mail"
    captured.mkdir(parents=True)
    (root / "base").mkdir()
    (root / "base" / "config.json").write_text("{}")
    text = RECIPE.format(labels=LABELS, base=root / "base", log=root / "log.jsonl.gz", captured=captured)
    (root / "recipe.yaml").write_text(text)
    return captured


def write_gzip(path: Path, lines: list[Json]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(each) + "\n" for each in lines).encode(), 1))


@pytest.mark.slow
def test_every_trace_of_a_customer_is_found_and_the_rebuilt_dataset_differs_in_exactly_those_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with gzip.open(shared_log("banking77.jsonl.gz"), "rt") as stream:
        lines: list[Json] = [json.loads(line) for line in stream]
    captured = write_recipe(tmp_path)
    ours = [each for each in lines if each["metadata"]["split"] == "train"][-200:]  # as if our server had captured them
    (captured / "exchanges-1.jsonl").write_text("")
    write_gzip(tmp_path / "log.jsonl.gz", owned(lines, set(), set()))
    distil(tmp_path, monkeypatch)  # to find a row that stands for another customer's
    first = newest(tmp_path / "work" / "mail", "dataset")
    folded = next(each for each in members(first) if each["split"] == "train" and each["row"] != each["member"])
    plain = [each["id"] for each in lines if each["metadata"]["split"] == "train"][100:104]
    mine = {folded["row"], *plain, ours[0]["id"], ours[1]["id"]}
    plant = {*plain, ours[0]["id"], ours[1]["id"]}
    ours_ids = {each["id"] for each in ours}
    everybody = owned(lines, mine, plant)
    write_gzip(tmp_path / "log.jsonl.gz", [each for each in everybody if each["id"] not in ours_ids])
    (captured / "exchanges-1.jsonl").write_text(
        "".join(json.dumps(each) + "\n" for each in everybody if each["id"] in ours_ids)
    )
    distil(tmp_path, monkeypatch)
    place = Place(tmp_path, monkeypatch, newest(tmp_path / "work" / "mail", "dataset"))
    before = rows_by_id(place.old)
    text = next(each["request"]["messages"][-1]["content"] for each in everybody if each["id"] == plain[0])
    add_descendants(place, plain[0], text)
    words = (USER, "Zanzibar-", *sorted(mine))
    log = (tmp_path / "log.jsonl.gz").read_bytes()
    held = place.holding(*words)

    capsys.readouterr()
    command = ["forget", "--user", USER, "--work-dir", str(place.work)]
    assert cli.main(command) == 0
    plan = capsys.readouterr().out
    assert cli.main([*command, "--yes", "--why", "asked for by the customer", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    left = place.holding(*words)
    new = place.distil()
    after = rows_by_id(new)
    gone, came = set(before) - set(after), set(after) - set(before)
    changed = {each for each in set(before) & set(after) if differs(before[each], after[each])}
    report = {
        "rows before": len(before), "rows after": len(after), "files that held it": len(held),
        "files that hold it now": left, "exchanges": done["exchanges"], "gone": sorted(gone), "came": sorted(came),
        "changed": {each: difference(before[each], after[each]) for each in sorted(changed)},
        "forgotten, counted": read_manifest(new).facts["steps"]["forgotten"],
        "before == old without": same_clusters(before, after),
    }  # fmt: skip
    with capsys.disabled():
        print(f"\n{plan}\n{json.dumps(report, indent=1)}")

    assert left == []
    assert (tmp_path / "log.jsonl.gz").read_bytes() == log
    assert done["exchanges"] == len(mine) == 7
    assert gone == mine & set(before)
    heirs = {each["member"] for each in members(place.old) if each["row"] == folded["row"]}
    assert folded["row"] in gone
    assert came == {next(each["row"] for each in members(new) if each["member"] == folded["member"])}
    assert not changed
    assert same_clusters(before, after)
    assert not heirs  # of the old dataset nobody stands for another under the forgotten name any more


def differs(one: tuple[str, Json], other: tuple[str, Json]) -> bool:
    return (one[0], without_number(one[1])) != (other[0], without_number(other[1]))


def difference(one: tuple[str, Json], other: tuple[str, Json]) -> Any:
    rows = without_number(one[1]) | {"split": one[0]}, without_number(other[1]) | {"split": other[0]}
    return {name: (each, rows[1][name]) for name, each in rows[0].items() if each != rows[1][name]}


def same_clusters(before: dict[str, tuple[str, Json]], after: dict[str, tuple[str, Json]]) -> bool:
    """Whether the rows that both have are grouped alike, whatever the groups are called."""
    both = set(before) & set(after)
    pairs = {(before[each][1]["cluster"], after[each][1]["cluster"]) for each in both}
    return len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs})

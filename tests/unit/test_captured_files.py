"""Promises of captured traffic that was rotated into Parquet: distilled, traced and forgotten as its lines were."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from potstill import cli
from potstill.captured_files import INDEX, LOCK
from potstill.records import Json
from potstill.serving.captured import join
from potstill.serving.known_ids import KnownIds
from potstill.serving.rotation import rotate
from potstill.serving.settings import ServeSettings
from potstill.serving.tallies import Tallies
from tests.serving.test_metering import call_of
from tests.serving.test_steps_and_fleet import server_of

from .forget_place import Place, make_place, secret
from .mail_log import exchange

USER = "walter-u7"


def place(root: Path, patch: pytest.MonkeyPatch) -> Place:
    """Forty exchanges of a foreign log; captured are one of USER's, one that he judged, and eight of others."""
    mine = exchange(90, text=secret(90), metadata={"user": USER, "conversation": "k90"})
    judged = exchange(91) | {"feedback": [{"kind": "thumbs", "name": "", "value": True, "time": None, "by": USER}]}
    others = [exchange(at) for at in range(92, 100)]
    return make_place(root, patch, [exchange(at) for at in range(40)], [mine, judged, *others])


def rows(made: Place) -> dict[str, list[Json]]:
    dataset = made.distil()
    return {
        name: sorted(pq.read_table(dataset / name).to_pylist(), key=lambda row: str(row["id"]))
        for name in ("train.parquet", "validation.parquet", "sealed/test.parquet")
    }


@pytest.mark.parametrize("lines_stay", [True, False])
def test_a_rotated_folder_is_distilled_into_the_same_rows_by_the_same_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines_stay: bool
) -> None:
    made = place(tmp_path, monkeypatch)
    late = {"id": "x00095", "feedback": {"kind": "thumbs", "name": "", "value": False, "time": None, "by": "b"}}
    (made.captured / "feedback-1.jsonl").write_text(json.dumps(late) + "\n")
    before = rows(made)
    assert "x00095" not in json.dumps(before, default=str), "a thumb down keeps it out"
    assert "x00094" in json.dumps(before, default=str)
    assert rotate(made.captured, grace_s=1e9).rows == 10
    if not lines_stay:
        rotate(made.captured, grace_s=0)
    assert (made.captured / "exchanges-1.jsonl").exists() == lines_stay
    assert rows(made) == before


@pytest.mark.parametrize("lines_stay", [True, False])
def test_forgetting_takes_rows_out_of_rotated_files_and_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines_stay: bool
) -> None:
    made = place(tmp_path, monkeypatch)
    rotate(made.captured, grace_s=1e9)
    if not lines_stay:
        rotate(made.captured, grace_s=0)
    (made.captured / "exchanges-1.parquet.partial").write_bytes((made.captured / "exchanges-1.parquet").read_bytes())
    known = KnownIds(made.captured)
    assert known.knows("x00090")
    assert cli.main(["forget", "--user", USER, "--work-dir", str(made.work), "--yes"]) == 0
    assert made.holding(USER, "zanzibar0090", "x00090") == []
    assert [each.id for each in join(made.captured)] == [f"x000{at}" for at in range(91, 100)]
    assert all(not each.feedback for each in join(made.captured))
    assert not list(made.captured.glob("*.partial"))
    assert not (made.captured / INDEX).exists()
    assert not known.knows("x00090")
    assert cli.main(["forget", "--user", USER, "--work-dir", str(made.work), "--yes"]) == 0, "and again: nothing to do"


def test_a_rotated_file_of_one_user_alone_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = [exchange(at, text=secret(at), metadata={"user": USER}) for at in (90, 91)]
    made = make_place(tmp_path, monkeypatch, [exchange(at) for at in range(40)], mine)
    rotate(made.captured, grace_s=1e9)
    rotate(made.captured, grace_s=0)
    assert cli.main(["forget", "--user", USER, "--work-dir", str(made.work), "--yes"]) == 0
    assert [each.name for each in made.captured.iterdir() if each.name != LOCK] == []


def test_lineage_finds_an_answer_in_a_rotated_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = place(tmp_path, monkeypatch)
    rotate(made.captured, grace_s=1e9)
    assert cli.main(["lineage", "x00094", "--work-dir", str(made.work)]) == 0
    assert "exchanges-1.parquet:5" in capsys.readouterr().out


def test_what_a_forgotten_user_used_is_forgotten_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = place(tmp_path, monkeypatch)
    (made.work / "state").mkdir()
    kept = Tallies()
    kept.keep_in(made.work / "state")
    for user in (USER, "somebody"):
        kept.count(call_of(server_of(), user), ServeSettings())
    kept.write()
    assert cli.main(["forget", "--user", USER, "--work-dir", str(made.work), "--yes"]) == 0
    assert kept.top("user", user=USER) == []
    assert [each["requests"] for each in kept.top("user", user="somebody")] == [1]
    assert kept.top("key")[0]["requests"] == 2

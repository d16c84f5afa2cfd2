"""Promises of `forget`: every trace found, every one gone, nobody else touched, and a kill at any step made good."""

from __future__ import annotations

import gzip
import json
import re
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from distillation.relabel.ledger import Ledger
from potstill import cli
from potstill.errors import GateRefused, ManifestMismatch
from potstill.forgetting.act import forget, look
from potstill.forgetting.reading import edits_of
from potstill.forgetting.strike import strike_captured
from potstill.forgetting.suppressed import suppressed
from potstill.forgetting.tombstone import heed, read_tombstone
from potstill.forgetting.wanted import Wanted
from potstill.manifest import read_manifest
from potstill.pipeline import newest
from potstill.records import Json
from potstill.serving.captured import join

from .forget_place import Place, add_descendants, ledger_of, make_place, secret, users_log
from .mail_log import exchange, place_of, rejections_of, rows_of, said, write_log

USER = "walter-u7"
WORDS = ("zanzibar0007", "zanzibar0037", "zanzibar0047", USER, "x00007", "x00017", "x00027", "x00037", "x00047")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """u7's rows in a foreign log and in captured traffic, distilled, learnt, judged, cached and shown."""
    mine = exchange(90, text=secret(90), metadata={"user": USER, "conversation": "k90", "artifact": "0" * 12})
    later = exchange(91, text=secret(91), metadata={"user": "other", "conversation": "k91"},
                     feedback=[{"kind": "thumbs", "name": "", "value": True, "by": USER}])  # fmt: skip
    made = make_place(tmp_path, monkeypatch, users_log(), [mine, later, *(exchange(at) for at in range(92, 99))])
    opinion = {"kind": "thumbs", "name": "", "value": True}
    lines = [{"id": "x00090", "feedback": opinion}, {"id": "x00092", "feedback": opinion | {"by": USER}},
             {"id": "x00093", "feedback": opinion | {"by": "ann"}}]  # fmt: skip
    write_log(made.captured / "feedback-1.jsonl", lines)
    return made


def learnt_row(place: Place) -> str:
    split = place_of(place.old)
    return next(each for each in ("x00007", "x00017", "x00037", "x00047") if split.get(each) == "train")


def do(place: Place, **options: bool) -> int:
    return cli.main(["forget", "--user", USER, "--work-dir", str(place.work), "--yes", "--why", "asked",
                     *(f"--{name}" for name, wanted in options.items() if wanted)])  # fmt: skip


def test_nothing_of_a_forgotten_user_stays_in_any_byte_of_the_working_folder(place: Place) -> None:
    row = learnt_row(place)
    add_descendants(place, row, secret(int(row[1:])))
    before = place.holding(*WORDS)
    expected = {"cache/predictions/a-1.jsonl", "captured/mail/exchanges-1.jsonl", "captured/mail/feedback-1.jsonl",
                "mail/adapter-adapter___/contract.json", "mail/look-dataset.html", "mail/relabel/relabel.sqlite",
                "mail/report-report____/predictions.parquet", "mail/report-report____/report.html",
                f"mail/{place.old.name}/members.parquet", f"mail/{place.old.name}/rejections.parquet"}  # fmt: skip
    assert expected <= set(before)
    log = (place.root / "log.jsonl").read_bytes()
    assert do(place) == 0
    assert place.holding(*WORDS) == []
    assert (place.root / "log.jsonl").read_bytes() == log
    assert ledger_of(place) == [("k1", None, 5), ("k2", '{"said": "card"}', 5)]
    assert [each.id for each in join(place.captured)] == [f"x000{at}" for at in range(91, 99)]
    assert [(each.id, [one.by for one in each.feedback]) for each in join(place.captured) if each.feedback] == [
        ("x00093", ["ann"])
    ]


def test_dry_run_finds_it_all_and_changes_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    row = learnt_row(place)
    add_descendants(place, row, secret(int(row[1:])))
    before = {path: path.read_bytes() for path in place.work.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert cli.main(["forget", "--user", USER, "--work-dir", str(place.work), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["exchanges"] == 6
    assert {"log", "captured traffic", "dataset", "adapter", "artifact", "report", "cached answers"} <= {
        each["kind"] for each in found["found"]
    }
    assert {path: path.read_bytes() for path in before} == before
    assert not found["done"]
    assert not suppressed(place.work)


def test_the_rebuilt_dataset_differs_in_exactly_the_forgotten_rows(place: Place) -> None:
    before = {row.id: (split, row) for split, rows in rows_of(place.old).items() for row in rows}
    old_rejected = {each["id"] for each in rejections_of(place.old)}
    gone = {"x00007", "x00017", "x00027", "x00037", "x00047", "x00090"}
    do(place)
    new = place.distil()
    assert new != place.old
    after = {row.id: (split, row) for split, rows in rows_of(new).items() for row in rows}
    rejected = {each["id"] for each in rejections_of(new)}
    assert set(before) | old_rejected - {None} == (set(after) | rejected) | gone
    assert not gone & (set(after) | rejected)
    twins = {"x00017": "x00070", "x00027": "x00003"}  # whoever stood for the other: the next member takes its place
    for id, (split, row) in before.items():
        if id not in gone and id not in twins.values():
            assert after[id][0] == split
            assert after[id][1].messages == row.messages
            assert after[id][1].weight == row.weight
    assert all(each in after for each in twins.values())
    facts = read_manifest(new).facts
    assert facts["rejections"]["read: forgotten"] == facts["steps"]["forgotten"] == 6  # five rows and a damaged line
    assert [each.role for each in read_manifest(new).inputs].count("forgotten") == 1


def test_a_second_request_finds_nothing_to_do_and_writes_nothing(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    do(place)
    before = sorted((place.work / "forgotten").iterdir())
    capsys.readouterr()
    assert do(place) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert sorted((place.work / "forgotten").iterdir()) == before
    assert cli.main(["forget", "--user", "nobody", "--work-dir", str(place.work), "--yes"]) == 0
    assert sorted((place.work / "forgotten").iterdir()) == before


def test_the_record_says_who_when_why_and_what_but_no_id_and_no_text(place: Place) -> None:
    do(place)
    (path,) = (place.work / "forgotten").glob("*.json")
    record = json.loads(path.read_text())
    assert record["state"] == "done"
    assert record["why"] == "asked"
    assert record["exchanges"] == 6
    assert record["recipes"] == ["mail"]
    assert not any(word in path.read_text() for word in WORDS)
    assert all(re.fullmatch("[0-9a-f]{32}", each) for marks in record["marks"].values() for each in marks)
    assert {each["act"] for each in record["found"]} >= {"blank", "rows", "mark", "suppress"}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("stride", [6, pytest.param(1, marks=pytest.mark.faults)])
def test_killed_at_any_step_the_same_request_goes_on_to_the_same_end(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    steps: list[str] = []
    captured = exchange(90, text=secret(90), metadata={"user": USER, "conversation": "k90"})
    at = 0
    while True:
        root = tmp_path_factory.mktemp("killed")
        made = make_place(root, monkeypatch, users_log(), [captured])
        row = learnt_row(made)
        add_descendants(made, row, secret(int(row[1:])))
        taken: list[str] = []

        def kill(step: str, taken: list[str] = taken, at: int = at) -> None:
            taken.append(step)
            if len(taken) > at:
                raise Killed

        try:
            forget(made.work, "user", USER, by="me", why="", step=kill)
            break
        except Killed:
            steps.append(taken[-1].partition(" ")[0])
        if at:
            assert suppressed(made.work), "what is begun is never read again"
        forget(made.work, "user", USER, by="me", why="")
        assert made.holding(*WORDS) == [], f"killed before step {at}: {taken[-1]}"
        records = [json.loads(each.read_text()) for each in (made.work / "forgotten").glob("*.json")]
        assert [each["state"] for each in records] == ["done"]
        for noun in ("adapter-adapter___", "artifact-artifact__", "report-report____"):
            read_manifest(made.work / "mail" / noun)  # the struck files are those that the tombstone names
            stone = read_tombstone(made.work / "mail" / noun)
            assert stone is not None
            assert stone.again == ("evaluate" if noun.startswith("report") else "train")
        at += stride
    every = {"record", "mark", "page", "json", "lines", "ledger", "rows", "blank", "seal", "done"}
    assert len(set(steps)) >= 3 if stride > 1 else every <= set(steps)


def test_models_that_learnt_from_it_are_marked_and_still_verify(place: Place) -> None:
    row = learnt_row(place)
    made = add_descendants(place, row, secret(int(row[1:])))
    do(place, refuse=True)
    artifact = place.work / "mail" / "artifact-artifact__"
    assert read_manifest(artifact).digest == made["artifact"].digest
    assert [
        each["messages"][0]["content"] for each in json.loads((artifact / "contract.json").read_text())["golden"]
    ] == [said(1)]
    with pytest.raises(GateRefused, match="learnt from rows that were forgotten since; it must be retrained"):
        heed(artifact, "serve")
    (artifact / "contract.json").write_text("{}")
    with pytest.raises(ManifestMismatch, match=r"contract\.json"):
        read_manifest(artifact)


def test_a_forged_tombstone_passes_no_other_file_off_as_struck(place: Place) -> None:
    row = learnt_row(place)
    add_descendants(place, row, secret(int(row[1:])))
    do(place)
    adapter = place.work / "mail" / "adapter-adapter___"
    read_manifest(adapter)
    stone = json.loads((adapter / "forgotten.json").read_text())
    (adapter / "contract.json").write_text("{}")
    stone["files"]["contract.json"] = {"sha256": "0" * 64, "size_bytes": 2}
    (adapter / "forgotten.json").write_text(json.dumps(stone))
    with pytest.raises(ManifestMismatch):
        read_manifest(adapter)


def test_a_model_that_only_was_judged_on_it_needs_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_place(tmp_path, monkeypatch, [exchange(at) for at in range(60)])
    row = next(id for id, split in place_of(made.old).items() if split == "test")
    add_descendants(made, row, said(int(row[1:])))
    assert cli.main(["forget", "--exchange", row, "--work-dir", str(made.work), "--yes"]) == 0
    stone = read_tombstone(made.work / "mail" / "report-report____")
    assert stone is not None
    assert stone.again == "evaluate"
    adapter = read_tombstone(made.work / "mail" / "adapter-adapter___")
    assert adapter is None or adapter.again == "nothing"


def test_later_turns_that_repeat_a_forgotten_exchange_go_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = exchange(1, text=secret(1), metadata={"conversation": "talk"})
    second = exchange(2, metadata={"conversation": "talk"})
    told = [
        *first["request"]["messages"],
        {"role": "assistant", "content": "cash"},
        {"role": "user", "content": said(2)},
    ]
    second["request"] = {"model": "large", "messages": told}
    made = make_place(tmp_path, monkeypatch, [exchange(at) for at in range(10, 50)], [first, second])
    assert look(made.work, "exchange", "x00001").wanted.ids == {"x00001", "x00002"}
    assert look(made.work, "exchange", "x00002").wanted.ids == {"x00002"}
    assert look(made.work, "conversation", "talk").wanted.ids == {"x00001", "x00002"}


def test_a_user_named_by_an_address_is_found_under_the_placeholder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[Json | str] = [exchange(at) for at in range(40)]
    lines += [exchange(50, text=secret(50), metadata={"user": "jane.doe@example.org"})]
    made = make_place(tmp_path, monkeypatch, lines)
    assert made.holding("jane.doe") == []
    assert cli.main(["forget", "--user", "jane.doe@example.org", "--work-dir", str(made.work), "--yes"]) == 0
    assert made.holding("zanzibar0050") == []
    assert "x00050" not in place_of(made.distil())


def test_a_server_that_is_writing_loses_no_line(tmp_path: Path) -> None:
    path = tmp_path / "captured" / "mail" / "exchanges-1.jsonl"
    path.parent.mkdir(parents=True)
    write_log(path, [exchange(at, metadata={"user": "a" if at % 3 else USER}) for at in range(300)])

    def serve() -> None:
        with path.open("ab", buffering=0) as stream:
            for at in range(300, 2000):
                stream.write(json.dumps(exchange(at, metadata={"user": "a"})).encode() + b"\n")

    server = threading.Thread(target=serve)
    server.start()
    wanted = Wanted.of(tmp_path, "user", USER)
    while server.is_alive():
        strike_captured(path, edits_of(path, wanted)[0])
    server.join()
    strike_captured(path, edits_of(path, wanted)[0])
    kept = [each.id for each in join(path.parent)]
    assert kept == [f"x{at:05d}" for at in range(2000) if at >= 300 or at % 3]
    assert USER not in path.read_text()


USERS = st.sampled_from(["ann", "bob", "carol-9", "42", "dan@example.org", "train"])
log_lines = st.lists(
    st.builds(
        lambda at, user, talk, twin: exchange(
            at, text=said(twin) if twin is not None else None, metadata={"user": user, "conversation": talk}
        ),
        st.integers(100, 140), USERS, st.sampled_from(["t1", "t2", "t3", None]), st.sampled_from([None, None, 0, 1]),
    ),
    max_size=20, unique_by=lambda each: each["id"],
)  # fmt: skip


@hypothesis_settings(max_examples=15)
@given(logged=log_lines, captured=log_lines, user=USERS)
def test_the_plan_finds_everything_that_names_a_user_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, logged: list[Json], captured: list[Json], user: str
) -> None:
    root = tmp_path_factory.mktemp("plan")
    captured = [each | {"id": f"c{each['id']}"} for each in captured]
    with pytest.MonkeyPatch.context() as patch:
        made = make_place(root, patch, [*(exchange(at) for at in range(40)), *logged], captured)
        everybody = [*logged, *captured]
        mine = {each["id"] for each in everybody if each["metadata"]["user"] == user}
        # an exchange of somebody else in the same conversation with the same beginning repeats what was said
        said_in = {(each["metadata"]["conversation"], json.dumps(each["request"]["messages"])) for each in everybody
                   if each["id"] in mine and each["metadata"]["conversation"]}  # fmt: skip
        mine |= {each["id"] for each in everybody
                 if (each["metadata"]["conversation"], json.dumps(each["request"]["messages"])) in said_in}  # fmt: skip
        assert look(made.work, "user", user).wanted.ids == mine
        others = {each["id"] for each in everybody} - mine
        forget(made.work, "user", user, by="me", why="")
        known = {each["id"] for each in rejections_of(made.old)} | set(place_of(made.old))
        assert others <= known
        assert not mine & known
        assert (
            {each.id for each in join(made.captured)} == {each["id"] for each in captured} - mine if captured else True
        )
        new = made.distil() if mine else made.old
        assert set(place_of(new)) | {each["id"] for each in rejections_of(new)} >= others
        assert not mine & {*place_of(new), *(each["id"] for each in rejections_of(new))}


def test_a_run_at_work_is_not_disturbed(place: Place) -> None:
    from potstill.errors import PotstillError
    from potstill.pipeline import locked

    with locked(place.work / "mail"), pytest.raises(PotstillError, match="another potstill is at work"):
        forget(place.work, "user", USER, by="me", why="")
    assert newest(place.work / "mail", "dataset") == place.old


def test_short_texts_and_ids_do_not_spoil_files_that_hold_such_words_by_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An id `12`, a message `business` and a label stand in every vocabulary and in the task's own definition."""
    mine = exchange(100, "loan", text="business", metadata={"user": "42", "conversation": "cc"}) | {"id": "12"}
    made = make_place(tmp_path, monkeypatch, [*(exchange(at, "card") for at in range(60)), mine])
    add_descendants(made, "12", "business")
    adapter = made.work / "mail" / "adapter-adapter___"
    others = {adapter / "tokenizer" / "tokenizer.json": json.dumps({"vocab": ["12", "42", "business", "loan"]}),
              adapter / "task.json": json.dumps({"task": {"labels": ["card", "loan"]}})}  # fmt: skip
    for path, text in others.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert cli.main(["forget", "--user", "42", "--work-dir", str(made.work), "--yes"]) == 0
    assert {path: path.read_text() for path in others} == others
    assert [each["text"] for each in json.loads((adapter / "contract.json").read_text())["golden"]] == [
        f"<user>{said(1)}"
    ]
    assert "12" not in place_of(made.distil())


def test_what_a_teacher_was_asked_for_two_rows_stays_until_both_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_place(tmp_path, monkeypatch, [exchange(at) for at in range(60)])
    add_descendants(made, "x00005", "nothing")
    with Ledger(made.work / "mail" / "relabel" / "relabel.sqlite", 10**12) as ledger:
        ledger.asked_for([("k1", "x00006")])
    for row, answers in (("x00005", [True, True]), ("x00006", [False, True])):
        assert cli.main(["forget", "--exchange", row, "--work-dir", str(made.work), "--yes"]) == 0
        assert [response is not None for _, response, _ in ledger_of(made)] == answers


def test_compressed_captured_traffic_is_rewritten_without_the_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = exchange(90, text=secret(90), metadata={"user": USER})
    made = make_place(tmp_path, monkeypatch, [exchange(at) for at in range(40)], [mine, exchange(91)])
    plain = made.captured / "exchanges-1.jsonl"
    packed = plain.with_name("exchanges-1.jsonl.gz")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert cli.main(["forget", "--user", USER, "--work-dir", str(made.work), "--yes"]) == 0
    assert made.holding(USER, "zanzibar0090", "x00090") == []
    assert json.loads(gzip.decompress(packed.read_bytes()))["id"] == "x00091"


def test_a_dataset_from_before_members_were_kept_still_tells_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_place(tmp_path, monkeypatch, users_log())
    (made.old / "members.parquet").unlink()
    assert cli.main(["forget", "--user", USER, "--work-dir", str(made.work), "--yes"]) == 0
    assert made.holding(*WORDS) == []


def test_a_run_without_anything_forgotten_has_the_key_that_it_always_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_place(tmp_path, monkeypatch, [exchange(at) for at in range(40)])
    assert look(made.work, "user", "nobody").traces == []
    assert made.distil() == made.old
    assert not [each for each in read_manifest(made.old).inputs if each.role == "forgotten"]

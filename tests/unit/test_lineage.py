"""Promises of `lineage`: from a served answer or a data row, both ways, as text, as JSON and as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill import cli
from potstill.errors import RecipeError
from potstill.lineage import Node, lineage
from potstill.lineage.picture import HEIGHT, WIDTH, draw
from potstill.manifest import sha256_file

from .forget_place import Place, add_descendants, make_place, users_log
from .mail_log import correction, exchange, place_of, rejections_of, said, write_log

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A dataset with folded rows, an adapter, an artifact and a report made of it, and answers of that artifact."""
    place = make_place(tmp_path, monkeypatch, users_log())
    row = next(id for id, split in place_of(place.old).items() if split == "train")
    made = add_descendants(place, row, "some words that nobody said")
    answer = exchange(200, metadata={"user": "u", "conversation": "k", "artifact": made["artifact"].digest[:12]})
    write_log(place.captured / "exchanges-1.jsonl", [answer])
    write_log(place.captured / "feedback-1.jsonl", [{"id": "x00200", "feedback": correction("loan")[0]}])
    return place


def kinds(node: Node, way: str) -> list[str]:
    found = []
    for each in getattr(node, way):
        found += [each.kind, *kinds(each, way)]
    return found


def test_a_served_answer_leads_back_over_artifact_adapter_and_dataset_to_the_log(place: Place) -> None:
    node = lineage("x00200", place.work)
    assert node.kind == "answer"
    back = kinds(node, "made_from")
    assert back[:4] == ["artifact", "adapter", "dataset", "traffic"]
    assert "feedback" in back
    assert sha256_file(place.root / "log.jsonl")[:12] in node.to_text()


def test_a_row_names_the_exchanges_folded_into_it_and_what_learnt_from_it(place: Place) -> None:
    folded = next(each for each in rejections_of(place.old) if "duplicate of" in each["reason"])
    standing = folded["reason"].rpartition(" ")[2]
    row = lineage(standing, place.work)
    assert [each.digest for each in row.made_from if each.kind == "exchange"] == [folded["id"]]
    assert kinds(row, "made_into") == ["dataset", "adapter", "artifact", "report", "report"]
    twin = lineage(folded["id"], place.work)
    assert f"train, as a part of {standing}" in twin.made_into[0].path
    assert "traffic" in kinds(twin, "made_from")


def test_a_sealed_row_is_judged_on_and_never_learnt(place: Place) -> None:
    row = next(id for id, split in place_of(place.old).items() if split == "test")
    node = lineage(row, place.work)
    assert kinds(node, "made_into") == ["dataset", "report"]
    assert "never learnt" in node.made_into[0].path


def test_a_row_that_was_left_out_says_why_and_leads_to_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_place(tmp_path, monkeypatch, [*(exchange(at) for at in range(60)), *(
        exchange(at, "no idea", text=said(at)) for at in range(60, 80))])  # fmt: skip
    out = next(each for each in rejections_of(made.old) if each["reason"].startswith("invalid answer"))
    node = lineage(out["id"], made.work)
    assert "left out: invalid answer" in node.made_into[0].path
    assert kinds(node, "made_into") == ["dataset"]


def test_a_conversation_lists_its_exchanges(place: Place) -> None:
    assert [each.digest for each in lineage("c12", place.work).made_from] == ["x00012"]


def test_an_id_that_nothing_knows_is_refused(place: Place) -> None:
    with pytest.raises(RecipeError, match="found no such folder, file, answer or row"):
        lineage("x99999", place.work)


def test_the_picture_is_drawn_beside_text_and_json(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    for name in ("out.svg", "out.html"):
        words = ["lineage", "x00200", "--work-dir", str(place.work), "--picture", str(place.root / name), "--json"]
        assert cli.main(words) == 0
        assert json.loads(capsys.readouterr().out)["kind"] == "answer"
    page = (place.root / "out.html").read_text()
    assert "<svg" in page
    assert "src=" not in page
    assert "href=" not in page
    assert cli.main(["lineage", "x00200", "--work-dir", str(place.work), "--picture", "out.png"]) == 2


def leaf(at: int) -> Node:
    return Node(("traffic", "dataset", "adapter", "artifact", "report")[at % 5], f"{at:064x}", f"/a/b/thing-{at}")


nodes = st.recursive(
    st.builds(leaf, st.integers(0, 30)),
    lambda below: st.builds(
        lambda node, made_from, made_into: Node(node.kind, node.digest, node.path, tuple(made_from), tuple(made_into)),
        st.builds(leaf, st.integers(0, 30)), st.lists(below, max_size=3), st.lists(below, max_size=3),
    ),
    max_leaves=15,
)  # fmt: skip


def things(node: Node) -> set[tuple[str, str]]:
    below = [each for child in (*node.made_from, *node.made_into) for each in things(child)]
    return {(node.kind, node.digest), *below}


@given(nodes)
def test_every_thing_is_drawn_once_inside_the_picture_and_none_over_another(node: Node) -> None:
    root = ElementTree.fromstring(draw(node))
    boxes = [each for each in root.iter(f"{SVG}rect") if each.get("class") == "box"]
    corners = [(float(each.get("x", "")), float(each.get("y", ""))) for each in boxes]
    assert len(boxes) == len(things(node))
    for at, (x, y) in enumerate(corners):
        assert 0 <= x <= float(root.get("width", "")) - WIDTH
        assert 0 <= y <= float(root.get("height", "")) - HEIGHT
        assert all(abs(x - other) >= WIDTH or abs(y - down) >= HEIGHT for other, down in corners[:at])


def test_no_line_is_drawn_that_a_longer_way_implies() -> None:
    report = Node("report", "4" * 64, "/r")
    artifact = Node("artifact", "3" * 64, "/a", made_into=(report,))
    adapter = Node("adapter", "2" * 64, "/b", made_into=(artifact, report))
    dataset = Node("dataset", "1" * 64, "/d", made_into=(adapter, artifact, report))
    assert sum(1 for _ in ElementTree.fromstring(draw(dataset)).iter(f"{SVG}path")) == 3

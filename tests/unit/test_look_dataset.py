"""Promises of `potstill look`: the page holds what it says, no text breaks out of it, the sealed split stays sealed."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.cli import main
from potstill.dataset import SEALED, read_examples, read_sealed
from potstill.looking.choose import even, shares
from potstill.looking.page import embedded
from potstill.manifest import read_manifest, write_manifest
from potstill.prompt import PromptRule
from potstill.records import Json

from .mail_log import LABELS, SYSTEM, Whole, correction, exchange, rejections_of, said

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "banking77" / "cpu.yaml"
HOSTILE = (
    "</script><script>alert('gone')</script><!--<script> ]]> \" ' & \\u003c \u2028\u2029\x00 "
    "<img src=x onerror=alert(1)>"
)
Page = tuple[Json, Json, str]
Look = Callable[..., Page]


class Elements(HTMLParser):
    """Every start tag with its attributes, and the content of each script, as an HTML parser sees them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.inside = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "script"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[-1] += data


def finish(folder: Path, facts: Json, kind: str = "dataset") -> Path:
    write_manifest(folder, kind, settings_passed={}, settings_used={"name": "mail"}, inputs=(), facts=facts, key="k")
    return folder


@pytest.fixture
def look(whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Look:
    """Distils lines and looks at them: what the command says, the page's data, the page."""

    def run(lines: list[Json], *options: str, audit: list[Json] | None = None, **changes: Any) -> Page:
        facts, out = whole(lines, **changes)
        if audit is not None:
            pq.write_table(pa.Table.from_pylist(audit), out / "audit.parquet")
        finish(out, facts)
        capsys.readouterr()
        assert main(["look", str(out), "--json", *options]) == 0
        outcome = json.loads(capsys.readouterr().out)
        page = Path(outcome["path"]).read_text(encoding="utf-8")
        return outcome, json.loads(Elements(page).scripts[0]), page

    return run


def said_in(row: Json, data: Json) -> str:
    """The text of a row's prompt, standing parts resolved."""
    parts = [text for turn in row["prompt"] for _, text in turn["parts"]]
    return "\n".join(data["texts"][each] if isinstance(each, int) else each for each in parts)


# What the page holds


def test_page_holds_every_open_row_and_every_row_left_out_with_its_reason(look: Look) -> None:
    lines = [exchange(at) for at in range(40)] + [exchange(at, label="no label") for at in range(40, 50)]
    outcome, data, _ = look(lines)
    out = Path(outcome["dataset"])
    kept = {row.id: row for split in ("train", "validation") for row in read_examples(out, split)}  # type: ignore[arg-type]
    assert set(data["kept"]["ids"]) == set(kept) == set(data["rows"])
    for id, row in data["rows"].items():
        assert (row["answer"], row["origin"]) == (kept[id].answer, "teacher")
        assert said_in(row, data) == f"{SYSTEM}\n{kept[id].messages[-1]['content']}"
        assert [turn["parts"][0][0] for turn in row["prompt"]] == [False, True]  # the system message is not seen
    rejected = {row["id"]: row for row in rejections_of(out)}
    assert {row["id"] for row in data["left_out"].values()} == set(rejected)
    for row in data["left_out"].values():
        assert (row["step"], row["reason"]) == (rejected[row["id"]]["step"], rejected[row["id"]]["reason"])
        assert (row["teacher"], row["kind"]) == ("no label", "validate: invalid answer")
    assert outcome["rows"]["rejected"] == len(rejected) == sum(data["rejected"]["groups"].values())
    assert outcome["sealed"] == len(read_sealed(out))


def test_reasons_are_counted_as_the_manifest_counts_them_and_steps_add_up(look: Look) -> None:
    lines = [exchange(at, text=said(at % 30), label=LABELS[at % 3]) for at in range(60)]
    lines += [exchange(at, label="none") for at in range(60, 70)] + [exchange(61)]
    outcome, data, _ = look(lines)
    facts = read_manifest(Path(outcome["dataset"])).facts
    assert data["rejected"]["groups"] == facts["rejections"]
    flow = data["overview"]["flow"]
    assert flow["made"] == 0
    assert flow["steps"][-1]["left"] == flow["held"] == sum(facts["rows"].values())
    assert {step["step"] for step in flow["steps"]} == {"read", "validate", "fold"}


def test_cluster_names_its_representative_and_what_is_folded_into_it(look: Look) -> None:
    lines = [exchange(at) for at in range(30)] + [exchange(90 + at, "card", said(900 + at // 3)) for at in range(12)]
    outcome, data, _ = look(lines)
    kept = {row.id: row.count for s in ("train", "validation") for row in read_examples(Path(outcome["dataset"]), s)}  # type: ignore[arg-type]
    several = {id: count for id, count in kept.items() if count > 1}
    assert several
    assert {each["kept"][0]: each["size"] for each in data["clusters"]["list"]} == several
    for each in data["clusters"]["list"]:
        assert len(each["folded"]) == each["folds"] == each["size"] - 1
        for member in each["folded"]:
            row = data["left_out"][str(member["number"])]
            assert (row["id"], row["reason"]) == (member["id"], f"exact duplicate of {each['kept'][0]}")


def test_suspects_come_worst_first_with_their_rows_even_outside_the_sample(look: Look) -> None:
    lines = [exchange(at) for at in range(60)]
    columns = {
        "finding": "suspect",
        "teacher": "card",
        "suggested": "cash",
        "action": "keep",
        "evidence": "a model",
    }
    audit: list[Json] = [{"id": f"x{at:05d}", "score": at / 100, **columns} for at in range(60)]
    outcome, data, _ = look(lines, "--rows", "4", audit=audit)
    assert [each["score"] for each in data["suspects"]["list"]] == [0.59, 0.58, 0.57, 0.56]
    open_ids = {row.id for s in ("train", "validation") for row in read_examples(Path(outcome["dataset"]), s)}  # type: ignore[arg-type]
    for each in data["suspects"]["list"]:
        assert (each["id"] in data["rows"]) == (each["id"] in open_ids)
        if each["id"] in open_ids:
            assert data["rows"][each["id"]]["audit"][0]["evidence"] == "a model"


def test_corrections_and_preferences_show_what_was_said_and_what_is_wanted(look: Look) -> None:
    lines = [exchange(at, feedback=correction(LABELS[(at + 1) % 3]) if at % 2 else []) for at in range(40)]
    outcome, data, _ = look(lines)
    corrected = [row for row in data["rows"].values() if row["origin"] == "corrected"]
    assert corrected
    assert all(row["answer"] != row["teacher"] for row in corrected)
    pairs = {(each["chosen"], each["rejected"]) for each in data["preferences"]["list"]}
    assert pairs == {(row["answer"], row["teacher"]) for row in corrected}
    assert outcome["rows"]["preferences"] == len(corrected)


# How much of it


def test_rows_are_capped_and_a_rare_reason_is_still_shown(look: Look) -> None:
    lines = [exchange(at) for at in range(60)] + [exchange(100 + at, label="none") for at in range(60)]
    lines += [exchange(0)]
    outcome, data, _ = look(lines, "--rows", "10")
    assert outcome["shown"]["kept"] == len(data["kept"]["ids"]) == 10 < outcome["rows"]["kept"] == data["kept"]["total"]
    shown = [data["left_out"][str(at)] for at in data["rejected"]["numbers"]]
    assert outcome["shown"]["rejected"] == len(shown) == 10 < outcome["rows"]["rejected"]
    assert {row["kind"] for row in shown} == {"validate: invalid answer", "read: id seen before"}


def test_same_dataset_gives_the_same_page(look: Look, capsys: pytest.CaptureFixture[str]) -> None:
    outcome, _, page = look([exchange(at) for at in range(30)], "--rows", "7")
    again = Path(outcome["path"]).with_name("again.html")
    assert main(["look", outcome["dataset"], "--rows", "7", "--no-open", "--out", str(again)]) == 0
    assert capsys.readouterr().out == f"{again}\n"
    assert again.read_text(encoding="utf-8") == page


def test_long_texts_lose_their_middle_and_say_how_much(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potstill.looking.contents.MOST_CHARACTERS", 0)
    text = " ".join(said(at) for at in range(200))
    lines = [exchange(at, text=f"{at} {text} {at}") for at in range(20)]
    _, data, page = look(lines, duplicates={"threshold": 1.0})
    for row in data["rows"].values():
        shown = row["prompt"][1]["parts"][0][1]
        number = int(row["id"][1:])
        assert (shown.split()[0], shown.split()[-1]) == (str(number), str(number))
        assert f"[… {len(text) + 2 * len(str(number)) + 2 - 4_000:,} characters not shown …]" in shown
    assert len(page) < 300_000


@given(st.integers(0, 5_000), st.integers(1, 300))
def test_even_choice_is_sorted_distinct_and_spread(total: int, most: int) -> None:
    chosen = even(total, most)
    assert len(chosen) == min(total, most)
    gaps = [b - a for a, b in zip(chosen, [*chosen[1:], total], strict=False)]
    assert not chosen or (chosen[0] == 0 and min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)


@given(st.dictionaries(st.text(), st.integers(1, 500), max_size=12), st.integers(1, 1_000))
def test_small_groups_are_shown_whole_and_no_more_than_asked(sizes: dict[str, int], most: int) -> None:
    given_ = shares(sizes, most)
    assert sum(given_.values()) == min(most, sum(sizes.values()))
    cut = [given_[name] for name in sizes if given_[name] < sizes[name]]
    assert all(given_[name] <= min(cut, default=0) + 1 for name in sizes if cut)


# What may not happen


def test_no_text_of_a_row_breaks_out_of_the_page(look: Look) -> None:
    plain = [exchange(at) for at in range(40)] + [exchange(at, label="none") for at in range(40, 60)]
    hostile = [
        exchange(at, text=f"{said(at)} {HOSTILE}", metadata={"conversation": f"c{at} {HOSTILE}", HOSTILE: HOSTILE})
        for at in range(40)
    ]
    hostile += [exchange(at, label=f"none {HOSTILE}", id=f"{HOSTILE} {at}") for at in range(40, 60)]
    _, _, harmless = look(plain)
    _, data, page = look(hostile)
    assert "alert(" not in harmless
    elements = Elements(page)
    assert [tag for tag, _ in elements.tags] == [tag for tag, _ in Elements(harmless).tags]
    assert elements.scripts[1] == Elements(harmless).scripts[1]
    assert not {"\u2028", "\u2029", "\x00"} & set(page)
    assert all(HOSTILE in said_in(row, data) and row["metadata"][HOSTILE] == HOSTILE for row in data["rows"].values())
    assert any(HOSTILE in row["teacher"] for row in data["left_out"].values())


@given(st.recursive(st.text() | st.none(), lambda each: st.lists(each) | st.dictionaries(st.text(), each)))
def test_embedded_data_comes_back_and_holds_no_markup(value: Any) -> None:
    text = embedded(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029\x00") & set(text)
    assert Elements(f"<script>{text}</script><b>").scripts == [text]


def test_page_asks_for_nothing_and_runs_its_own_script_alone(look: Look) -> None:
    _, _, page = look([exchange(at) for at in range(30)])
    tags = Elements(page).tags
    policy = next(found["content"] for tag, found in tags if found.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in str(policy)
    assert not [tag for tag, found in tags if {"src", "onclick", "onload", "style"} & set(found) or tag == "link"]
    script = Elements(page).scripts[1]
    banned = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "http")
    assert not [word for word in banned if word in script]


def test_sealed_split_is_not_opened_and_its_texts_are_nowhere(look: Look, whole: Whole, tmp_path: Path) -> None:
    where = {"test": {"where": {"metadata.split": "test"}}}
    splits = ["test", "train", "train"]
    lines = [exchange(at, metadata={"conversation": f"c{at}", "split": splits[at % 3]}) for at in range(60)]
    twin = exchange(90, text=said(0), metadata={"conversation": "c90", "split": "train"})
    sealed_again = exchange(91, text=said(3), id="x00003")  # a second row with a sealed row's id
    again = exchange(92, text=said(1), id="x00001")  # and with an open row's
    outcome, data, page = look([*lines, twin, sealed_again, again], split=where)
    out = Path(outcome["dataset"])
    sealed = [row.messages[-1]["content"] for row in read_sealed(out)]
    assert len(sealed) == outcome["sealed"] == 20
    assert not [text for text in sealed if text in page]
    withheld = {row["reason"]: row for row in data["left_out"].values() if "withheld" in row}
    assert {reason.partition(" ")[0] for reason in withheld} == {"twin", "id"}
    assert said(1) in said_in(next(row for row in data["left_out"].values() if row["id"] == "x00001"), data)
    before = Path(outcome["path"]).read_bytes()
    (out / SEALED).write_bytes(b"not even Parquet")
    assert main(["look", str(out), "--json"]) == 0
    assert Path(outcome["path"]).read_bytes() == before


# The command


def test_recipe_stands_for_its_newest_dataset(whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts, out = whole([exchange(at) for at in range(30)])
    work = tmp_path / "place"
    target = work / "banking-intents" / "dataset-0123456789"
    shutil.copytree(out, target)
    finish(target, facts)
    capsys.readouterr()
    for named in ([str(RECIPE), f"work_dir={work}"], [str(target)], [str(target.parent)]):
        assert main(["look", *named, "--json"]) == 0
        outcome = json.loads(capsys.readouterr().out)
        assert outcome["path"] == str(work / "banking-intents" / "look-dataset-0123456789.html")
    read_manifest(target, "dataset")  # the folder is as it was


def test_what_is_no_dataset_is_refused_with_a_reason(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts, out = whole([exchange(at) for at in range(30)])
    capsys.readouterr()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    finish(adapter, {}, kind="adapter")
    (tmp_path / "hollow").mkdir()
    finish(tmp_path / "hollow", {})
    expected = {
        (str(out),): (4, "no manifest.json"),
        (str(adapter),): (4, "holds a adapter, expected: dataset"),
        (str(tmp_path / "hollow"),): (4, "train.parquet is missing"),
        (str(tmp_path / "nowhere.yaml"),): (2, "nowhere.yaml"),
        (str(RECIPE), f"work_dir={tmp_path / 'empty'}"): (4, "no finished dataset"),
    }
    for words, (code, reason) in expected.items():
        assert main(["look", *words, "--no-open"]) == code
        assert reason in capsys.readouterr().err
    finish(out, facts)
    for options, reason in (
        (("--out", str(out / "look.html")), "its files are hashed"),
        (("--out", str(tmp_path / "no" / "look.html")), "is no folder"),
        (("--rows", "0"), "expected at least 1"),
        (("work_dir=x",), "settings change a recipe"),
    ):
        assert main(["look", str(out), "--no-open", *options]) == 2
        assert reason in capsys.readouterr().err
    read_manifest(out, "dataset")


def test_prompt_kept_or_shortened_is_shown_beside_the_students() -> None:
    from potstill.looking.prompts import Texts, compared

    user, long = {"role": "user", "content": "and now?"}, {"role": "user", "content": "first"}
    texts = Texts()
    framed = {"role": "user", "content": "<q>and now?</q>"}
    rule = PromptRule.from_json({"strips": [{"role": "user", "prefix": "<q>", "suffix": "</q>"}]})
    assert compared([long, framed], [user], rule, texts, 1_000) == [
        {"role": "user", "parts": [[False, 2]]},
        {"role": "user", "parts": [[False, 0], [True, "and now?"], [False, 1]]},
    ]
    assert texts.all() == ["<q>", "</q>", "first"]
    assert compared([framed], [{"role": "user", "content": "[…] now?"}], PromptRule(), texts, 1_000) is None


# In a browser


def test_browser_shows_rows_as_text_and_says_how_many(look: Look, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    lines = [exchange(at, text=f"{said(at)} {HOSTILE}") for at in range(40)]
    lines += [exchange(at, label="none") for at in range(40, 50)]
    outcome, data, _ = look(lines, "--rows", "5")
    address = Path(outcome["path"]).resolve().as_uri()

    def dom(tab: str) -> str:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
        shown = subprocess.run(
            [str(browser), *flags, "--virtual-time-budget=3000", f"{address}#{tab}"],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        return shown.stdout.partition("<main")[2].partition("</main>")[0]

    kept = dom("kept")
    assert kept.count('class="row"') == 5
    assert f"shown 5 of {outcome['rows']['kept']}" in kept
    assert all(said(int(id[1:])) in kept for id in data["kept"]["ids"])
    assert "&lt;/script&gt;" in kept
    assert not [tag for tag in ("<img", "<script") if tag in kept]
    assert "validate: invalid answer" in dom("rejected")
    assert f"{outcome['sealed']}</b>" in dom("overview")

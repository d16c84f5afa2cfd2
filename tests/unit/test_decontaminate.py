"""Promises of decontamination: what stands in an evaluation file is found with its line, the rest is left alone."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillation.decontaminate import Contamination, Decontaminate, joined_words, words_of
from distillation.evaluation_texts import evaluation_texts
from potstill.dataset import write_examples
from potstill.errors import DamagedInput, RecipeError
from potstill.records import Example

from .mail_log import said


def index(path: Path, lines: list[str], **settings: Any) -> Contamination:
    path.write_text("\n".join(lines), encoding="utf-8")
    return Contamination.build(Decontaminate(files=(str(path),), **settings))


def test_a_text_is_found_with_file_and_line_whatever_its_case_and_punctuation(tmp_path: Path) -> None:
    path = tmp_path / "exam.txt"
    built = index(path, ["What is the capital of France?", "", "Wie groß ist die Straße in Köln?"])
    assert built.hits(
        ["what IS the capital -- of france", "WIE GROß IST, die Straße in KÖLN", "Something else entirely"]
    ) == [
        f"{path}:1",
        f"{path}:3",
        None,
    ]


@given(st.integers(0, 20), st.integers(0, 20), st.integers(9, 25))
def test_thirteen_words_in_a_row_are_a_hit_and_twelve_are_not(before: int, after: int, shared: int) -> None:
    exam = [f"exam{at}" for at in range(40)]
    row = [f"mine{at}" for at in range(before)] + exam[5 : 5 + shared] + [f"yours{at}" for at in range(after)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distillation.decontaminate.evaluation_texts", _one(" ".join(exam)))
        built = Contamination.build(Decontaminate(files=("exam.txt",), near_duplicates=None))
    assert built.hits([" ".join(row)]) == ["exam.txt:1" if shared >= 13 else None]


def _one(text: str) -> Any:
    from distillation.evaluation_texts import EvaluationText

    return lambda path, keys: iter([EvaluationText(text, "exam.txt:1")])


def test_words_do_not_run_from_one_row_into_the_next(tmp_path: Path) -> None:
    words = [f"word{at}" for at in range(20)]
    built = index(tmp_path / "exam.txt", [" ".join(words)], near_duplicates=None)
    assert built.hits([" ".join(words[:10]), " ".join(words[10:])]) == [None, None]


def test_a_near_duplicate_with_a_changed_word_is_found(tmp_path: Path) -> None:
    text = said(1)
    path = tmp_path / "exam.txt"
    changed = text.replace(text.split()[7], text.split()[7] + "s", 1)
    assert index(path, [said(0), text], near_duplicates=0.8).hits([changed, said(2)]) == [f"{path}:2", None]
    assert index(path, [said(0), text], near_duplicates=None).hits([changed]) == [None]


def test_standing_text_that_many_evaluation_texts_share_is_no_evidence(tmp_path: Path) -> None:
    standing = "Read the following passage with care and then answer the question that stands at its end in one word"
    path = tmp_path / "exam.txt"
    built = index(path, [f"{standing} {said(at)}" for at in range(30)], near_duplicates=None)
    assert built.hits([f"{standing} {said(99)}", f"{standing} {said(7)}"]) == [None, f"{path}:8"]


def test_a_few_words_give_nothing_away(tmp_path: Path) -> None:
    assert index(tmp_path / "exam.txt", ["yes please", "thank you very much"]).hits(["Yes, please!"]) == [None]


@given(st.lists(st.text(max_size=30), max_size=6))
def test_the_normal_form_keeps_letters_and_digits_alone(texts: list[str]) -> None:
    for text, normal in zip(texts, joined_words(words_of(texts)), strict=True):
        assert normal == normal.strip()
        assert "  " not in normal
        if text.isascii():
            assert normal == " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
        assert joined_words(words_of([normal])) == [normal]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=8))
def test_a_rows_hit_does_not_depend_on_its_neighbours(numbers: list[int]) -> None:
    exam = " ".join(said(at) for at in (1, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distillation.decontaminate.evaluation_texts", _one(exam))
        built = Contamination.build(Decontaminate(files=("exam.txt",)))
    texts = [said(at) for at in numbers]
    assert built.hits(texts) == [built.hits([text])[0] for text in texts]
    assert built.hits(texts) == ["exam.txt:1" if at in (1, 4) else None for at in numbers]


# Files


def read(path: Path, *keys: str) -> list[tuple[str, str]]:
    return [(each.text, each.place.rpartition(":")[2]) for each in evaluation_texts(str(path), keys)]


RECORDS: list[dict[str, Any]] = [
    {"question": "one?", "n": {"deep": "eins"}},
    {"question": "two?", "n": {"deep": "zwei"}},
]


def test_every_form_of_file_gives_its_texts_and_lines(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(each) for each in RECORDS)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.json").write_text(json.dumps(RECORDS))
    (tmp_path / "d.csv").write_text("question,n\none?,x\ntwo?,y\n")
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "e.parquet")
    (tmp_path / "f.txt").write_text("one?\n\ntwo?\n")
    lines_of = {"d.csv": ["2", "3"], "f.txt": ["1", "3"]}
    for name in ("a.jsonl", "b.jsonl.gz", "c.json", "d.csv", "e.parquet", "f.txt"):
        first, second = lines_of.get(name, ["1", "2"])
        assert [(text.strip(), line) for text, line in read(tmp_path / name)] == [("one?", first), ("two?", second)]
    assert read(tmp_path / "a.jsonl", "n.deep") == [("eins", "1"), ("zwei", "2")]
    assert read(tmp_path / "e.parquet", "question", "n.deep")[:2] == [("one?", "1"), ("eins", "1")]


def test_of_messages_what_the_user_wrote_last_counts_also_in_our_own_datasets(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "standing instructions"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "well"},
        {"role": "user", "content": [{"type": "text", "text": "and then?"}]},
    ]
    row = Example("id", "c", messages, messages, "answer", None, "said")
    write_examples(tmp_path / "test.parquet", [row])
    assert read(tmp_path / "test.parquet") == [("and then?", "1")]
    (tmp_path / "log.jsonl").write_text(json.dumps({"id": "x", "request": {"messages": messages}}))
    assert read(tmp_path / "log.jsonl") == [("and then?", "1")]


def test_a_gold_file_is_matched_by_id(tmp_path: Path) -> None:
    path = tmp_path / "gold.jsonl"
    path.write_text('{"id": "a1", "answer": "card"}\n{"id": "a2", "answer": "cash"}\n')
    built = Contamination.build(Decontaminate(files=(str(path),)))
    assert built.hits(["any text", "other text"], ids=["a2", "zz"]) == [f"{path}:2", None]
    assert built.hits(["any text"]) == [None]


@pytest.mark.parametrize(
    ("name", "text", "keys", "error", "said_"),
    [
        ("a.jsonl", '{"other": 1}', (), RecipeError, "a.jsonl:1: found other; expected messages or"),
        ("a.jsonl", '{"question": "x"}', ("prompt",), RecipeError, "expected prompt; give `keys`"),
        ("a.jsonl", '{"question": "x"}\n{broken', (), DamagedInput, "a.jsonl:2: not JSON"),
        ("a.parquet", "no parquet", (), DamagedInput, "a.parquet"),
        ("a.jsonl.gz", "no gzip", (), DamagedInput, "a.jsonl.gz"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_line(
    tmp_path: Path, name: str, text: str, keys: tuple[str, ...], error: type[Exception], said_: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(error) as fault:
        read(tmp_path / name, *keys)
    assert said_ in str(fault.value)


def test_a_missing_file_is_a_fault_of_the_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        Contamination.build(Decontaminate(files=(str(tmp_path / "none.txt"),)))


def test_no_files_give_no_hits() -> None:
    assert Contamination.build(Decontaminate()).hits(["a text"], ids=["x"]) == [None]

"""The truth of the synthetic traffic is true, by computations that share no code with its generator."""

from __future__ import annotations

import gzip
import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import phonenumbers
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stdnum import iban, luhn

from benchmarks.curate import personal, traffic
from benchmarks.curate.beside import _dropped, _redacted
from benchmarks.curate.outcome import core, judge, leaks, read_outcome, read_truth
from benchmarks.curate.traffic import Planted, Traffic

Json = dict[str, Any]
ROWS = 3_000


@cache
def made() -> tuple[list[bytes], list[Planted]]:
    """All lines of a small log, and what is planted in them."""
    log = Traffic(seed=7, rows=ROWS)
    both = [log.line(row) for row in range(ROWS)]
    return [line for line, _ in both], [planted for _, planted in both if planted]


def line(row: int) -> Json:
    found: Json = json.loads(made()[0][row])
    return found


def of(kind: str) -> list[Planted]:
    return [each for each in made()[1] if each.kind == kind]


def plain_rows() -> list[int]:
    return sorted(set(range(ROWS)) - {each.row for each in made()[1]})


def grams(row: int, roles: tuple[str, ...]) -> set[str]:
    """Character 5-grams of the prompt's turns of these roles, by the definition and nothing else."""
    text = " ".join(each["content"] or "" for each in line(row)["request"]["messages"] if each["role"] in roles)
    text = " ".join(re.findall(r"[a-z0-9]+", text.lower()))
    return {text[at : at + 5] for at in range(len(text) - 4)}


def similarity(a: int, b: int, roles: tuple[str, ...] = ("user", "assistant", "tool")) -> float:
    one, two = grams(a, roles), grams(b, roles)
    return len(one & two) / len(one | two)


def test_every_kind_is_planted_in_its_share() -> None:
    counts = Counter(each.kind for each in made()[1])
    for kind, share in traffic.SHARES:
        assert counts[kind] == pytest.approx(share * ROWS, rel=0.4, abs=5), kind


def test_lines_are_of_one_kilobyte_on_average() -> None:
    mean = sum(map(len, made()[0])) / ROWS
    assert 1_000 <= mean <= 1_100


def test_the_same_seed_makes_the_same_log_and_another_seed_another() -> None:
    again = Traffic(seed=7, rows=ROWS)
    assert [again.line(row)[0] for row in (0, 250, 2_999)] == [made()[0][row] for row in (0, 250, 2_999)]
    assert Traffic(seed=8, rows=ROWS).line(250)[0] != made()[0][250]


def test_ids_times_and_conversations_are_those_of_a_log() -> None:
    damaged = {each.row for each in of("damaged")}
    lines = [line(row) for row in range(ROWS) if row not in damaged]
    assert len({each["id"] for each in lines}) == len(lines)
    assert [each["time"] for each in lines] == sorted(each["time"] for each in lines)
    assert len({each["metadata"]["user"] for each in lines}) > ROWS / 40
    conversations = Counter(each["metadata"]["conversation"] for each in lines)
    assert max(conversations.values()) == 2


def test_the_next_turn_of_a_conversation_goes_on_with_its_messages_and_answer() -> None:
    log = Traffic(seed=7, rows=ROWS)
    following = [row for row in range(ROWS) if log.continues(row)]
    assert len(following) > ROWS / 20
    for row in following[:50]:
        before, after = line(row - 1), line(row)
        answered = [*before["request"]["messages"], before["response"]["choices"][0]["message"]]
        assert after["request"]["messages"][: len(answered)] == answered
        assert after["metadata"] == before["metadata"]


def test_an_exact_repeat_has_the_request_of_its_twin_in_another_conversation() -> None:
    for each in of("exact"):
        assert each.twin_row is not None
        assert each.twin_row < each.row
        one, two = line(each.row), line(each.twin_row)
        assert one["request"]["messages"] == two["request"]["messages"]
        assert one["request"].get("tools") == two["request"].get("tools")
        assert (one["id"], two["id"]) == (each.id, each.twin_id)
        assert one["id"] != two["id"]
        assert one["metadata"]["conversation"] != two["metadata"]["conversation"]


def test_a_near_repeat_is_as_like_its_twin_as_the_truth_says_with_the_instructions_and_without() -> None:
    for each in of("near"):
        assert each.twin_row is not None
        alone = similarity(each.row, each.twin_row)
        whole = similarity(each.row, each.twin_row, ("system", "user", "assistant", "tool"))
        assert 0.91 <= alone <= 0.99
        assert 0.91 <= whole <= 0.99
        assert each.jaccard == pytest.approx(alone, abs=0.02)


def test_rows_that_nobody_planted_are_far_from_alike() -> None:
    rows = [row for row in plain_rows() if not Traffic(7, ROWS).continues(row)][:250]
    sets = [grams(row, ("user", "assistant", "tool")) for row in rows]
    highest = max(
        len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for a in range(len(rows)) for b in range(a + 1, len(rows))
    )
    assert highest < 0.7


def test_a_planted_value_stands_once_where_the_truth_says_and_in_no_other_line() -> None:
    whole = b"\n".join(made()[0])
    for each in of("personal"):
        assert each.value is not None
        exchange = line(each.row)
        messages, answer = exchange["request"]["messages"], exchange["response"]["choices"][0]["message"]["content"]
        calls = [call["function"]["arguments"] for message in messages for call in message.get("tool_calls", ())]
        asked = [message["content"] for message in messages if message["role"] == "user"]
        assert {"prompt": asked[-1], "answer": answer, "arguments": "".join(calls)}[each.where or ""].count(each.value)
        assert whole.count(each.value.encode()) == 1
    assert {each.what for each in of("personal")} == set(personal.KINDS)


def test_planted_values_are_valid_by_the_checks_of_their_kind() -> None:
    checks: dict[str, Callable[[str], Any]] = {
        "email": lambda text: re.fullmatch(r"[^@\s]+@[a-z.-]+\.[a-z]+", text),
        "phone_us": lambda text: phonenumbers.is_valid_number(phonenumbers.parse(text, "US")),
        "phone_international": lambda text: phonenumbers.is_valid_number(phonenumbers.parse(text, None)),
        "card": lambda text: luhn.is_valid(re.sub("[ -]", "", text)),
        "iban": iban.is_valid,
        "ip": lambda text: ipaddress.ip_address(text).is_global,
        "api_key": lambda text: len(text) >= 20,
    }
    for each in of("personal"):
        assert each.value is not None
        assert checks[each.what or ""](each.value), each


def test_answers_and_damage_are_what_the_truth_says() -> None:
    choices = {
        kind: [line(e.row)["response"]["choices"][0] for e in of(kind)] for kind in ("empty", "length", "refusal")
    }
    assert {each["message"]["content"] for each in choices["empty"]} == {""}
    assert {each["finish_reason"] for each in choices["length"]} == {"length"}
    assert {each["message"]["content"] for each in choices["refusal"]} <= set(traffic.REFUSALS)
    for each in of("damaged"):
        try:
            found = line(each.row)
        except ValueError:
            continue
        assert not isinstance(found, dict) or "choices" not in found["response"]


def test_the_written_log_is_the_same_compressed_or_not_and_the_truth_lies_beside(tmp_path: Path) -> None:
    log, truth = traffic.write(tmp_path / "a", ROWS, seed=7)
    packed, _ = traffic.write(tmp_path / "b", ROWS, seed=7, compressed=True)
    assert log.read_bytes() == gzip.decompress(packed.read_bytes()) == b"\n".join([*made()[0], b""])
    assert read_truth(truth) == made()[1]


def test_leaks_finds_every_value_in_the_log_and_none_in_a_log_without_them() -> None:
    values = {each.value.encode() for each in of("personal") if each.value}
    text = b"\n".join(made()[0])
    assert leaks([text[:1000], text], values) == values
    for value in values:
        text = text.replace(value, b"<GONE>")
    assert leaks([text], values) == set()


@pytest.mark.parametrize("at", range(9))
def test_leaks_finds_what_is_left_of_a_value_wherever_it_stands(at: int) -> None:
    value = b"sk-abcdefghijklmnopqrstuvwxyz"
    assert leaks([b"." * at + core(value)], {value}) == {value}
    assert leaks([b"." * at + core(value)[:-1] + b"#"], {value}) == set()


def dataset(folder: Path, fold: bool, redact: bool) -> Path:
    """A dataset folder of the small log: all rows, repeats folded or not, values replaced or not."""
    by_id = {each.id: each for each in made()[1]}
    rows, rejected = [], []
    for number, text in enumerate(made()[0]):
        planted = by_id.get(Traffic(7, ROWS).id(number))
        content, reason = text.decode(errors="replace"), None
        if planted and planted.value and redact:
            content = content.replace(planted.value, "<GONE>")
        if planted and planted.kind == "damaged":
            rejected.append({"id": None, "line": number + 1, "step": "damaged", "reason": "not JSON", "row": content})
            continue
        if planted and planted.twin_id and fold:
            reason = f"near-duplicate of {planted.twin_id}"
        elif planted and planted.kind in ("empty", "length", "refusal"):
            reason = f"answer: {planted.kind}"
        identity = Traffic(7, ROWS).id(number)
        if reason:
            rejected.append({"id": identity, "line": number + 1, "step": "x", "reason": reason, "row": content})
        else:
            rows.append({"id": identity, "cluster": number, "messages": content})
    (folder / "sealed").mkdir(parents=True)
    for name, part in (("train", rows[:-100]), ("validation", rows[-100:-50]), ("sealed/test", rows[-50:])):
        pq.write_table(pa.Table.from_pylist(part), folder / f"{name}.parquet")
    schema = pa.schema([(name, pa.int64() if name == "line" else pa.string()) for name in rejected[0]])
    pq.write_table(pa.Table.from_pylist(rejected, schema), folder / "rejections.parquet")
    (folder / "manifest.json").write_text(json.dumps({"facts": {}}))
    return folder


def test_a_dataset_without_any_fault_is_judged_to_have_found_everything(tmp_path: Path) -> None:
    judged = judge(read_outcome(dataset(tmp_path / "good", True, True)), Traffic(7, ROWS), made()[1])
    assert judged.found == judged.planted
    assert judged.planted["near"] == len(of("near"))
    assert sum(judged.planted[kind] for kind in personal.KINDS) == len(of("personal"))
    assert judged.share("no such kind") is None


def test_a_dataset_that_folds_and_redacts_nothing_is_judged_to_have_found_nothing(tmp_path: Path) -> None:
    judged = judge(read_outcome(dataset(tmp_path / "bad", False, False)), Traffic(7, ROWS), made()[1])
    assert judged.share("exact") == judged.share("near") == judged.share(*personal.KINDS) == 0
    assert judged.planted["folded"] == 0


def test_rows_folded_into_strangers_are_counted_against_precision(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "strange", True, True)
    table = pq.read_table(folder / "rejections.parquet")
    log, [one, two, *_] = Traffic(7, ROWS), [row for row in plain_rows() if row > 1_000]
    wrong = {
        "id": log.id(one),
        "line": one + 1,
        "step": "fold",
        "reason": f"near-duplicate of {log.id(two)}",
        "row": "",
    }
    pq.write_table(
        pa.concat_tables([table, pa.Table.from_pylist([wrong], table.schema)]), folder / "rejections.parquet"
    )
    judged = judge(read_outcome(folder), log, made()[1])
    assert judged.planted["folded"] - judged.found["folded"] == 1


def test_peers_are_judged_by_the_same_truth() -> None:
    truth = made()[1]
    all_twins = [each.row for each in truth if each.twin_row is not None]
    alone = next(row for row in plain_rows() if row not in {each.twin_row for each in truth})
    found = _dropped({"dropped": [*all_twins, alone], "last": ROWS}, truth)
    assert (found["exact repeats found"], found["near repeats found"]) == (1, 1)
    assert found["dropped rightly"] == len(all_twins) / (len(all_twins) + 1)
    texts = {str(e.row): e.value if e.what == "api_key" else "<GONE>" for e in truth if e.kind == "personal"}
    judged = _redacted({"texts": texts}, truth)
    assert judged["personal values found, API keys apart"] == 1
    assert judged["personal values found"] < 1

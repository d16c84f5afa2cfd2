"""Promises of redaction over many rows: the same bytes however they are divided, nothing missed for speed."""

from __future__ import annotations

import json
import random
import stat
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from potstill.errors import RecipeError
from potstill.prompt import find_rule, parts_of
from potstill.records import Json
from potstill.redaction import PLACEHOLDER, Redactor, load_names, redact_batch, redaction_key

VALUES = {
    "EMAIL": ["ann.lee@example.org", "O'Brien+x@mail.example.co.uk", "jürgen@bücher.example", "ann%40example.org"],
    "CARD": ["4111 1111 1111 1111", "378282246310005", "5555-5555-5555-4444", "4111111111111111 12/27 123"],
    "IBAN": ["DE89 3704 0044 0532 0130 00", "gb82west12345698765432", "NO9386011117947"],
    "NATIONAL_ID": ["308-63-0237", "529.982.247-25", "11010519491231002X", "RSSMRA85T10A562S", "my SSN is 308 63 0237"],
    "IP": ["203.0.113.77", "2001:db8:85a3::8a2e:370:7334"],
    "PHONE": [
        "+49 30 901820",
        "(212) 736-5000",
        "+1-962-819-8200",
        "0660 565 36 45",
        "call 455 6186",
        "751-954-9268x12",
    ],
    "URL": ["https://e.example/r?token=abcdef123456", "postgresql://ann:pw@db.example/x"],
    "API_KEY": [
        "sk-abcdefghij0123456789ABCDEF",
        "hf_" + "a1B2c3D4e5" * 3,
        "api_key = a1b2c3d4e5f6a7b8c9d0",
        "Bearer abcdefghij0123456789",
        "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----",
    ],
}
planted = st.sampled_from([(kind, value) for kind, each in VALUES.items() for value in each])
around = st.sampled_from(["", " ", "\n", "\t", '"', "\\", ": ", "=", "(", "，", "<", "'", "/ "])


def exchange(identity: str, text: str, conversation: str | None = None, **message: Any) -> Json:
    """An exchange as OpenAI's API logs it, with every number, time and id of its envelope."""
    return {
        "id": identity,
        "time": "2026-01-05T08:00:00.123456Z",
        "request": {
            "model": "gpt-4o-mini-2024-07-18",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text} | message],
            "temperature": 0.7,
            "seed": 1234567890123,
        },
        "response": {
            "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
            "created": 1767600000,
            "system_fingerprint": "fp_44709d6fcb",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 212, "completion_tokens": 88, "total_tokens": 300},
        },
        "latency_ms": 812.1234567,
        "cost_usd": 0.00213412345,
        "metadata": {"user": "user-17", "conversation": conversation, "split": None, "tags": {}},
        "feedback": [],
    }


def batch(rows: list[Json], **changes: Any) -> list[Json]:
    texts, _ = redact_batch(pa.array([orjson.dumps(row).decode() for row in rows]), Redactor(**changes))
    return [orjson.loads(each) for each in texts.to_pylist()]


@given(planted, around, around, st.sampled_from(["text", "json", "json in json", "escaped", "cut short"]))
@example(("IP", "2001:db8:85a3::8a2e:370:7334"), "", ": ", "text")
@example(("IBAN", "gb82west12345698765432"), "，", "", "json in json")
def test_every_kind_is_found_in_a_batch_wherever_it_stands(
    case: tuple[str, str], before: str, after: str, form: str
) -> None:
    kind, value = case
    text = f"So{before or ' '}{value}{after or ' '}it is"
    if form == "json":
        text = json.dumps({"q": text}, ensure_ascii=False)
    if form == "json in json":
        text = json.dumps({"q": json.dumps([text])})
    if form in ("escaped", "cut short"):
        text = f"He wrote {json.dumps(text, ensure_ascii=False)[: -1 if form == 'cut short' else None]}"
    (row,) = [exchange("x", text)]
    texts, found = redact_batch(pa.array([orjson.dumps(row).decode()]), Redactor())
    if before not in ("\\", "=", "<") and not (before in "/ ':" and kind in ("URL", "PHONE")):
        assert found[kind] == 1, (text, found)
    assert orjson.loads(texts[0].as_py()) == Redactor().exchange(row)


pieces = st.sampled_from("0123456789") | st.sampled_from(
    [*" -.:/()+@_%\\\"'\nxXaAfFtTzZé，#=?&", "::", "://", "2026-01-05", "T08:00:00Z", "sk-", "token=", "DE89"]
) | planted.map(lambda case: case[1])  # fmt: skip


@settings(max_examples=400)
@given(st.lists(pieces, max_size=30).map("".join), st.booleans())
@example("call 12:2125551234", False)
@example("+49 30 901820-", False)
@example("+49 30 901820_", False)
def test_the_quick_look_over_a_batch_misses_nothing_that_the_rules_find(text: str, as_json: bool) -> None:
    row = exchange("x", json.dumps({"value": text}) if as_json else text)
    assert batch([row]) == [Redactor().exchange(row)]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), planted, planted), min_size=1, max_size=12),
    st.integers(0, 2**32),
    st.integers(1, 4),
)
def test_any_division_and_order_of_the_rows_gives_the_same_bytes(
    cases: list[tuple[str, tuple[str, str], tuple[str, str]]], seed: int, workers: int
) -> None:
    rows = [
        orjson.dumps(exchange(f"x{at}", f"I am {one[1]} not {two[1]}", conversation)).decode()
        for at, (conversation, one, two) in enumerate(cases)
    ]
    whole, counts = redact_batch(pa.array(rows), Redactor(key=b"k"))
    draw = random.Random(seed)
    order = list(range(len(rows)))
    draw.shuffle(order)
    done: dict[int, str] = {}
    total = 0
    redactors = [Redactor(key=b"k") for _ in range(workers)]
    while order:
        some = [order.pop() for _ in range(draw.randint(1, len(order)))]
        texts, found = redact_batch(pa.array([rows[at] for at in some]), draw.choice(redactors))
        done |= dict(zip(some, texts.to_pylist(), strict=True))
        total += found.total()
    assert [done[at] for at in range(len(rows))] == whole.to_pylist()
    assert total == counts.total() > 0


def test_rows_without_findings_keep_every_byte() -> None:
    rows = [json.dumps(exchange(f"x{at}", f"Is {at} {{}} fine?"), indent=1) for at in range(50)] + ["{}", "not JSON"]
    texts, found = redact_batch(pa.array([*rows, None]), Redactor())
    assert texts.to_pylist() == [*rows, None]
    assert not found


def test_the_envelope_of_an_exchange_makes_no_row_a_suspect() -> None:
    """Times, ids and token counts are in every row: were they taken for findings, none would be quick."""
    import pyarrow.compute as pc

    from potstill.redaction.batch import SIGN

    draw = random.Random(3)
    rows = []
    for _ in range(500):
        row = exchange("", "Where is my order, please?")
        uuid = f"{draw.getrandbits(32):08x}-1f2e-4b0c-9a7d-{draw.getrandbits(48):012x}"
        row["id"] = row["metadata"]["conversation"] = uuid
        row["response"]["created"] += draw.randrange(10**8)
        row["request"]["messages"][1]["tool_call_id"] = f"call_{draw.getrandbits(96):024x}"
        rows.append(orjson.dumps(row).decode())
    suspects = pc.sum(pc.match_substring_regex(pa.array(rows), SIGN)).as_py()
    assert suspects <= 0.02 * len(rows)


def test_a_standing_text_that_holds_personal_data_stays_one_text() -> None:
    """Were the placeholder different in each conversation, no two rows would have the same instructions."""
    system = "You sort mail. Complaints go to help@bank.example."
    rows = []
    for at in range(20):
        row = exchange(f"x{at}", f"I am ann{at}@example.org, not help@bank.example", f"c{at}")
        row["request"]["messages"][0]["content"] = system
        rows.append(row)
    redacted = batch(rows)
    (text,) = {row["request"]["messages"][0]["content"] for row in redacted}
    assert find_rule(parts_of(row["request"]["messages"]) for row in redacted).drops[0].text == text
    said = [PLACEHOLDER.findall(row["request"]["messages"][1]["content"]) for row in redacted]
    assert len({one for one, _ in said}) == 20
    assert {other for _, other in said} == set(PLACEHOLDER.findall(text)), "in one exchange a value has one name"


# Figures or a plus beside a number make another number of it, or none.
beside = st.text(st.characters(exclude_categories=("Nd", "Nl", "No", "Cs"), exclude_characters="+("))


@given(beside, planted, beside, st.booleans())
def test_arguments_of_tools_stay_json_and_keep_all_else(
    before: str, case: tuple[str, str], after: str, wide: bool
) -> None:
    arguments = json.dumps({"to": f"{before} {case[1]} {after}", "n": [1, 2.50, None]}, indent=2 if wide else None)
    row = exchange("x", "Hi", tool_calls=[{"id": "call_1", "function": {"name": "mail", "arguments": arguments}}])
    shown = batch([row])[0]["request"]["messages"][1]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(shown)["n"] == [1, 2.5, None]
    assert json.loads(shown)["to"] == Redactor().text(f"{before} {case[1]} {after}", "x")
    assert "2.5" in shown
    assert case[1] not in json.loads(shown)["to"]


def test_card_number_given_as_an_integer_is_replaced_in_json_and_in_json_within_it() -> None:
    row = exchange("x", '{"card": 4111111111111111, "order": 4111111111111112}')
    row["metadata"]["tags"] = {"card": 4111111111111111, "at": 1767600000123456}
    (redacted,) = batch([row])
    shown = redacted["metadata"]["tags"]["card"]
    assert PLACEHOLDER.fullmatch(shown)
    assert json.loads(redacted["request"]["messages"][1]["content"]) == {"card": shown, "order": 4111111111111112}
    assert redacted["metadata"]["tags"]["at"] == 1767600000123456


def test_keys_that_are_personal_data_are_replaced_and_no_entry_is_lost() -> None:
    row = exchange("x", "Hi")
    row["metadata"]["tags"] = {"first": 0, "ann@example.org": 1, "Ann@example.org": 2, "last": 3}
    (redacted,) = batch([row])
    tags = redacted["metadata"]["tags"]
    assert list(tags.values()) == [0, 1, 2, 3]
    assert "example" not in json.dumps(tags)


def test_pictures_are_no_text() -> None:
    """Base64 holds every short string by chance, and a long one is slow to search."""
    picture = "AKIA" + "ABCDEFGHIJ234567" + "/" + "4111111111111111" * 40 + "/DE89370400440532013000+"
    url = f"data:image/png;base64,{picture}"
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "input_audio", "input_audio": {"data": picture}},
    ]
    row = exchange("x", "", content=[*parts, {"type": "text", "text": f"![]({url}) by ann@example.org"}])
    (redacted,) = batch([row])
    content = redacted["request"]["messages"][1]["content"]
    assert content[:2] == parts
    assert content[2]["text"].startswith(f"![]({url}) by <EMAIL_")


def test_feedback_line_of_its_own_names_a_value_as_its_exchange_does() -> None:
    row = exchange("x", "I am ann@example.org")
    line = {"id": "x", "feedback": [{"kind": "correction", "name": "", "value": "Hello ann@example.org"}]}
    first, second = batch([row, line])
    assert PLACEHOLDER.findall(second["feedback"][0]["value"]) == PLACEHOLDER.findall(
        first["request"]["messages"][1]["content"]
    )


def test_key_is_made_once_for_a_folder_and_only_its_owner_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POTSTILL_REDACTION_KEY", raising=False)
    key = redaction_key(tmp_path / "work")
    assert len(key) >= 32
    assert redaction_key(tmp_path / "work") == key != redaction_key(tmp_path / "other")
    assert [stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "work").iterdir()] == [0o600]
    monkeypatch.setenv("POTSTILL_REDACTION_KEY", "taken along")
    assert redaction_key(tmp_path / "work") == b"taken along"


class Listed:
    """A stage that knows a few names: what a model is to the redactor."""

    def find(self, texts: list[str]) -> list[list[tuple[int, int, str]]]:
        kinds = {"Ann Lee": "PERSON", "Oslo": "LOCATION", "ann@example.org": "PERSON"}
        return [
            sorted(
                (text.index(name), text.index(name) + len(name), kind) for name, kind in kinds.items() if name in text
            )
            for text in texts
        ]


def test_names_are_replaced_where_people_speak_and_rules_come_first() -> None:
    row = exchange("x", "Ann Lee of Oslo, ann@example.org", name="Oslo")
    row["request"]["model"] = "Oslo"
    row["feedback"] = [{"kind": "correction", "name": "", "value": {"who": "Ann Lee"}, "by": "Ann Lee"}]
    redactor = Redactor(names=Listed())  # type: ignore[arg-type]
    texts, found = redact_batch(pa.array([orjson.dumps(row).decode()]), redactor)
    redacted = orjson.loads(texts[0].as_py())
    assert found == {"PERSON": 3, "LOCATION": 1, "EMAIL": 1}
    person, *_ = PLACEHOLDER.findall(redacted["request"]["messages"][1]["content"])
    assert redacted["feedback"][0] == {"kind": "correction", "name": "", "value": {"who": person}, "by": person}
    assert redacted["request"]["model"] == redacted["request"]["messages"][1]["name"] == "Oslo"
    assert redacted == Redactor(names=Listed()).exchange(row)  # type: ignore[arg-type]


def test_names_by_a_spacy_pipeline_of_ones_own(tmp_path: Path) -> None:
    spacy = pytest.importorskip("spacy", reason="needs potstill[names]")
    pipeline = spacy.blank("en")
    ruler = pipeline.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "PERSON", "pattern": "Ann Lee"}, {"label": "GPE", "pattern": "Oslo"}])
    pipeline.to_disk(tmp_path / "model")
    names = load_names(str(tmp_path / "model"))
    assert names is not None
    assert names.find(["Ann Lee lives in Oslo.", "", "42"]) == [[(0, 7, "PERSON"), (17, 21, "LOCATION")], [], []]
    spacy.blank("en").to_disk(tmp_path / "empty")
    with pytest.raises(RecipeError, match="finds no entities"):
        load_names(str(tmp_path / "empty"))
    with pytest.raises(RecipeError, match="no installed spaCy pipeline"):
        load_names("en_no_such_pipeline")


def test_names_are_off_unless_asked_for() -> None:
    assert load_names("off") is None
    assert Redactor().names is None

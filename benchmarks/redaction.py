"""Redaction: what is found of what is there, and what it costs a row.

    python -m benchmarks.redaction [--data generated_large.json] [--model en_core_web_sm] [--quick] [--json]

--data (or POTSTILL_PII_SENTENCES): sentences with labelled spans in the form of presidio-research
(`full_text`, `spans[].entity_type/start_position/end_position`). Without it those figures are not measured.
--model: a spaCy pipeline for the optional stage of names. Intervals are Wilson's at 95 %.
Microseconds are processor time, all threads together, of 1 KB OpenAI chat rows.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import Record, arguments, columns
from potstill.intervals import wilson
from potstill.redaction import KINDS, Names, Redactor, redact_batch
from potstill.redaction.names import NAME_KINDS, SpacyNames
from potstill.redaction.rules import find

VARIABLE = "POTSTILL_PII_SENTENCES"
Json = dict[str, Any]
Span = tuple[int, int, str]
# Which of our kinds a label of the sentences is; None: no rule addresses it.
LABELS: dict[str, str | None] = {
    "EMAIL_ADDRESS": "EMAIL", "CREDIT_CARD": "CARD", "PHONE_NUMBER": "PHONE", "IBAN_CODE": "IBAN", "IP_ADDRESS": "IP",
    "US_SSN": "NATIONAL_ID", "US_DRIVER_LICENSE": None, "DOMAIN_NAME": None, "DATE_TIME": None, "TITLE": None,
    "PREFIX": None, "PERSON": "PERSON", "LOCATION": "LOCATION", "ADDRESS": "LOCATION", "ORGANIZATION": "ORGANIZATION",
}  # fmt: skip
NAMES = {"PERSON", "LOCATION", "ADDRESS", "ORGANIZATION"}
PLACES = {"ADDRESS": "LOCATION"}  # a label of one and a finding of the other agree
TEXT = """the customer asked about an order that has not arrived yet while our agent looked for the parcel and told him
that it would be there by friday please check again whether the refund for it was sent to your account thanks for
waiting we are sorry about this and hope to help you soon with every question on delivery return and payment"""
WORDS = TEXT.split()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get(VARIABLE), help=f"labelled sentences ({VARIABLE})")
    parser.add_argument("--model", help="a spaCy pipeline for the stage of names")
    args = parser.parse_args()
    packages = ("pyarrow", "phonenumberslite", "python-stdnum", "spacy", args.model or "")
    record = Record("redaction", quick=args.quick, packages=filter(None, packages))
    planted(record, 60 if args.quick else 400)
    speed(record, 10_000 if args.quick else 40_000)
    names = SpacyNames(args.model, NAME_KINDS) if args.model else None
    if args.data:
        sentences = json.loads(Path(args.data).read_text(encoding="utf-8"))
        measure_sentences(record, sentences, None, "rules")
        if names:
            measure_sentences(record, sentences[:500] if args.quick else sentences, names, "rules and names")
    else:
        record.note(
            f"No labelled sentences were given (--data or {VARIABLE}): recall and precision on them not measured"
        )
    raise SystemExit(record.finish(as_json=args.json, keep=args.keep))


# What is planted: values made by the rules of their kind, in the ways people write them.


def luhn_digit(body: str) -> str:
    total = sum(sum(divmod(int(each) * (2 - at % 2), 10)) for at, each in enumerate(reversed(body)))
    return str(-total % 10)


def card(draw: random.Random) -> str:
    prefix, length = draw.choice(
        [("4", 16), ("51", 16), ("2221", 16), ("34", 15), ("37", 15), ("6011", 16), ("3530", 16)]
    )
    body = prefix + "".join(draw.choices("0123456789", k=length - len(prefix) - 1))
    number = body + luhn_digit(body)
    groups = (
        [number[:4], number[4:10], number[10:]] if length == 15 else [number[at : at + 4] for at in range(0, 16, 4)]
    )
    return draw.choice(["", " ", "-"]).join(groups)


def iban(draw: random.Random) -> str:
    country, form = draw.choice([("DE", "9" * 18), ("AT", "9" * 16), ("GB", "AAAA" + "9" * 14), ("LT", "9" * 16)])
    account = "".join(draw.choice("0123456789" if each == "9" else "ABCDEFGHKLMNPRSTUWXY") for each in form)
    check = 98 - int("".join(str(int(each, 36)) for each in f"{account}{country}00")) % 97
    whole = f"{country}{check:02d}{account}"
    return draw.choice([whole, whole.lower(), " ".join(whole[at : at + 4] for at in range(0, len(whole), 4))])


def phone(draw: random.Random) -> str:
    import phonenumbers

    while True:
        region = draw.choice(["US", "GB", "DE", "FR", "IN", "BR", "JP", "AU", "ES", "ZA", "MX", "NL", "SE", "PL", "CH"])
        kind = draw.choice([phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE])
        sample = phonenumbers.example_number_for_type(region, kind)
        national = f"{str(sample.national_number)[:-5]}{draw.randrange(10**5):05d}"
        number = phonenumbers.parse(f"+{sample.country_code}{national}")
        if phonenumbers.is_valid_number(number):
            break
    forms = phonenumbers.PhoneNumberFormat
    ways = [forms.E164, forms.INTERNATIONAL, *([forms.NATIONAL] * 2 if region == "US" else [])]
    return str(phonenumbers.format_number(number, draw.choice(ways)))


def email(draw: random.Random) -> str:
    first, last = draw.choice(["ann", "Bob", "chloé", "d'arcy", "li"]), draw.choice(["lee", "Smith", "o-neil", "x99"])
    host = draw.choice(["example.org", "mail.example.co.uk", "EXAMPLE.COM", "bücher.example", "a-b.example"])
    return f"{first}{draw.choice('._-+')}{last}{draw.randrange(100)}@{host}"


def ip(draw: random.Random) -> str:
    import ipaddress

    four, six = (
        ipaddress.IPv4Address(draw.randrange(2**24, 2**32)),
        ipaddress.IPv6Address(draw.randrange(2**120, 2**128)),
    )
    return draw.choice([str(four), str(six), six.exploded])


def letters(draw: random.Random, count: int) -> str:
    return "".join(draw.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=count))


def api_key(draw: random.Random) -> str:
    openai = ["sk-{32}", "sk-proj-{48}"]
    others = ["sk_live_{24}", "ghp_{36}", "hf_{34}", "xoxb-{24}", "AIza{35}", "AKIA{K}", "glpat-{20}"]
    return draw.choice([*openai, *others, "Bearer {40}", "eyJ{20}.eyJ{30}.{43}"])


def filled(form: str, draw: random.Random) -> str:
    """A form with {n} replaced by n letters and figures, {K} by 16 capitals and figures."""
    while "{" in form:
        before, _, rest = form.partition("{")
        size, _, after = rest.partition("}")
        form = before + (letters(draw, 16).upper() if size == "K" else letters(draw, int(size))) + after
    return form


def url(draw: random.Random) -> str:
    forms = ["https://app.example/r?id=3&token={20}", "https://ann:{12}@git.example/x.git", "redis://:{16}@cache.example:6379",
             "https://s3.example/f?X-Amz-Signature={40}", "https://hooks.slack.com/services/{9}/{9}/{24}"]  # fmt: skip
    return filled(draw.choice(forms), draw)


def national_id(draw: random.Random) -> str:
    area = draw.choice([*range(1, 666), *range(667, 900)])
    return f"{area:03d}-{draw.randrange(1, 100):02d}-{draw.randrange(1, 10_000):04d}"


PLANTS: dict[str, Callable[[random.Random], str]] = {
    "EMAIL": email, "CARD": card, "IBAN": iban, "PHONE": phone, "IP": ip, "URL": url,
    "API_KEY": lambda draw: filled(api_key(draw), draw), "NATIONAL_ID": national_id,
}  # fmt: skip
FRAMES: tuple[Callable[[str], str], ...] = (
    lambda value: f"My data: {value}, thanks.",
    lambda value: f"Please use {value}",
    lambda value: f"({value})",
    lambda value: f"first line\n{value}\nlast line",
    lambda value: json.dumps({"note": f'it is\n{value}\n"so"'}),
    lambda value: json.dumps({"payload": json.dumps({"value": value})}),
)


def row(draw: random.Random, said: str = "") -> str:
    """A chat row of about 1 KB of JSON as an OpenAI gateway logs it."""
    words = " ".join(draw.choices(WORDS, k=88))
    halves = f"{draw.getrandbits(32):08x}-{draw.getrandbits(16):04x}", f"{draw.getrandbits(48):012x}"
    uuid = f"{halves[0]}-4{draw.getrandbits(12):03x}-9a7d-{halves[1]}"
    return json.dumps({
        "id": uuid, "time": "2026-01-05T08:00:00.123456Z",
        "request": {"model": "gpt-4o-mini-2024-07-18", "messages": [
            {"role": "system", "content": "You are a helpful assistant of a shop. Be brief."},
            {"role": "user", "content": f"{words[:240]} {said} {words[240:280]}"},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": f"call_{letters(draw, 24)}", "type": "function",
                 "function": {"name": "look_up", "arguments": '{"order": 8831, "open": true}'}}]}], "temperature": 0.2},
        "response": {"id": f"chatcmpl-{letters(draw, 29)}", "created": 1767600000 + draw.randrange(10**6),
                     "choices": [{"index": 0, "message": {"role": "assistant", "content": words[280:]},
                                  "finish_reason": "stop"}],
                     "usage": {"prompt_tokens": 212, "completion_tokens": 88, "total_tokens": 300}},
        "latency_ms": 812.1234567, "cost_usd": 0.00213412345,
        "metadata": {"user": f"user-{draw.randrange(999)}", "conversation": uuid, "split": None, "tags": {}},
        "feedback": [],
    }, separators=(",", ":"), ensure_ascii=False)  # fmt: skip


def planted(record: Record, count: int) -> None:
    """Recall of planted values, by kind: the value is gone from the row, whichever kind it was taken for."""
    import orjson
    import pyarrow as pa

    draw = random.Random(7)
    found_all = 0
    for kind, make in PLANTS.items():
        values = [make(draw) for _ in range(count)]
        rows = [row(draw, FRAMES[at % len(FRAMES)](value)) for at, value in enumerate(values)]
        texts, _ = redact_batch(pa.array(rows), Redactor())
        gone = [value not in orjson.loads(text)["request"]["messages"][1]["content"]
                and json.dumps(value)[1:-1] not in text.replace("\\\\", "\\")
                for value, text in zip(values, texts.to_pylist(), strict=True)]  # fmt: skip
        missed = [value for value, is_gone in zip(values, gone, strict=True) if not is_gone]
        if missed:
            record.note(f"planted {kind} not found: {missed[:3]}")
        found_all += sum(gone)
        keep(record, f"planted {kind}: recall", Counter(gone))
    record.check("planted structured data found", found_all / (count * len(PLANTS)), at_least=0.995)


def speed(record: Record, count: int) -> None:
    """Processor time a row: clean rows, rows with one finding of each kind, and a log with 20 % of such rows."""
    import pyarrow as pa

    draw = random.Random(11)
    logs: dict[str, list[str]] = {"clean": [row(draw) for _ in range(count)]}
    for kind, make in PLANTS.items():
        logs[kind] = [row(draw, make(draw)) for _ in range(count // 4)]
    kinds = list(PLANTS.values())
    logs["20 % planted"] = [row(draw, draw.choice(kinds)(draw) if draw.random() < 0.2 else "") for _ in range(count)]
    redact_batch(pa.array(logs["PHONE"][:50] + logs["IBAN"][:50]), Redactor())  # number plans are read at first use
    record.figure("size of a row", sum(map(len, logs["clean"])) / count, "characters")
    spent: dict[str, list[float]] = defaultdict(list)
    for _ in range(5):
        for name, rows in logs.items():
            texts = pa.array(rows)
            started = time.process_time()
            redact_batch(texts, Redactor())
            spent[name].append((time.process_time() - started) / len(rows) * 1e6)
    for name, each in spent.items():
        record.figure(f"time a row: {name}", each, "us CPU")
    record.check("time a row: 20 % planted", min(spent["20 % planted"]), at_most=10, unit="us CPU, the best of five")


# Labelled sentences


def measure_sentences(record: Record, sentences: Sequence[Json], names: Names | None, how: str) -> None:
    """Recall by label (all of its span is covered, by whichever kind) and precision by kind."""
    started = time.process_time()
    texts = [each["full_text"] for each in sentences]
    named = names.find(texts) if names else [[] for _ in texts]
    found = [merged(find(text, KINDS, "US"), extra) for text, extra in zip(texts, named, strict=True)]
    spent = time.process_time() - started
    recall: dict[str, Counter[bool]] = defaultdict(Counter)
    precision: dict[str, Counter[bool]] = defaultdict(Counter)
    for each, spans in zip(sentences, found, strict=True):
        labelled = [(s["start_position"], s["end_position"], s["entity_type"]) for s in each["spans"]]
        for start, end, label in labelled:
            recall[label][covered(each["full_text"], start, end, spans)] += 1
        for start, end, kind in spans:
            hit = any(a < end and start < b and LABELS.get(label) == PLACES.get(kind, kind) for a, b, label in labelled)
            precision[kind][hit] += 1
    record.figure(f"{how}: time a sentence", spent / len(texts) * 1e6, "us CPU")
    rows = [("label" if names else "label (rules alone)", "spans", "recall", "95 %", "kind")]
    for label, counts in sorted(recall.items(), key=lambda item: -item[1].total()):
        addressed = LABELS.get(label) if names or label not in NAMES else None
        rows.append((label, *shares(counts), addressed or "no rule"))
        if addressed:
            keep(record, f"{how}: recall of {label}", counts)
    rows.append(("kind", "found", "precision", "95 %", ""))
    for kind, counts in sorted(precision.items()):
        rows.append((kind, *shares(counts), ""))
        keep(record, f"{how}: precision of {kind}", counts)
    record.note(columns(rows))
    if names is None:
        ruled = [counts for label, counts in recall.items() if LABELS.get(label) and label not in NAMES]
        share = sum(c[True] for c in ruled) / max(1, sum(c.total() for c in ruled))
        record.check("sentences: structured data found by the rules", share, at_least=0.99)


def merged(ruled: Sequence[Span], named: Sequence[Span]) -> list[Span]:
    return sorted([*ruled, *(each for each in named if all(each[1] <= a or b <= each[0] for a, b, _ in ruled))])


def covered(text: str, start: int, end: int, spans: Sequence[Span]) -> bool:
    """Whether no letter or figure of the span would be left to read."""
    return not any(text[at].isalnum() and not any(a <= at < b for a, b, _ in spans) for at in range(start, end))


def keep(record: Record, name: str, counts: Counter[bool]) -> None:
    low, high = wilson(counts[True], counts.total())
    figure = record.figure(name, counts[True] / counts.total(), "share")
    record.figures[name] = type(figure)(figure.value, "share", low, high, counts.total())


def shares(counts: Counter[bool]) -> tuple[str, str, str]:
    low, high = wilson(counts[True], counts.total())
    return f"{counts.total()}", f"{counts[True] / counts.total():.1%}", f"{low:.1%}..{high:.1%}"


if __name__ == "__main__":
    main()

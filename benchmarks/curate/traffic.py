"""Synthetic traffic with planted faults: lines of OpenAI requests and answers of about 1 KB, and the truth beside them.

In:  rows and a seed; a row is a function of the two alone, so that blocks are made in parallel in flat memory.
Out: `log.jsonl` (or `.jsonl.gz`) and `truth.parquet`, a row for each planted line.
Run: `python -m benchmarks.curate.traffic --rows 100000 --out work/bench/traffic` (`--gzip`)

Of the lines 10 % repeat the request of an earlier one (other id, time, conversation and answer), 10 % repeat it with
a word or a few changed (Jaccard of the prompt's character 5-grams between 0.91 and 0.99, with the instructions and
without), 5 % hold one personal value in prompt, answer or a tool's arguments, 1 % are damaged, 1 % have an empty
answer, 2 % one that was cut off, 1 % a refusal; a fifth of the others goes on with the conversation of the line before.
19 repeats in 20 come from the same user (a retry): were all from others, users and repeats would hang together as one
group, which no splitter may divide.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple

from . import personal, words

Json = dict[str, Any]
Kind = Literal["plain", "exact", "near", "personal", "damaged", "empty", "length", "refusal"]
SHARES: tuple[tuple[Kind, float], ...] = (
    ("exact", 0.10), ("near", 0.10), ("personal", 0.05), ("damaged", 0.01), ("empty", 0.01), ("length", 0.02),
    ("refusal", 0.01),
)  # fmt: skip
FIRST_TWIN = 200  # the first rows are all plain, so that every repeat has something to repeat
ROWS_PER_USER = 20
LOWEST, HIGHEST = 0.92, 0.98  # inside what is promised, since a reader may fold the text in another way
BLOCK = 5_000
START = 1_772_323_200  # 2026-03-01, UTC
MODELS = ("gpt-large-2026-01", "gpt-large-2026-02", "gpt-small-2026-01")
SYSTEM = (
    "You are the assistant of a help desk. Answer briefly and name the next step.",
    "You are the assistant of a help desk. Answer in two sentences, name the next step, never guess a price.",
    "You help customers and colleagues. Be exact, be polite, say what you do not know.",
)
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot assist with this request.",
    "As an AI language model, I am not able to do that.",
)
CONTEXT = {
    "email": "You can write to me at {} about it.",
    "phone_us": "Call me on {} after lunch.",
    "phone_international": "My number is {} when I travel.",
    "card": "I paid with card {} last time.",
    "iban": "Send the money to {} please.",
    "ip": "It was opened from {} at night.",
    "api_key": "The script uses the key {} for now.",
}
TOOL: Json = {
    "type": "function",
    "function": {
        "name": "find_record",
        "description": "Looks a record up.",
        "parameters": {"type": "object", "properties": {"subject": {"type": "string"}, "note": {"type": "string"}}},
    },
}
_FOLD = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Planted:
    """The truth of one planted line: its kind, for a repeat the line repeated, for a personal value where and what."""

    row: int
    id: str
    kind: Kind
    twin_row: int | None = None
    twin_id: str | None = None
    jaccard: float | None = None
    what: str | None = None
    where: str | None = None
    value: str | None = None


class Content(NamedTuple):
    """What a line says, before ids and times. The last turn is the user's."""

    messages: list[Json]
    tools: list[Json]
    answer: str
    user: int
    conversation: int


@dataclass(frozen=True)
class Traffic:
    """The log of this seed and number of rows."""

    seed: int
    rows: int

    def bits(self, row: int, use: int) -> int:
        """64 bits of this row and use (splitmix64's finaliser), far cheaper than a generator."""
        x = (self.seed * 0x9E3779B97F4A7C15 + row * 0xD1B54A32D192ED03 + use * 0x8CB92BA72F3D8DD7) & (2**64 - 1)
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        return x ^ (x >> 31)

    def draw(self, row: int, use: int) -> float:
        """A number in [0, 1) of this row and use."""
        return (self.bits(row, use) >> 11) / 2**53

    def kind(self, row: int) -> Kind:
        """What the row is: planted with the probabilities of SHARES, else plain."""
        drawn = self.draw(row, 1)
        for kind, share in SHARES if row >= FIRST_TWIN else ():
            if drawn < share:
                return kind
            drawn -= share
        return "plain"

    def continues(self, row: int) -> bool:
        """Whether a plain row is the next turn of the row before it."""
        ordinary = row > 0 and self.kind(row) == "plain" == self.kind(row - 1)
        return ordinary and self.draw(row, 2) < 0.2 and not self.continues(row - 1)

    def id(self, row: int) -> str:
        """The row's uuid."""
        bits = f"{self.bits(row, 3):016x}{self.bits(row, 4):016x}"
        return f"{bits[:8]}-{bits[8:12]}-4{bits[13:16]}-a{bits[17:20]}-{bits[20:]}"

    def random(self, row: int, use: int) -> Random:
        return Random((self.seed << 48) ^ (use << 40) ^ row)

    def content(self, row: int) -> Content:
        """What the row says, before anything is planted; rows other than plain ones start conversations too."""
        if self.continues(row):
            before, random = self.content(row - 1), self.random(row, 1)
            said = [{"role": "assistant", "content": before.answer}, _user(words.question(random, 1))]
            return before._replace(messages=[*before.messages, *said], answer=words.answer(random, 1))
        random = self.random(row, 2)
        messages: list[Json] = [{"role": "system", "content": random.choice(SYSTEM)}]
        turns = random.choice((1, 1, 1, 1, 1, 2, 2, 3)) if row % 50 else random.choice((4, 5))
        for turn in range(turns):
            messages.append(_user(words.question(random, random.choice((2, 3, 3)) if turns == 1 else 1)))
            if turn < turns - 1:
                messages.append({"role": "assistant", "content": words.answer(random, 1)})
        tools: list[Json] = []
        if random.random() < 0.04 and turns == 1:
            tools, messages = [TOOL], [*messages, *_tool_use(random)]
        return Content(messages, tools, words.answer(random, random.choice((1, 2))), self._user(row), row)

    def _user(self, row: int) -> int:
        return int(self.draw(row, 5) * max(1, self.rows // ROWS_PER_USER))

    def twin(self, row: int) -> tuple[int, Content, float]:
        """For a repeat the row repeated, what the repeat says, and the Jaccard of the two prompts."""
        near = self.kind(row) == "near"
        for attempt in range(1000):
            source = int(self.draw(row, 100 + attempt) * row)
            if self.kind(source) != "plain" or self.continues(source):
                continue
            content, random = self.content(source), self.random(row, 3)
            if not near:
                return source, self._elsewhere(row, content), 1.0
            if changed := _changed(content.messages, random):
                return source, self._elsewhere(row, content._replace(messages=changed[0])), changed[1]
        raise AssertionError(f"row {row}: no row to repeat among a thousand tried")

    def _elsewhere(self, row: int, content: Content) -> Content:
        """The same request in a conversation of its own, now and then by another user, with another answer."""
        user = self._user(row) if self.draw(row, 6) < 0.05 else content.user
        return content._replace(user=user, conversation=row, answer=words.answer(self.random(row, 4), 2))

    def line(self, row: int) -> tuple[bytes, Planted | None]:
        """The row's line, without line end, and the truth of it if something is planted."""
        import orjson

        kind, identity, finish = self.kind(row), self.id(row), "stop"
        planted: Planted | None = None if kind == "plain" else Planted(row, identity, kind)
        if kind in ("exact", "near"):
            source, content, jaccard = self.twin(row)
            planted = Planted(row, identity, kind, source, self.id(source), round(jaccard, 4))
        else:
            content = self.content(row)
        if kind == "personal":
            content, planted = self._with_value(row, content)
        elif kind == "empty":
            content = content._replace(answer="")
        elif kind == "refusal":
            content = content._replace(answer=REFUSALS[row % 3])
        elif kind == "length":
            content, finish = content._replace(answer=content.answer[: len(content.answer) * 2 // 3]), "length"
        line = orjson.dumps(self._exchange(row, identity, content, finish))
        return (_damaged(line, self.random(row, 5)) if kind == "damaged" else line), planted

    def _with_value(self, row: int, content: Content) -> tuple[Content, Planted]:
        random = self.random(row, 6)
        what = random.choice(personal.KINDS)
        value = personal.value(random, what)
        sentence = CONTEXT[what].format(value)
        where = random.choice(("prompt", "prompt", "answer", "arguments"))
        messages = list(content.messages)
        if where == "answer":
            content = content._replace(answer=f"{content.answer} {sentence}")
        elif where == "prompt":
            at = max(at for at, each in enumerate(messages) if each["role"] == "user")
            messages[at] = _user(f"{sentence} {messages[at]['content']}")
            content = content._replace(messages=messages)
        else:
            last = next((at for at, each in enumerate(messages) if each.get("tool_calls")), len(messages))
            content = content._replace(messages=messages[:last] + _tool_use(random, sentence), tools=[TOOL])
        return content, Planted(row, self.id(row), "personal", what=what, where=where, value=value)

    def _exchange(self, row: int, identity: str, content: Content, finish: str) -> Json:
        at, random = START + row * 7, self.random(row, 7)
        prompt = sum(len(each.get("content") or "") for each in content.messages) // 4
        completion = len(content.answer) // 4
        model = MODELS[int(self.draw(row, 7) * len(MODELS))]
        message: Json = {"role": "assistant", "content": content.answer}
        request: Json = {"model": model, "messages": content.messages, "temperature": 0.2}
        if content.tools:
            request["tools"] = content.tools
        return {
            "id": identity,
            "time": datetime.fromtimestamp(at, UTC).isoformat(),
            "request": request,
            "response": {
                "id": f"chatcmpl-{random.getrandbits(80):020x}",
                "object": "chat.completion",
                "created": at,
                "model": model,
                "choices": [{"index": 0, "message": message, "finish_reason": finish}],
                "usage": {
                    "prompt_tokens": prompt,
                    "completion_tokens": completion,
                    "total_tokens": prompt + completion,
                },
            },
            "latency_ms": round(200 + completion * random.uniform(8, 14), 1),
            "cost_usd": round(prompt * 2e-6 + completion * 8e-6, 7),
            "metadata": {
                "user": f"user-{content.user:05d}",
                "conversation": f"conversation-{content.conversation:07d}",
            },
        }


def _user(text: str) -> Json:
    return {"role": "user", "content": text}


def _tool_use(random: Random, note: str = "") -> list[Json]:
    """A call with its result."""
    import orjson

    call = f"call_{random.getrandbits(48):012x}"
    arguments = {"subject": words.word(random), "note": note or words.question(random, 1)}
    function = {"name": "find_record", "arguments": orjson.dumps(arguments).decode()}
    return [
        {"role": "assistant", "content": None, "tool_calls": [{"id": call, "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": call, "content": words.answer(random, 1)},
    ]


def _damaged(line: bytes, random: Random) -> bytes:
    """A line cut short, without its answers, with bytes that are no JSON, or with a list where an object should be."""
    way = random.randrange(4)
    if way == 0:
        return line[: random.randrange(20, len(line) - 20)]
    if way == 1:
        return line.replace(b'"choices":[{', b'"choices_":[{', 1)
    if way == 2:
        return b"\x00\x1f" + line[40:]
    return b"[" + line + b"]"


def _changed(messages: list[Json], random: Random) -> tuple[list[Json], float] | None:
    """The messages with a word or a few replaced, and the Jaccard; None where no such change lands in the range."""
    before = [prompt_grams(messages, system) for system in (False, True)]
    places = [
        (at, found.span())
        for at, each in enumerate(messages)
        if each["role"] == "user"
        for found in re.finditer(r"\b[a-z]{4,}\b", each["content"])
    ]
    for count in (random.choice((1, 2, 3)), 2, 1, 3, 4, 1):
        out = [dict(each) for each in messages]
        for at, (start, end) in sorted(random.sample(places, min(count, len(places))), reverse=True):
            text = out[at]["content"]
            out[at]["content"] = text[:start] + words.word(random) + text[end:]
        found = [jaccard(old, prompt_grams(out, system)) for old, system in zip(before, (False, True), strict=True)]
        if min(found) >= LOWEST and max(found) <= HIGHEST:
            return out, found[0]
    return None


def prompt_grams(messages: list[Json], system: bool = False) -> set[str]:
    """Character 5-grams of the prompt in lower case, letters and digits alone; with the instructions if `system`."""
    texts = [each["content"] or "" for each in messages if system or each["role"] != "system"]
    text = _FOLD.sub(" ", " ".join(texts).casefold())
    return {text[at : at + 5] for at in range(max(1, len(text) - 4))}


def jaccard(a: set[str], b: set[str]) -> float:
    """Size of the intersection over size of the union."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def _block(task: tuple[Traffic, int, int, bool]) -> tuple[bytes, int, list[Planted]]:
    traffic, first, after, compressed = task
    made = [traffic.line(row) for row in range(first, after)]
    plain = b"".join(line + b"\n" for line, _ in made)
    return (gzip.compress(plain, 1, mtime=0) if compressed else plain), len(plain), [p for _, p in made if p]


def _blocks(traffic: Traffic, compressed: bool) -> Iterator[tuple[bytes, int, list[Planted]]]:
    starts = range(0, traffic.rows, BLOCK)
    tasks = [(traffic, first, min(first + BLOCK, traffic.rows), compressed) for first in starts]
    with multiprocessing.get_context("spawn").Pool(min(len(tasks), os.cpu_count() or 1)) as pool:
        yield from pool.imap(_block, tasks)


def write(folder: Path, rows: int, seed: int = 0, compressed: bool = False) -> tuple[Path, Path]:
    """Write log and truth into a folder named by what they depend on (rows, seed, the generator's own text), unless
    they stand there whole; returns their paths. The truth's metadata holds the log's size in bytes uncompressed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sources = b"".join(Path(str(each.__file__)).read_bytes() for each in (sys.modules[__name__], words, personal))
    folder = folder / f"{rows}-{seed}-{hashlib.sha256(sources).hexdigest()[:8]}"
    log, truth = folder / ("log.jsonl.gz" if compressed else "log.jsonl"), folder / "truth.parquet"
    if log.exists() and truth.exists():
        return log, truth
    folder.mkdir(parents=True, exist_ok=True)
    planted, size = list[Planted](), 0
    partial = log.with_name(log.name + ".partial")
    with partial.open("wb") as stream:
        for data, length, found in _blocks(Traffic(seed, rows), compressed):
            stream.write(data)
            size += length
            planted += found
    whole, real, text = pa.int64(), pa.float64(), pa.string()
    types = {"row": whole, "twin_row": whole, "jaccard": real}
    schema = pa.schema([(name, types.get(name, text)) for name in Planted.__dataclass_fields__])
    table = pa.Table.from_pylist([asdict(each) for each in planted], schema=schema)
    pq.write_table(table.replace_schema_metadata({"bytes": str(size)}), truth)
    partial.rename(log)
    return log, truth


def main() -> None:
    """Write the log that the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gzip", action="store_true")
    args = parser.parse_args()
    for path in write(args.out, args.rows, args.seed, args.gzip):
        print(path, f"{path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

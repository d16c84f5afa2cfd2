"""Judgements kept as they come, in a file that is also the account of what was paid for them.

One JSON object a line, each written before the next step is taken, so that a kill costs nothing but what was in flight:

    {"send": KEY, "judge", "model", "worst_usd"}                              before a question goes out
    {"key": KEY, "judge", "model", "reply", "usd", "prompt_tokens", ...}      its answer, for good
    {"freed": KEY, "judge", "model"}                                          refused without a bill

What counts against the budget: what was paid, and the worst case of every send that neither an answer nor a refusal
settled (a kill or a broken connection hides whether it was billed). `{"key", "judge", "reply"}` alone is enough for a
file of recorded judgements.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from potstill.errors import DamagedInput
from potstill.records import Json

Name = tuple[str, str, str]  # judge, model, key


@dataclass(frozen=True, slots=True)
class Verdict:
    """One reply as it came and what it cost."""

    reply: str
    usd: float = 0.0


class Kept:
    """The judgements of one recipe. `committed_usd` is what counts against the budget."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.verdicts: dict[Name, Verdict] = {}
        self.committed_usd = 0.0
        self._open_sends: defaultdict[Name, list[float]] = defaultdict(list)
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in _lines(path):
            self._take(line)
        self._stream: BinaryIO | None = None

    def __enter__(self) -> Kept:
        self._stream = self.path.open("ab")
        if self._stream.tell() and not self.path.read_bytes().endswith(b"\n"):
            self._stream.write(b"\n")  # a line that a kill cut off ends here
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stream is not None
        self._stream.close()

    def send(self, name: Name, worst_usd: float) -> None:
        self._write({"send": name[2], "judge": name[0], "model": name[1], "worst_usd": worst_usd})

    def settle(self, name: Name, reply: str, usd: float, prompt_tokens: int | None, completion: int | None) -> None:
        self._write(
            {
                "key": name[2], "judge": name[0], "model": name[1], "reply": reply, "usd": usd,
                "prompt_tokens": prompt_tokens, "completion_tokens": completion,
            }
        )  # fmt: skip

    def free(self, name: Name) -> None:
        self._write({"freed": name[2], "judge": name[0], "model": name[1]})

    def _write(self, line: Json) -> None:
        assert self._stream is not None, "entered as a context manager"
        self._stream.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._stream.flush()
        if "key" in line:  # what was paid for is worth a wait for the disk
            os.fsync(self._stream.fileno())
        self._take(line)

    def _take(self, line: Json) -> None:
        judge, model = str(line.get("judge", "")), str(line.get("model", ""))
        if "send" in line:
            self._open_sends[judge, model, line["send"]].append(float(line["worst_usd"]))
            self.committed_usd += float(line["worst_usd"])
            return
        name = (judge, model, line["freed"] if "freed" in line else line["key"])
        if self._open_sends[name]:
            # The latest send is the one that was answered; lost ones before it stay.
            self.committed_usd -= self._open_sends[name].pop()
        if "key" in line:
            usd = float(line.get("usd") or 0.0)
            self.committed_usd += usd
            self.verdicts.setdefault(name, Verdict(str(line["reply"]), usd))


def recorded(path: Path, judge: str) -> dict[str, Verdict]:
    """The replies of one judge in a file of judgements, by key; raises DamagedInput where there is none."""
    found = {
        str(line["key"]): Verdict(str(line["reply"]))
        for line in _lines(path)
        if "key" in line and "reply" in line and line.get("judge", judge) == judge
    }
    if not found:
        raise DamagedInput(
            f'{path}: no judgement of {judge} in it; expected lines of {{"key", "judge", "reply"}}, as an evaluation '
            "keeps them under cache/judgements"
        )
    return found


def _lines(path: Path) -> Iterator[Json]:
    """The whole lines of the file; one that a kill cut off is asked for again."""
    if not path.is_file():
        return
    for raw in path.read_bytes().split(b"\n"):
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        if isinstance(line, dict) and ({"send", "freed", "key"} & set(line)):
            yield line

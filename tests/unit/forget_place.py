"""A working folder as months of use leave it: a dataset really distilled, and everything that quotes its rows."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distillation.relabel.ledger import Ledger, Paid
from distillation.runtime import LocalRuntime
from potstill import cli
from potstill.manifest import Input, Manifest, read_manifest, write_manifest
from potstill.pipeline import newest
from potstill.records import Json

from .mail_log import LABELS, contents, exchange, said, write_log

RECIPE = """\
name: mail
task: {{kind: classification, labels: [card, cash, loan]}}
base_model: {base}
work_dir: work
distill: {{sources: [{sources}], split: {{test: 0.3, validation: 0.1}}, damaged_limit: 0.5}}
"""


TALKS = dict(zip((7, 17, 27, 37, 47), ("w2", "w4", "w6", "w7", "w8"), strict=True))  # all fall into training


@dataclass
class Place:
    """`root` holds the foreign log and the recipe; `work` is the working folder, `old` its first dataset."""

    root: Path
    patch: pytest.MonkeyPatch
    old: Path

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def captured(self) -> Path:
        return self.work / "captured" / "mail"

    def distil(self) -> Path:
        distil(self.root, self.patch)
        return newest(self.work / "mail", "dataset")

    def holding(self, *words: str) -> list[str]:
        """Files below the working folder in whose bytes (of Parquet and gzip: contents) one of the words stands."""
        return sorted(
            path.relative_to(self.work).as_posix()
            for path in self.work.rglob("*")
            if path.is_file() and any(each.encode() in contents(path) for each in words)
        )


def distil(root: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "tokenizers", None)
    patch.setattr("distillation.run.runtime_of", lambda kind: LocalRuntime(1))
    patch.chdir(root)
    assert cli.main(["distill", str(root / "recipe.yaml"), "--no-track", "--json"]) == 0


def secret(at: int) -> str:
    """Words that no other row has."""
    return f"zanzibar{at:04d} {said(at + 5000)}"


def make_place(
    root: Path, patch: pytest.MonkeyPatch, lines: Iterable[Json | str], captured: Iterable[Json] = ()
) -> Place:
    """Log, captured traffic, recipe and the dataset of both."""
    (root / "base").mkdir(parents=True)
    (root / "base" / "config.json").write_text("{}")
    write_log(root / "log.jsonl", lines)
    sources = f"{{path: {root}/log.jsonl, format: openai_pairs}}"
    folder = root / "work" / "captured" / "mail"
    folder.mkdir(parents=True)
    if captured := list(captured):
        write_log(folder / "exchanges-1.jsonl", captured)
        sources += f", {{path: {folder}/exchanges-*.jsonl, format: openai_pairs}}"
    (root / "recipe.yaml").write_text(RECIPE.format(base=root / "base", sources=sources))
    distil(root, patch)
    return Place(root, patch, newest(root / "work" / "mail", "dataset"))


def users_log() -> list[Json | str]:
    """Sixty exchanges of sixty users but `u7`, who has five: one a twin's original, one a twin, one damaged."""
    lines: list[Json | str] = [exchange(at) for at in range(60)]
    for at in (7, 17, 27, 37, 47):
        text = {27: said(3)}.get(at, secret(at))
        line = exchange(at, text=text)
        line["metadata"] = {"user": "walter-u7", "conversation": TALKS[at]}
        lines[at] = line
    lines.append(exchange(70, text=secret(17)))  # of another user, folded into u7's row or u7's into it
    broken = json.dumps(lines[7])[:-40]
    return [*lines, broken]


def add_descendants(place: Place, answer_row: str, learnt_text: str) -> dict[str, Manifest]:
    """Adapter, artifact and report folders that quote a row, cached answers, a ledger, a page, an unfinished folder."""
    home, old = place.work / "mail", read_manifest(place.old)
    made: dict[str, Manifest] = {"dataset": old}
    golden = [
        {"messages": [{"role": "user", "content": text}], "tools": [], "text": f"<user>{text}", "token_ids": [1, 2]}
        for text in (learnt_text, said(1))
    ]
    for noun, source in (("adapter", "dataset"), ("artifact", "adapter"), ("report", "artifact")):
        folder = home / f"{noun}-{noun:_<10}"
        folder.mkdir()
        if noun != "report":
            (folder / "contract.json").write_text(json.dumps({"task": {"of": noun}, "golden": golden}, indent=1))
        else:
            (folder / "report.json").write_text(
                json.dumps({"rows": {"gold_faults": [{"id": answer_row, "reason": "x"}]}})
            )
            (folder / "report.html").write_text(f"<p>{learnt_text}</p>")
            table = {"id": [answer_row, "x00001"], "candidate": ["a", "a"], "text": [learnt_text, "card"]}
            pq.write_table(pa.table(table), folder / "predictions.parquet")
        inputs = [Input(source, "", made[source].digest)] + [Input("dataset", "", old.digest)] * (noun == "report")
        made[noun] = write_manifest(folder, noun, settings_passed={}, settings_used={}, inputs=inputs, facts={})
    cache = place.work / "cache" / "predictions"
    cache.mkdir(parents=True)
    write_log(cache / "a-1.jsonl", [{"id": answer_row, "text": "loan"}, {"id": "x00001", "text": "card"}])
    (home / "look-dataset.html").write_text(f"<td>{learnt_text}</td>")
    (home / "dataset-0123456789" / ".scratch-x").mkdir(parents=True)
    (home / "dataset-0123456789" / ".scratch-x" / "rows-0.arrow").write_bytes(learnt_text.encode())
    with Ledger(home / "relabel" / "relabel.sqlite", 10**12) as ledger:
        for key, row, text in (("k1", answer_row, learnt_text), ("k2", "x00001", "card")):
            ledger.asked_for([(key, row)])
            ledger.reserve(key, 5, True)
            ledger.settle(key, Paid(200, json.dumps({"said": text}), 5))
    return made


def ledger_of(place: Place) -> list[tuple[str, str | None, int]]:
    with sqlite3.connect(place.work / "mail" / "relabel" / "relabel.sqlite") as base:
        found: list[tuple[str, str | None, int]] = base.execute(
            "SELECT key, response, paid FROM request ORDER BY key"
        ).fetchall()
    return found


def label_of(at: int) -> str:
    return LABELS[at % 3]

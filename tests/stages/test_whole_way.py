"""One row travels the whole way: log -> dataset -> adapter -> file -> report -> version -> answer -> log again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from potstill import cli
from potstill.dataset import read_examples, read_sealed
from potstill.errors import GateRefused
from potstill.lineage import lineage
from potstill.manifest import sha256_file
from potstill.serving.run import RunningServer, running_server
from potstill.serving.settings import ServeSettings
from tests.stages.tiny_llama import tiny_base

SYSTEM = "You sort the mail of a shop. Answer with exactly one word: bad, good or plain. Say nothing else."
WORDS = {
    "bad": ["awful", "broken", "late", "rude", "torn"],
    "good": ["great", "lovely", "quick", "kind", "neat"],
    "plain": ["a box", "blue", "ten", "round", "here"],
}
RECIPE = """\
name: tiny
task: {{kind: classification, labels: [bad, good, plain]}}
base_model: {base}
work_dir: work
distill:
  sources: [{{path: log.jsonl}}]
  split: {{test: 0.4, validation: 0.1}}
  duplicates: {{threshold: 1.0}}
train:
  {{learning_rate: 0.01, epochs: 16, batch_tokens: 256, window: 128, evals: 2, score_rows: 10, chat_template: base}}
export: {{formats: [gguf-q8_0], max_mismatch_share: 0.5}}
evaluate: {{gold: gold.jsonl, margin: 0.2, resamples: 1000, candidates: [teacher, adapter, artifacts]}}
register: {{model: tiny}}
"""


def exchange(at: int) -> tuple[dict[str, Any], dict[str, str]]:
    """A message whose label follows from one word; the teacher is wrong in one row of ten."""
    gold = sorted(WORDS)[at % 3]
    word = WORDS[gold][at // 3 % 5]
    said = "plain" if at % 10 == 7 else gold
    row = {
        "id": f"x{at}",
        "time": f"2026-01-05T08:{at // 60 % 60:02d}:{at % 60:02d}Z",
        "request": {
            "model": "large",
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": f"Parcel {at} was {word}."},
            ],
        },
        "response": {
            "choices": [{"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]
        },
        "latency_ms": 100 + at % 7,
        "metadata": {"conversation": f"c{at}"},
        "feedback": [],
    }
    return row, {"id": f"x{at}", "answer": gold}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    base = tiny_base(folder / "base")
    pairs = [exchange(at) for at in range(300)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row, _ in pairs))
    (folder / "gold.jsonl").write_text("".join(json.dumps(gold) + "\n" for _, gold in pairs))
    (folder / "recipe.yaml").write_text(RECIPE.format(base=base.path))
    return folder


@pytest.fixture(scope="module")
def outcome(place: Path) -> Any:
    """What `potstill run --json` printed."""
    import io
    from contextlib import redirect_stdout

    with redirect_stdout(io.StringIO()) as printed:
        code = cli.main(["run", str(place / "recipe.yaml"), "--json"])
    assert code in (0, GateRefused.exit_code)
    found = json.loads(printed.getvalue())
    assert (code == 0) == found["gate"]["passed"]
    return found


@pytest.fixture(scope="module")
def server(outcome: Any, place: Path) -> Iterator[RunningServer]:
    settings = ServeSettings(port=0, threads=1, slots=1)
    with running_server(Path(outcome["artifact"]["path"]), settings, "tiny", place / "captured") as running:
        yield running


def test_run_ends_with_every_noun_and_the_gate(outcome: Any) -> None:
    assert set(outcome) == {"dataset", "adapter", "artifact", "report", "version", "gate"}
    report = json.loads((Path(outcome["report"]["path"]) / "report.json").read_text())
    assert set(report["candidates"]) == {"teacher", "adapter", "artifact:gguf-q8_0"}
    assert report["candidates"]["artifact:gguf-q8_0"]["quality"]["value"] > 0.6
    assert report["candidates"]["artifact:gguf-q8_0"]["valid_rate"] == 1.0


def test_a_second_run_skips_every_stage(outcome: Any, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["run", str(place / "recipe.yaml"), "--json"])
    again = json.loads(capsys.readouterr().out)
    assert all(again[noun]["skipped"] for noun in ("dataset", "adapter", "artifact", "report", "version"))


def test_instructions_are_gone_from_every_row_and_the_test_rows_from_training(outcome: Any) -> None:
    dataset = Path(outcome["dataset"]["path"])
    train = [*read_examples(dataset, "train"), *read_examples(dataset, "validation")]
    held = read_sealed(dataset)
    assert all([each["role"] for each in row.messages] == ["user"] for row in [*train, *held])
    assert all(row.full_messages[0]["content"] == SYSTEM for row in held)
    assert not {row.conversation for row in train} & {row.conversation for row in held}


def test_lineage_of_the_version_leads_back_to_the_logs_hash(outcome: Any, place: Path) -> None:
    uri = f"sqlite:///{place}/work/mlflow.db"
    text = lineage(f"models:/tiny/{outcome['version']['version']}", place / "work", uri).to_text()
    assert sha256_file(place / "log.jsonl")[:12] in text


def test_served_answer_is_constrained_stripped_captured_and_learnt_from(server: RunningServer, place: Path) -> None:
    import httpx
    from openai import OpenAI

    client = OpenAI(base_url=server.base_url, api_key="none")
    asked = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Parcel 9000 was lovely."}]
    answer = client.chat.completions.create(model="tiny", messages=asked)  # type: ignore[arg-type]
    assert answer.choices[0].message.content in WORDS
    bare = client.chat.completions.create(model="tiny", messages=asked[1:])  # type: ignore[arg-type]
    assert answer.usage is not None
    assert bare.usage is not None
    assert answer.usage.prompt_tokens == bare.usage.prompt_tokens
    body = {"id": answer.id, "kind": "correction", "name": "agent", "value": "bad", "by": "tester"}
    assert httpx.post(f"{server.base_url}/feedback", json=body).status_code == 200

    captured = f"{server.capture_dir}/exchanges-*.jsonl"
    words = [f"distill.sources.1={{path: {captured}}}"]
    assert cli.main(["distill", str(place / "recipe.yaml"), *words, "--no-track", "distill.split.validation=0.3"]) == 0
    from potstill.pipeline import newest

    dataset = newest(place / "work" / "tiny", "dataset")
    rows = [*read_examples(dataset, "train"), *read_examples(dataset, "validation"), *read_sealed(dataset)]
    mine = next(row for row in rows if row.id == answer.id)
    assert mine.corrected
    assert mine.answer == "bad"
    assert mine.messages == [asked[1]]

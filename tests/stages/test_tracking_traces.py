"""Traces read from real MLflow tracking stores: a database, and a server in front of one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from distillation.connectors import connector
from distillation.connectors.base import NoCompanions
from potstill.errors import PotstillError, RecipeError
from potstill.records import Exchange
from potstill.tracking_traces import is_trace_address, parse_trace_address, trace_records, traces_digest

TRACES = 7
EXPERIMENT = "support answers"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with seven traces of one experiment, some assessed, and one trace of another."""
    folder = tmp_path_factory.mktemp("traces")
    script = folder / "write.py"
    script.write_text(WRITE)
    quiet = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false"}
    words: list[str | Path] = [sys.executable, script, folder / "mlflow.db", EXPERIMENT, str(TRACES)]
    subprocess.run(words, check=True, env=quiet, cwd=folder)
    return folder / "mlflow.db"


WRITE = """
import sys, mlflow
from mlflow.entities import SpanType

path, name, many = sys.argv[1], sys.argv[2], int(sys.argv[3])
mlflow.set_tracking_uri(f"sqlite:///{path}")

def answered(number):
    with mlflow.start_span("request") as root:
        with mlflow.start_span("call", span_type=SpanType.CHAT_MODEL) as call:
            asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": f"question {number}"}]
            call.set_inputs({"model": "big", "temperature": 0, "messages": asked})
            message = {"role": "assistant", "content": f"answer {number}"}
            call.set_outputs({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
            call.set_attribute("mlflow.chat.tokenUsage", {"input_tokens": 9, "output_tokens": 3, "total_tokens": 12})
            mlflow.update_current_trace(metadata={"mlflow.trace.session": f"s{number % 2}", "mlflow.trace.user": "u"})
    return root.trace_id, call.span_id

mlflow.set_experiment("another")
answered(99)
mlflow.set_experiment(name)
made = [answered(number) for number in range(many)]
mlflow.log_feedback(trace_id=made[0][0], name="helpful", value=False)
mlflow.log_feedback(trace_id=made[1][0], name="tone", value=0.5, span_id=made[1][1])
mlflow.log_expectation(trace_id=made[2][0], name="expected_response", value="better")
"""


def address(database: Path, experiment: str = EXPERIMENT) -> str:
    return f"mlflow+sqlite:///{database}#{experiment}"


def questions(found: Iterator[dict[str, object]]) -> list[str]:
    return [each.messages[-1]["content"] for each in read(found)]


def read(found: Iterator[dict[str, object]]) -> list[Exchange]:
    reader = connector("mlflow_traces")
    return [Exchange.from_json(each) for record in found for each in reader.read(record, NoCompanions())]


@pytest.mark.parametrize("page", [1, 3, TRACES, 50])
def test_every_trace_of_the_experiment_comes_once_and_oldest_first_whatever_the_page(database: Path, page: int) -> None:
    wanted = [f"question {number}" for number in range(TRACES)]
    assert questions(trace_records(address(database), page_traces=page)) == wanted


def test_a_page_is_fetched_only_when_it_is_needed(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    asked: list[str | None] = []
    search = mlflow.MlflowClient.search_traces

    def counting(*values: Any, **named: Any) -> Any:
        asked.append(named["page_token"])
        return search(*values, **named)

    monkeypatch.setattr(mlflow.MlflowClient, "search_traces", counting)
    records = trace_records(address(database), page_traces=2)
    for _ in range(3):
        next(records)
    assert len(asked) == 2


def test_traces_written_by_mlflow_become_exchanges(database: Path) -> None:
    first, second, third, *_ = read(trace_records(address(database)))
    assert first.messages == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "question 0"}]
    assert (first.answer["content"], first.finish_reason, first.request["model"]) == ("answer 0", "stop", "big")
    assert first.usage == {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    assert (first.conversation, first.metadata["user"], second.conversation) == ("s0", "u", "s1")
    assert [(each.kind, each.name, each.value) for each in first.feedback] == [("thumbs", "helpful", False)]
    assert [(each.kind, each.name, each.value) for each in second.feedback] == [("score", "tone", 0.5)]
    assert third.correction == "better"
    assert connector("mlflow_traces").detect(next(trace_records(address(database))))


def test_the_digest_is_stable_and_follows_an_assessment(database: Path, tmp_path: Path) -> None:
    before = traces_digest(address(database))
    assert traces_digest(address(database)) == before
    assert traces_digest(address(database, "another")) != before
    copied = tmp_path / "copy.db"
    copied.write_bytes(database.read_bytes())
    assert traces_digest(address(copied)) == before
    code = (
        "import sys, mlflow; mlflow.set_tracking_uri(sys.argv[1]);"
        "mlflow.log_feedback(trace_id=sys.argv[2], name='late', value=True)"
    )
    trace = next(trace_records(address(copied)))["info"]["trace_id"]
    subprocess.run([sys.executable, "-c", code, f"sqlite:///{copied}", trace], check=True, cwd=tmp_path)
    assert traces_digest(address(copied)) != before


def test_an_experiment_may_be_named_by_its_number(database: Path) -> None:
    assert questions(trace_records(address(database, "1"))) == ["question 99"]


def test_reading_leaves_the_process_with_its_own_tracking_address(database: Path) -> None:
    import mlflow

    before = mlflow.get_tracking_uri()
    list(trace_records(address(database)))
    assert mlflow.get_tracking_uri() == before


def test_an_unknown_experiment_is_refused_with_those_that_are_there(database: Path) -> None:
    with pytest.raises(RecipeError, match=r"experiment 'suport' does not exist; there are: .*another, support answers"):
        next(trace_records(address(database, "suport")))


def test_a_database_that_is_not_there_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no database"):
        next(trace_records(address(tmp_path / "none.db")))
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_answer_is_named_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(PotstillError, match=r"mlflow\+http://127.0.0.1:\d+#x: MLflow does not answer"):
        next(trace_records(f"mlflow+http://127.0.0.1:{free_port()}#x"))
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    "text",
    ["mlflow+sqlite:///relative.db#x", "mlflow+sqlite:////a.db", "mlflow+ftp://h#x", "mlflow+http://h#", "a.jsonl"],
)
def test_another_form_of_address_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="expected mlflow\\+sqlite:////abs/path"):
        parse_trace_address(text)


def test_a_password_is_not_shown() -> None:
    assert is_trace_address("mlflow+http://me:secret@host:5000#x")
    assert str(parse_trace_address("mlflow+http://me:secret@host:5000#x")) == "mlflow+http://host:5000#x"


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture
def server(database: Path, tmp_path: Path) -> Iterator[str]:
    """A real MLflow server in front of the database."""
    port = free_port()
    words = ["server", "--backend-store-uri", f"sqlite:///{database}", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--workers", "1", "--default-artifact-root", str(tmp_path)]
    log = (tmp_path / "server.log").open("wb")
    quiet = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    with subprocess.Popen([sys.executable, "-m", "mlflow", *words], env=quiet, stdout=log, stderr=log) as child:
        try:
            for _ in range(240):
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                        break
                except httpx.HTTPError:
                    time.sleep(0.5)
            else:
                pytest.fail((tmp_path / "server.log").read_text())
            yield f"mlflow+http://127.0.0.1:{port}"
        finally:
            child.terminate()
            child.wait(30)
            log.close()


@pytest.mark.slow
def test_a_real_server_gives_the_same_traces_page_by_page(server: str, database: Path) -> None:
    got = read(trace_records(f"{server}#{EXPERIMENT}", page_traces=2))
    assert [each.to_json() for each in got] == [each.to_json() for each in read(trace_records(address(database)))]
    with pytest.raises(RecipeError, match="does not exist"):
        next(trace_records(f"{server}#nothing"))

"""Promises of what is counted: everything once, at its price, with few labels, by all workers together."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import socket
import sqlite3
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from potstill import cli
from potstill.serving import counted, tallies
from potstill.serving.call import Asked, Call
from potstill.serving.counted import Shared, families_of
from potstill.serving.history import quantile
from potstill.serving.http import Http
from potstill.serving.meter import BUCKETS_S, MOST_VALUES, Meter, meter
from potstill.serving.server import Server
from potstill.serving.settings import ServeSettings
from potstill.serving.tallies import Tallies
from tests.serving.metered import KEY, PRICED, key_file, mock_engine, say, server_of, serving, some_traffic
from tests.serving.test_steps_and_fleet import server_of as plain_server

ROOT = Path(__file__).resolve().parents[2]
PANELS = json.loads((ROOT / "deploy" / "grafana" / "potstill.json").read_text())["panels"]
SETTINGS = ServeSettings.model_validate(PRICED)


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    with mock_engine() as url:
        yield url


@pytest.fixture(scope="module")
def served(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with keys that has seen some of everything."""
    folder = tmp_path_factory.mktemp("served")
    server = server_of(engine, folder, keys=[key_file(folder)], telemetry={"steps": True})
    with serving(server) as url:
        some_traffic(url, KEY)
        time.sleep(2.5)  # a point is made
        yield url


def fetched(url: str, path: str = "/metrics", key: str = KEY) -> httpx.Response:
    return httpx.get(url + path, headers={"authorization": f"Bearer {key}"} if key else {}, timeout=30)


def values(text: str, name: str, **labels: str) -> float:
    samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
    return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())


def call_of(server: Server, user: str | None = None, *asked: Asked) -> Call:
    call = Call(Http({"headers": [], "method": "POST", "path": "/"}, None, None), server.plan)
    call.body = {"model": "m", "messages": []} | ({"user": user} if user else {})
    call.key, call.answered_by, call.deployment = "tester", "engine", server.current
    call.asked.extend(asked)
    call.response = {"usage": {"prompt_tokens": 1000, "completion_tokens": 100}}
    return call


def test_everything_is_counted_once_and_the_text_is_prometheus_own(served: str) -> None:
    text = fetched(served).text
    assert values(text, "potstill_answers_total") == 7
    assert values(text, "potstill_answers_total", answered_by="engine", model="mock@1") == 5
    assert values(text, "potstill_answers_total", answered_by="exact_cache") == 1
    assert values(text, "potstill_errors_total", category="limited") == 1
    assert values(text, "potstill_errors_total", category="refused") == 1
    assert values(text, "potstill_request_seconds_count", streamed="true") == 1
    assert values(text, "potstill_first_chunk_seconds_count") == 1
    assert values(text, "potstill_tokens_total", kind="prompt", by="student") == 5 * 12
    assert values(text, "potstill_tokens_total", kind="completion", by="large") == 5
    assert values(text, "potstill_feedback_total", kind="thumbs") == 1
    assert values(text, "potstill_captured_total", outcome="written") == 8
    assert values(text, "potstill_in_flight") == 0
    assert values(text, "potstill_step_seconds_count", step="validate_input") == 9


def test_the_money_is_that_of_every_question_and_of_the_baseline(served: str) -> None:
    text = fetched(served).text
    student = 5 * (12 * 0.1 + 4 * 0.2) / 1e6
    large = (400 * 2.0 + 5 * 8.0) / 1e6
    assert values(text, "potstill_cost_usd_total", by="student") == pytest.approx(student)
    assert values(text, "potstill_cost_usd_total", by="large") == pytest.approx(large)
    baseline = 5 * (12 * 2.0 + 4 * 8.0) / 1e6 + 2 * large
    assert values(text, "potstill_saved_usd") == pytest.approx(baseline - student - large)
    assert values(text, "potstill_saved_usd", answered_by="large") == pytest.approx(0)


def test_nobody_without_a_key_sees_numbers_and_the_page_holds_none(served: str) -> None:
    for path in ("/metrics", "/dashboard.json"):
        assert fetched(served, path, key="").status_code == 401
    page = fetched(served, "/dashboard", key="")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert set(re.findall(r"""(?:src|href)=["']([^"']{0,40})""", page.text)) == {"data:image/svg+xml,%3Csvg xmlns="}
    assert "mock@1" not in page.text


def test_a_user_stands_nowhere_by_name_and_is_found_by_who_knows_it(served: str) -> None:
    whole = fetched(served, "/dashboard.json?user=anna@example.com").json()
    assert whole["user"][0]["requests"] == 4
    assert whole["top"]["key"][0]["name"] == "tester"
    assert whole["top"]["key"][0]["requests"] == 9
    assert "anna" not in json.dumps(whole)
    assert "anna" not in fetched(served).text
    assert fetched(served, "/dashboard.json?user=nobody").json()["user"] == []


def test_top_prints_the_numbers_for_people_and_machines(
    served: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["top", served, "--once"]) == 1
    assert "name the variable of a key" in capsys.readouterr().err
    assert cli.main(["top", served, "--once", "--key-env", "TOP_KEY"]) == 2
    assert "the variable TOP_KEY is not set" in capsys.readouterr().err
    monkeypatch.setenv("TOP_KEY", "sk-of-nobody")
    assert cli.main(["top", served, "--once", "--key-env", "TOP_KEY"]) == 1
    assert "--key-env" in capsys.readouterr().err
    monkeypatch.setenv("TOP_KEY", KEY)
    assert cli.main(["top", f"{served}/v1", "--once", "--json", "--key-env", "TOP_KEY"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["answers"] == 7
    assert found["errors"] == {"limited": 1, "refused": 1}
    assert found["latency_ms_since_start"]["p99_ms"] > 0
    assert found["models"][0]["ready"] is True
    assert found["saved_usd"] > 0
    assert cli.main(["top", served, "--once", "--key-env", "TOP_KEY"]) == 0
    shown = capsys.readouterr().out
    assert "mock@1" in shown
    assert "saved" in shown
    assert cli.main(["top", "http://127.0.0.1:9", "--once"]) == 1


def expressions() -> list[str]:
    found = [target["expr"] for panel in PANELS for target in panel["targets"]]
    return [each.replace("$__rate_interval", "1m").replace('"$job"', '".*"') for each in found]


def test_every_query_of_the_grafana_dashboard_names_what_is_counted(served: str) -> None:
    families = {each.name: each for each in text_string_to_metric_families(fetched(served).text)}
    samples = {each.name for family in families.values() for each in family.samples}
    types = set(re.findall(r"^# TYPE (\S+)", fetched(served).text, re.M))
    labels = {name for family in families.values() for each in family.samples for name in each.labels} | {"job", "code"}
    used = {name for each in expressions() for name in re.findall(r"\bpotstill_\w+", each)}
    assert len(used) >= 15
    assert used <= samples | types
    for each in expressions():
        for group in re.findall(r"by \(([^)]*)\)", each):
            assert {name.strip() for name in group.split(",")} <= labels, each
    rules = (ROOT / "deploy" / "prometheus" / "alarms.yml").read_text()
    assert set(re.findall(r"\bpotstill_\w+", rules)) <= samples | types


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus here (apt-get install prometheus)")
def test_a_real_prometheus_scrapes_it_and_answers_every_query_of_the_dashboard(served: str, tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is not None:
        checked = subprocess.run(
            [promtool, "check", "metrics"], input=fetched(served).text, text=True, capture_output=True
        )
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
        config = ROOT / "deploy" / "prometheus.yml"
        assert subprocess.run([promtool, "check", "config", "--syntax-only", config]).returncode == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\nscrape_configs:\n  - job_name: potstill\n"
        f"    authorization: {{type: Bearer, credentials_file: {tmp_path}/key}}\n"
        f"    static_configs: [{{targets: ['{served.removeprefix('http://')}']}}]\n"
    )
    words = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
             f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        found = _until_scraped(f"http://127.0.0.1:{port}")
        assert float(found["data"]["result"][0]["value"][1]) == 7
        for each in expressions():
            reply = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": each}, timeout=30).json()
            assert reply["status"] == "success", (each, reply)
    finally:
        child.kill()
        child.wait()


def _until_scraped(url: str) -> Any:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            found = httpx.get(f"{url}/api/v1/query", params={"query": "sum(potstill_answers_total)"}, timeout=5).json()
            if found["data"]["result"]:
                return found
        except (httpx.HTTPError, KeyError, ValueError):
            pass
        time.sleep(0.25)
    raise AssertionError("Prometheus scraped nothing within a minute")


def test_a_label_never_has_more_values_than_are_allowed() -> None:
    to = Meter()
    for at in range(3 * MOST_VALUES):
        to.add(to.faults, 1, "student", f"code {at}")
    text = to.text().decode()
    assert len(re.findall(r"^potstill_question_faults_total\{", text, re.M)) == MOST_VALUES + 1
    assert values(text, "potstill_question_faults_total") == 3 * MOST_VALUES
    assert values(text, "potstill_question_faults_total", code="other") == 2 * MOST_VALUES


@given(seconds=st.lists(st.floats(0.0001, 59), min_size=1, max_size=60), share=st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_lies_in_the_bucket_of_the_exact_one(seconds: list[float], share: float) -> None:
    buckets = {edge: float(sum(each <= edge for each in seconds)) for edge in (*BUCKETS_S, float("inf"))}
    found = quantile(buckets, share)
    exact = sorted(seconds)[max(0, -(-int(share * 100) * len(seconds) // 100) - 1)]
    upper = next(edge for edge in BUCKETS_S if exact <= edge)
    lower = max([0.0, *(edge for edge in BUCKETS_S if edge < upper)])
    assert found is not None
    assert lower <= found <= upper


def counting(folder: Path, worker: int) -> tuple[Meter, Shared]:
    made = Meter()
    made.shared = Shared(folder, worker)
    return made, made.shared


def answers(of: Meter) -> float:
    return values(of.text().decode(), "potstill_answers_total")


def test_workers_are_added_up_and_no_scrape_ever_sees_a_counter_go_back(tmp_path: Path) -> None:
    draw = random.Random(3)
    workers = [counting(tmp_path, at)[0] for at in range(3)]
    whole, seen = 0, 0.0
    for _ in range(200):
        one = draw.choice(workers)
        if draw.random() < 0.6:
            one.add(one.answers, 1, "m@1", "engine")
            one.note(one.latency, draw.random(), "false", "engine")
            whole += 1
        now = answers(draw.choice(workers))
        assert seen <= now <= whole
        seen = now
    for each in workers:
        each.text()
    assert {answers(each) for each in workers} == {whole}
    assert values(workers[0].text().decode(), "potstill_request_seconds_count") == whole


def test_a_worker_that_is_gone_leaves_its_counters_and_takes_its_gauges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one, _), (other, shared) = counting(tmp_path, 0), counting(tmp_path, 1)
    other.add(other.answers, 5, "m@1", "engine")
    other.in_flight.set(3)
    other.engine_up.set(1)
    one.engine_up.set(1)
    shared.leave(families_of(other.registry))
    assert values(one.text().decode(), "potstill_in_flight") == 3
    assert values(one.text().decode(), "potstill_engine_up") == 1
    other.engine_up.set(0)
    shared.leave(families_of(other.registry))
    assert values(one.text().decode(), "potstill_engine_up") == 0, "one engine that is away must not be averaged out"
    for path in tmp_path.glob("worker-1-*"):
        os.utime(path, (time.time() - 1000,) * 2)
    text = one.text().decode()
    assert (values(text, "potstill_answers_total"), values(text, "potstill_in_flight")) == (5, 0)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # killed between noting the past and clearing it
    again, _ = counting(tmp_path, 1)
    monkeypatch.undo()
    assert answers(again) == answers(one) == 5
    third, _ = counting(tmp_path, 2)
    assert len(list(tmp_path.glob("worker-1-*"))) == 1, "only the new one's"
    assert answers(third) == 5
    (tmp_path / counted._PAST).write_bytes(b"spoiled")
    assert answers(third) == 0


def test_two_workers_of_one_server_share_their_numbers(engine: str, tmp_path: Path) -> None:
    one, other = (server_of(engine, tmp_path, capture=None) for _ in range(2))
    for at, each in enumerate((one, other)):
        vars(each)["worker"] = SimpleNamespace(index=at, workers=2, folder=tmp_path)
        each.plan = each._planned()
    with serving(one) as first, serving(other) as second:
        with httpx.Client(base_url=first) as http:
            assert say(http).status_code == 200
        with httpx.Client(base_url=second) as http:
            assert say(http).status_code == 200
        time.sleep(1.5)
        for url in (first, second):
            assert values(fetched(url, key="").text, "potstill_answers_total") == 2


def test_usage_by_user_is_exact_for_more_users_than_memory_holds_and_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tallies, "MOST", 50)
    server, kept = plain_server(), Tallies()
    kept.keep_in(tmp_path)
    usage = {"prompt_tokens": 10, "completion_tokens": 1}
    for at in range(400):
        kept.count(call_of(server, f"someone-{at % 200}", Asked("student", "m", usage, 0.1)), SETTINGS)
        if at % 20 == 0:
            kept.write()
    kept.write()
    assert kept.top("user", user="someone-7")[0]["requests"] == 2
    assert kept.top("key")[0] | {"cost_usd": 0, "saved_usd": 0} == {
        "name": "tester", "requests": 400, "errors": 0, "prompt_tokens": 4000, "completion_tokens": 400, "cost_usd": 0,
        "saved_usd": 0,
    }  # fmt: skip
    assert len(kept.top("user", most=10)) == 10
    assert b"someone" not in b"".join(each.read_bytes() for each in tmp_path.iterdir())


def test_usage_waits_while_its_file_is_locked_and_is_written_at_the_end(tmp_path: Path) -> None:
    server, kept = plain_server(), Tallies()
    kept.keep_in(tmp_path)
    assert kept.path is not None
    kept.count(call_of(server), SETTINGS)
    kept.write()
    holding = sqlite3.connect(kept.path, isolation_level=None)
    holding.execute("BEGIN EXCLUSIVE")
    kept.count(call_of(server), SETTINGS)
    real = sqlite3.connect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tallies.sqlite3, "connect", lambda path, timeout: real(path, timeout=0.05))
        with pytest.raises(sqlite3.OperationalError):
            kept.write()
    holding.execute("ROLLBACK")
    holding.close()
    kept.write()
    again = Tallies()
    again.keep_in(tmp_path)
    assert again.top("key")[0]["requests"] == 2


def test_settings_that_change_while_it_runs_neither_stop_nor_double_the_counting(engine: str, tmp_path: Path) -> None:
    async def main() -> None:
        server = server_of(engine, tmp_path, capture=None)
        await server.start()
        await server.reload(server.settings.model_copy(update={"max_body_bytes": 5000}))
        server.meter.tallies.count(call_of(server), SETTINGS)
        assert server.meter.tallies._thread is not None
        await server.close()
        assert server.meter.tallies._thread is None
        assert server.meter.tallies.top("key")[0]["requests"] == 1

    asyncio.run(main())


def test_counting_a_call_takes_microseconds() -> None:
    server = plain_server()
    usage = {"prompt_tokens": 10, "completion_tokens": 1}
    calls = [call_of(server, f"u{at % 50}", Asked("student", "m", usage, 0.1)) for at in range(500)]
    taken = []
    for _ in range(10):
        began = time.process_time()
        for each in calls:
            meter(each, server.meter, SETTINGS)
            server.meter.tallies.count(each, SETTINGS)
        taken.append((time.process_time() - began) / len(calls) * 1e6)
    print(f"metering: {min(taken):.1f} µs a call (median {statistics.median(taken):.1f})")
    assert min(taken) < 100

"""What reviewers look at in MLflow: sample answers, the prompt registry, the machine under a training."""

from __future__ import annotations

import json
import pickletools
from pathlib import Path
from typing import Any

import pytest

from potstill.manifest import read_manifest, write_manifest
from potstill.prompt import Drop, PromptRule, Strip
from potstill.tracking import client, default_uri, open_tracking
from potstill.tracking_evidence import SAMPLE, SAMPLED_ROWS, record_prompt, sample_table
from potstill.tracking_live import machine_watched
from potstill.tracking_stages import record_folder
from tests.stages.registry_workshop import Workshop, input_of

RULE = PromptRule((Drop("system", "Answer with a or b.", ("0" * 64,)),), (Strip("user", "Text:\n", "\n\nLabel:"),))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    work = tmp_path_factory.mktemp("work")
    return Workshop(work, open_tracking(default_uri(work)))


def with_predictions(report: Path, rows: int, split: int) -> None:
    """A report folder's predictions, two candidates that differ in the last `split` rows; sealed again."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = [
        {"id": f"row-{n}", "candidate": name, "text": "b" if n >= rows - split and name == "teacher" else "a",
         "gold": "a", "teacher": None}
        for name in ("teacher", "artifact:gguf-q8_0")
        for n in range(rows)
    ]  # fmt: skip
    before = read_manifest(report)
    pq.write_table(pa.Table.from_pylist(table), report / "predictions.parquet")
    write_manifest(
        report, "report", settings_passed={}, settings_used={}, inputs=before.inputs, facts=before.facts, key="k"
    )


def test_the_report_run_holds_a_sample_of_answers_side_by_side_logged_once(workshop: Workshop) -> None:
    report = workshop.folders("sample")["report"]
    with_predictions(report, rows=300, split=3)
    run_id = record_folder(workshop.tracking, "sample", report)
    assert record_folder(workshop.tracking, "sample", report) == run_id
    (logged,) = workshop.work.glob(f"mlartifacts/sample/{run_id}/artifacts/{SAMPLE}")
    table = json.loads(logged.read_text())
    assert table["columns"] == ["id", "gold", "teacher", "answer: teacher", "answer: artifact:gguf-q8_0"]
    assert len(table["data"]) == SAMPLED_ROWS
    assert [row[0] for row in table["data"][:4]] == ["row-297", "row-298", "row-299", "row-0"]
    assert table["data"][0] == ["row-297", "a", "", "b", "a"]
    assert SAMPLE in client(workshop.tracking).get_run(run_id).data.tags["mlflow.loggedArtifacts"]


def test_a_sample_of_rows_that_all_differ_is_no_longer_than_others(workshop: Workshop) -> None:
    report = workshop.folders("differ")["report"]
    with_predictions(report, rows=300, split=300)
    assert {len(column) for column in sample_table(report / "predictions.parquet").values()} == {SAMPLED_ROWS}


def test_the_instructions_stand_in_the_prompt_registry_once_and_the_version_names_them(workshop: Workshop) -> None:
    upstream = workshop.folders("prompted")
    facts = {"prompt_rule": RULE.to_json(), "counts": {}}
    inputs = read_manifest(upstream["dataset"]).inputs
    write_manifest(upstream["dataset"], "dataset", settings_passed={}, settings_used={}, inputs=inputs, facts=facts)
    registered = workshop.register("prompted", upstream)
    api = client(workshop.tracking)
    assert registered["lineage"]["prompt"] == "prompts:/prompted.prompt/1"
    prompt = api.load_prompt("prompts:/prompted.prompt/1")
    assert prompt.template == [
        {"role": "system", "content": "Answer with a or b."},
        {"role": "user", "content": "Text:\n{{input}}\n\nLabel:"},
    ]
    version = api.get_model_version("prompted", registered["version"])
    stored = api.get_logged_model(version.source.removeprefix("models:/"))
    linked: Any = json.loads(stored.tags["mlflow.linkedPrompts"])
    assert linked == [{"name": "prompted.prompt", "version": "1"}]
    run = api.get_run(registered["run_ids"]["version"])
    assert "prompted.prompt" in run.data.tags["mlflow.linkedPrompts"]
    assert record_prompt(workshop.tracking, "prompted", RULE.to_json()) == "prompts:/prompted.prompt/1"
    other = PromptRule((Drop("system", "Answer with b or a."),))
    assert record_prompt(workshop.tracking, "prompted", other.to_json()) == "prompts:/prompted.prompt/2"
    assert record_prompt(workshop.tracking, "prompted", PromptRule().to_json()) is None


def test_the_evaluation_set_is_a_dataset_input_with_its_digest_and_metrics_carry_their_intervals(
    workshop: Workshop,
) -> None:
    upstream = workshop.folders("judged")
    run = client(workshop.tracking).get_run(record_folder(workshop.tracking, "judged", upstream["report"]))
    (used,) = run.inputs.dataset_inputs
    digest = input_of(upstream["dataset"]).digest
    assert digest.startswith(used.dataset.digest)
    assert {tag.key: tag.value for tag in used.tags} == {"mlflow.data.context": "evaluation", "potstill.digest": digest}
    metrics = run.data.metrics
    assert metrics["quality.low"] < metrics["quality.accuracy"] < metrics["quality.high"]


def test_a_training_run_shows_the_machine_under_it(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    api = client(workshop.tracking)
    run_id = api.create_run("0").info.run_id
    with machine_watched(workshop.tracking, run_id):
        until = time.monotonic() + 60
        while time.monotonic() < until and "system/cpu_utilization_percentage" not in api.get_run(run_id).data.metrics:
            time.sleep(0.2)
    assert api.get_run(run_id).data.metrics["system/system_memory_usage_megabytes"] > 0
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    silent = api.create_run("0").info.run_id
    with machine_watched(workshop.tracking, silent):
        time.sleep(0.5)
    assert api.get_run(silent).data.metrics == {}


def test_nothing_that_was_logged_is_a_pickle(workshop: Workshop) -> None:
    workshop.register("plain", workshop.folders("plain"))
    files = [path for path in (workshop.work / "mlartifacts").rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        assert path.suffix not in (".pkl", ".pickle", ".joblib", ".pt", ".bin")
        data = path.read_bytes()
        if data[:1] == b"\x80":
            with pytest.raises(ValueError, match=r".+"):
                list(pickletools.genops(data))

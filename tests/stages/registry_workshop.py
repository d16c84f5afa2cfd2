"""A working folder with its MLflow address, and small stage folders with real manifests, for tests of the registry."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from evaluation import register
from potstill.manifest import Input, read_manifest, sha256_file, write_manifest
from potstill.records import Json
from potstill.stage import Shared, Upstream
from potstill.tracking import Tracking, client, experiment_id
from potstill.tracking_versions import Evidence, register_version

STEPS = [{"step": step, "loss": 2.0 / (1 + step), "note": "text is no curve"} for step in range(30)]


@dataclass(frozen=True)
class Workshop:
    """A working folder with its tracking database, and stage folders made on demand."""

    work: Path
    tracking: Tracking

    def shared(self, name: str) -> Shared:
        definition: Json = {"kind": "classification", "labels": ["a", "b"]}
        return Shared(name, definition, "base", self.work / name, self.tracking.uri)

    def folders(self, name: str, *, weights: bytes = b"1", passed: bool = True, about: Path | None = None) -> Upstream:
        """Dataset, adapter, artifact and report of a recipe; `about` is the artifact judged, if not this one."""
        root = self.work / name
        traffic = self.work / f"{name}.jsonl"
        traffic.parent.mkdir(parents=True, exist_ok=True)
        traffic.write_text(f"the traffic of {name}\n")
        tail = f"{weights.decode()}-{passed}-{about.name if about else ''}"
        source = Input("traffic", str(traffic), sha256_file(traffic))
        dataset = folder_of(root / "dataset-1", "dataset", [source], {"card.md": "# Card"}, {"counts": {"train": 8}})
        adapter = folder_of(
            root / f"adapter-{weights.decode()}",
            "adapter",
            [input_of(dataset)],
            {
                "adapter/adapter_model.safetensors": weights,
                "contract.json": "{}",
                "trainer_log.jsonl": "\n".join(json.dumps(each) for each in STEPS),
            },
            {"base": {"spec": "base", "digest": "b" * 64}, "training": {"tokens_per_s": 312.5}},
        )
        artifact = folder_of(
            root / f"artifact-{weights.decode()}",
            "artifact",
            [input_of(adapter)],
            {"model-q8_0.gguf": b"GGUF" + weights, "contract.json": "{}", "verification.json": "{}"},
            {"formats": {"gguf-q8_0": {"file": "model-q8_0.gguf", "size_bytes": 5}}},
        )
        report = folder_of(
            root / f"report-{tail}",
            "report",
            [input_of(dataset), input_of(adapter), input_of(about or artifact)],
            {"report.json": json.dumps(report_of(passed)), "report.html": f"<p>report {tail}</p>"},
            {"gate": {"passed": passed}},
        )
        return {"dataset": dataset, "adapter": adapter, "artifact": artifact, "report": report}

    def version(self, name: str, weights: bytes) -> str:
        """The number of a version registered without the runs of its stages, which takes a tenth of the time."""
        upstream = self.folders(name, weights=weights)
        api = client(self.tracking)
        run_id = api.create_run(experiment_id(self.tracking, name)).info.run_id
        evidence = Evidence(*(upstream[noun] for noun in register.NEEDS))
        return register_version(self.tracking, name, name, evidence, run_id=run_id).version

    def register(self, name: str, upstream: Upstream, **settings: object) -> Json:
        out = self.work / name / "version"
        out.mkdir(exist_ok=True)
        return register.main(register.Settings.model_validate(settings), self.shared(name), upstream, out)


def input_of(folder: Path) -> Input:
    manifest = read_manifest(folder)
    return Input(manifest.kind, str(folder), manifest.digest)


def folder_of(folder: Path, kind: str, inputs: list[Input], files: dict[str, str | bytes], facts: Json) -> Path:
    if folder.exists():
        return folder
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    passed: Json = {"learning_rate": 5e-4}
    used = {"epochs": 2, **passed, **{f"option_{n}": n for n in range(20)}}
    write_manifest(
        folder, kind, settings_passed=passed, settings_used=used, inputs=inputs, facts=facts, key=folder.name
    )
    return folder


def report_of(passed: bool) -> Json:
    def figures(value: float) -> Json:
        score = {"metric": "accuracy", "value": value, "low": value - 0.05, "high": value + 0.05, "n": 400}
        return {
            "quality": score,
            "agreement": {**score, "value": value - 0.1},
            "valid_rate": 1.0,
            "latency_ms": {"p50": 40.0, "p95": 80.0, "p99": 90.0},
            "cost": {"per_1000": 0.01},
        }

    values = {"teacher": 0.7, "base": 0.3, "adapter": 0.8, "artifact:gguf-q8_0": 0.79 if passed else 0.4}
    reasons = [] if passed else ["artifact:gguf-q8_0 is inferior to teacher by 0.30"]
    return {
        "candidates": {name: figures(value) for name, value in values.items()},
        "comparisons": [
            {
                "candidate": "artifact:gguf-q8_0", "baseline": "teacher",
                "difference": values["artifact:gguf-q8_0"] - values["teacher"],
                "low": 0.02, "high": 0.16, "margin": 0.02, "verdict": "superior" if passed else "inferior",
            }
        ],
        "gate": {"passed": passed, "reasons": reasons},
    }  # fmt: skip

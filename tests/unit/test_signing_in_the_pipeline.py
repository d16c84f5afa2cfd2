"""The pipeline signs what it makes, and no later stage reads what was tampered with."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from pydantic import Field

from potstill.errors import DamagedInput, ManifestMismatch, Untrusted
from potstill.manifest import MANIFEST
from potstill.pipeline import run_pipeline
from potstill.recipe import Recipe, Section, load_recipe
from potstill.signature import SIGNATURE
from potstill.signing import SignSettings, check_signature, make_keys

from .signed_folders import FILES, TAMPERINGS, Signed, signed


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    return signed(tmp_path_factory.mktemp("signed"))


class Export(Section):
    sign: Annotated[SignSettings | None, Field(exclude=True)] = None


class Evaluate(Section):
    margin: float = 0.02


def stages(calls: list[str]) -> dict[str, Any]:
    def export(settings: Any, shared: Any, upstream: Any, out: Path) -> Any:
        calls.append("export")
        for name, data in FILES.items():
            (out / name).write_bytes(data)
        return {"formats": {"gguf-q8_0": {"file": "model-q8_0.gguf"}}}

    def evaluate(settings: Any, shared: Any, upstream: Any, out: Path) -> Any:
        calls.append("evaluate")
        (out / "report.json").write_text("{}")
        return {"gate": {"passed": True, "reasons": []}}

    def nothing(settings: Any, shared: Any) -> list[Any]:
        return []

    return {
        "export": SimpleNamespace(NOUN="artifact", NEEDS=(), Settings=Export, inputs=nothing, main=export),
        "evaluate": SimpleNamespace(
            NOUN="report", NEEDS=("artifact",), Settings=Evaluate, inputs=nothing, main=evaluate
        ),
    }


def recipe_in(folder: Path, modules: dict[str, Any], *overrides: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text("name: tiny\ntask: {kind: generation}\nbase_model: some/base\nwork_dir: work\n")
    return load_recipe(path, overrides, {name: module.Settings for name, module in modules.items()})


def run(folder: Path, *overrides: str) -> tuple[list[str], Path]:
    calls: list[str] = []
    modules = stages(calls)
    outcome = run_pipeline(recipe_in(folder, modules, *overrides), modules, "evaluate", track=False)
    return calls, Path(outcome["artifact"]["path"])


def test_the_pipeline_signs_what_it_made_and_refuses_it_when_tampered_with(tmp_path: Path) -> None:
    keys, others = make_keys(tmp_path / "keys"), make_keys(tmp_path / "others")
    key = f"export.sign.key={keys.private}"
    assert run(tmp_path)[0] == ["export", "evaluate"]
    calls, artifact = run(tmp_path, key)
    assert calls == ["export"], "an unsigned artifact is made again, and being the same it is not judged again"
    assert check_signature(artifact, keys.public) == keys.fingerprint
    assert run(tmp_path, key)[0] == []
    with pytest.raises(Untrusted, match="signed by key"):
        run(tmp_path, f"export.sign.key={others.private}")
    whole = json.loads((artifact / MANIFEST).read_text())
    whole["facts"]["wall_s"] = 0
    (artifact / MANIFEST).write_text(json.dumps(whole))
    with pytest.raises(DamagedInput, match=r"signs another manifest\.json"):
        run(tmp_path, key, "evaluate.margin=0.03")
    (artifact / SIGNATURE).unlink()
    assert run(tmp_path, key)[0] == ["export"]


@pytest.mark.parametrize("how", TAMPERINGS)
def test_no_later_stage_reads_a_tampered_artifact(how: str, tmp_path: Path, made: Signed) -> None:
    """It is refused, or made anew where manifest or signature are gone: what was put there is never judged."""
    key = f"export.sign.key={made.keys.private}"
    _, artifact = run(tmp_path, key)
    TAMPERINGS[how](artifact, made)
    try:
        calls, again = run(tmp_path, key, "evaluate.margin=0.03")
    except (Untrusted, ManifestMismatch):
        return
    assert calls[0] == "export", "only what was made again is read"
    assert {name: (again / name).read_bytes() for name in FILES} == FILES
    assert check_signature(again, made.keys.public) == made.keys.fingerprint


def test_a_stage_killed_between_manifest_and_signature_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = make_keys(tmp_path / "keys")
    from potstill import pipeline

    def killed(settings: object, folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "seal", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, f"export.sign.key={keys.private}")
    calls, artifact = run(tmp_path, f"export.sign.key={keys.private}")
    assert calls == ["export", "evaluate"]
    assert check_signature(artifact, keys.public) == keys.fingerprint

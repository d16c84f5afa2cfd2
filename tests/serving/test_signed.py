"""Promises of a server that trusts a key: it starts on what that key signed, and on nothing else, real model or not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from potstill.errors import ManifestMismatch, ParityMismatch, Untrusted
from potstill.manifest import MANIFEST, sha256_file, sha256_json
from potstill.models import read_gguf_field
from potstill.serving.run import running_server
from potstill.serving.settings import ServeSettings
from potstill.serving.start import load_artifact, start_engine
from potstill.signature import SIGNATURE
from potstill.signing import Keys, make_keys, sign_folder
from tests.serving.conftest import INSTRUCTIONS
from tests.unit.hostile_names import hostile_names, standing

MODEL = "model-q4_1.gguf"
QUESTION = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": "I love it"}]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def ours(artifact: Path, keys: Keys, tmp_path: Path) -> Path:
    copy = tmp_path / "ours"
    shutil.copytree(artifact, copy)
    sign_folder(copy, keys.private)
    return copy


def trusting(keys: Keys) -> ServeSettings:
    return ServeSettings.model_validate({"port": 0, "threads": 1, "trust": {"public_key": str(keys.public)}})


def other_template(folder: Path) -> None:
    """Another template of the same length in the GGUF, and a manifest that agrees with it."""
    path = folder / MODEL
    whole = path.read_bytes()
    before = str(read_gguf_field(path, "tokenizer.chat_template")).encode()
    after = before.replace(b"You are a helpful", b"You are a hateful")
    assert before != after
    path.write_bytes(whole.replace(before, after))
    assert read_gguf_field(path, "tokenizer.chat_template") == after.decode()
    remake(folder)


def other_contract(folder: Path) -> None:
    """The template swapped in the GGUF and in the contract alike."""
    other_template(folder)
    text = (folder / "contract.json").read_text()
    assert "You are a helpful" in text
    (folder / "contract.json").write_text(text.replace("You are a helpful", "You are a hateful"))
    remake(folder)


def remake(folder: Path) -> None:
    whole = json.loads((folder / MANIFEST).read_text())
    whole["files"] = {
        name: {"sha256": sha256_file(folder / name), "size_bytes": (folder / name).stat().st_size}
        for name in whole["files"]
    }
    whole["digest"] = sha256_json({name: entry["sha256"] for name, entry in whole["files"].items()})
    (folder / MANIFEST).write_text(json.dumps(whole))


def refused(folder: Path, settings: ServeSettings) -> str:
    with (
        pytest.raises((Untrusted, ManifestMismatch)) as caught,
        running_server(folder, settings, "", folder.parent / "captured"),
    ):
        pass
    return str(caught.value)


def test_a_signed_artifact_answers(ours: Path, keys: Keys, tmp_path: Path) -> None:
    body = {"model": "ours", "messages": QUESTION}
    with running_server(ours, trusting(keys), "", tmp_path / "captured") as server:
        assert httpx.post(f"{server.base_url}/chat/completions", json=body, timeout=60).status_code == 200


@pytest.mark.parametrize("swap", [other_template, other_contract])
def test_a_swapped_template_that_the_manifest_agrees_with_is_refused(
    swap: Callable[[Path], None], ours: Path, keys: Keys, tmp_path: Path
) -> None:
    swap(ours)
    assert "does not hold" in refused(ours, trusting(keys))
    (ours / SIGNATURE).unlink()
    assert "not signed" in refused(ours, trusting(keys))
    sign_folder(ours, make_keys(tmp_path / "other").private)
    assert "trusted is" in refused(ours, trusting(keys))


def test_without_a_key_the_contract_still_tells_a_swapped_template(artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    other_template(copy)
    with pytest.raises(ParityMismatch, match="chat template"):
        start_engine(load_artifact(copy), slots=1, threads=1)


def test_no_id_tag_or_path_that_a_client_sends_touches_a_file(ours: Path, keys: Keys, tmp_path: Path) -> None:
    """2,000 feedback ids, 2,000 paths, and completions whose every free field is a hostile name."""
    outside, area = tmp_path / "outside", tmp_path / "area"
    for folder in (outside, area):
        folder.mkdir()
    (outside / "sentinel.txt").write_text("as it was")
    names = [each for each in hostile_names(2500, outside) if "\udcff" not in each]
    assert len(names) > 2000
    before = standing(tmp_path, area)
    with (
        running_server(ours, trusting(keys), "", area / "captured" / "m") as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        for name in names:
            found = http.post(
                "/v1/feedback", json={"id": name, "kind": "thumbs", "value": True, "name": "x", "by": name[:200]}
            )
            assert found.status_code in (404, 422), ascii(name)
            raw = "/v1/models/" + "".join(f"%{byte:02x}" for byte in name.encode())
            assert http.get(raw).status_code in (307, 404, 405), ascii(name)
        answered = 0
        for name in names[:60]:
            tags = {"conversation": name[:500], name[:60] or "k": name[:500]}
            body = {"model": name[:90], "messages": QUESTION, "max_tokens": 1, "user": name[:60], "metadata": tags}
            code = http.post("/v1/chat/completions", json=body).status_code
            assert code in (200, 400, 422)
            answered += code == 200
    assert answered > 40
    assert standing(tmp_path, area) == before
    assert {each.name.partition("-")[0] for each in (area / "captured" / "m").iterdir()} <= {"exchanges", "known"}
    assert os.listdir(outside) == ["sentinel.txt"]

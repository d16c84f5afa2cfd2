"""Promises of the bill of materials: valid, complete, the same every time, and plain about the licence of the base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from potstill.bill_of_materials import BILL, LICENCE, NOTICE, terms_of, write_bill
from potstill.manifest import Input, library_versions, read_manifest, sha256_file, write_manifest
from potstill.models import Base
from potstill.records import Json
from potstill.stage import Noun

FORMATS: Json = {"gguf-q8_0": {"file": "model-q8_0.gguf"}}


def base_with(folder: Path, licence: str | None, **files: str) -> Base:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    if licence is not None:
        (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n# A model\n")
    for name, text in files.items():
        (folder / name.replace("_", ".", 1) if "." not in name else folder / name).write_text(text)
    return Base("some/base", folder, "b" * 64)


def made(root: Path, base: Base) -> tuple[Path, Json, Json]:
    """The artifact's folder, its bill, and what the manifest gets."""
    upstream: dict[Noun, Path] = {"dataset": root / "dataset", "adapter": root / "adapter"}
    facts: dict[Noun, Json] = {
        "dataset": {"rows": {"train": 90, "validation": 10, "test": 20}},
        "adapter": {"rows": {"train": 90}},
    }
    for noun, folder in upstream.items():
        folder.mkdir(parents=True)
        (folder / "file").write_text(noun)
        inputs = [Input("traffic", "/home/ann/log.jsonl", "f" * 64)]
        write_manifest(folder, noun, settings_passed={}, settings_used={}, inputs=inputs, facts=facts[noun])
    out = root / "artifact"
    out.mkdir()
    (out / "model-q8_0.gguf").write_bytes(b"GGUF")
    (out / "contract.json").write_text("{}")
    short = write_bill(out, base, upstream, "banking", {"kind": "classification", "labels": ["a"]}, {"x": 1}, FORMATS)
    return out, json.loads((out / BILL).read_text()), short


def test_the_bill_is_valid_cyclonedx_and_names_all_that_the_artifact_is_made_of(tmp_path: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    base = base_with(tmp_path / "base", "apache-2.0")
    out, bill, short = made(tmp_path, base)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str((out / BILL).read_text()) is None
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    parts = {each["bom-ref"]: each for each in bill["components"]}
    for name in ("model-q8_0.gguf", "contract.json", NOTICE, LICENCE):
        assert parts[f"file:{name}"]["hashes"] == [{"alg": "SHA-256", "content": sha256_file(out / name)}]
    assert {f"file:{each.name}" for each in out.iterdir()} - {f"file:{BILL}"} <= set(parts)
    said = {ref: {each["name"]: each["value"] for each in part.get("properties", [])} for ref, part in parts.items()}
    assert said["base"]["potstill:digest"] == "b" * 64
    assert json.loads(said["dataset"]["potstill:rows"]) == {"train": 90, "validation": 10, "test": 20}
    for noun in ("dataset", "adapter"):
        assert said[noun]["potstill:digest"] == read_manifest(tmp_path / noun).digest
    assert {f"library:{name}": version for name, version in library_versions().items()} == {
        ref: part["version"] for ref, part in parts.items() if ref.startswith("library:")
    }
    model = bill["metadata"]["component"]
    assert (model["type"], model["name"]) == ("machine-learning-model", "banking")
    assert model["modelCard"]["modelParameters"]["datasets"] == [{"ref": "dataset"}]
    assert model["licenses"] == parts["base"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert {each["name"] for each in model["properties"]} >= {"potstill:settings_sha256", "potstill:commit"}
    depends = {each["ref"]: set(each.get("dependsOn", ())) for each in bill["dependencies"]}
    assert (depends["artifact"], depends["adapter"]) == ({"base", "adapter"}, {"base", "dataset"})
    assert short["components"] == len(parts)
    assert short["licence"] == "apache-2.0"


def test_the_same_artifact_has_the_same_bill_and_another_has_another(tmp_path: Path) -> None:
    base = base_with(tmp_path / "base", "mit")
    bills = [made(tmp_path / name, base)[0] / BILL for name in ("one", "two")]
    assert bills[0].read_bytes() == bills[1].read_bytes()
    other = made(tmp_path / "three", Base("some/base", base.path, "c" * 64))[1]
    assert other["serialNumber"] != json.loads(bills[0].read_text())["serialNumber"]


def test_no_path_of_this_machine_leaves_it(tmp_path: Path) -> None:
    base = base_with(tmp_path / "base", "mit")
    out, _, _ = made(tmp_path, Base(str(base.path), base.path, base.digest))
    for path in out.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
        assert b"/home/ann" not in path.read_bytes()


def test_apache_comes_with_its_text_and_a_licence_beside_the_base_goes_along(tmp_path: Path) -> None:
    out, _, short = made(tmp_path / "a", base_with(tmp_path / "one", "apache-2.0"))
    assert "Version 2.0, January 2004" in (out / LICENCE).read_text()
    assert short["written"] == [NOTICE, LICENCE]
    own = base_with(tmp_path / "two", "other")
    (own.path / "LICENSE.txt").write_text("You may look at it on Sundays.")
    (own.path / "NOTICE").write_text("Made by Ann.")
    out, _, _ = made(tmp_path / "b", own)
    assert (out / LICENCE).read_text() == "You may look at it on Sundays."
    assert "Made by Ann." in (out / NOTICE).read_text()


@pytest.mark.parametrize(
    ("licence", "title", "sentence"),
    [
        ("gemma", "Gemma Terms of Use", "Gemma is provided under and subject to the Gemma Terms of Use found at"),
        (
            "llama3.2",
            "Llama 3.2 Community License Agreement",
            "Llama 3.2 is licensed under the Llama 3.2 Community License",
        ),
        ("llama3", "Meta Llama 3 Community License Agreement", "Built with Meta Llama 3"),
        ("llama3.1", "Llama 3.1 Community License Agreement", "`Llama` at the beginning of its name"),
    ],
)
def test_terms_that_ask_for_a_notice_get_it(licence: str, title: str, sentence: str, tmp_path: Path) -> None:
    out, bill, short = made(tmp_path, base_with(tmp_path / "base", licence))
    assert short["terms"] == title
    assert sentence in (out / NOTICE).read_text()
    assert bill["metadata"]["component"]["licenses"][0]["license"]["name"] == title


def test_an_unknown_licence_is_said_on_the_screen_and_in_the_notice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, bill, short = made(tmp_path, base_with(tmp_path / "base", None))
    assert "read them before you ship" in capsys.readouterr().err
    assert "knows nothing of these terms" in (out / NOTICE).read_text()
    assert "licenses" not in bill["metadata"]["component"]
    assert short["terms"] is None
    assert not (out / LICENCE).exists()


@pytest.mark.parametrize(
    ("name", "title"), [("apache-2.0", "Apache-2.0"), ("MIT", "MIT"), ("bsd-3-clause", "BSD-3-Clause")]
)
def test_licences_of_the_spdx_list_go_by_their_id(name: str, title: str) -> None:
    found = terms_of(name)
    assert found is not None
    assert found.title == title


def test_names_that_no_list_knows_are_no_terms() -> None:
    assert terms_of("my own licence") is None

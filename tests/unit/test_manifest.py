"""Promises of the manifest: it exists only beside whole files, and a folder that changed since is refused by name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import ManifestMismatch
from potstill.manifest import (
    MANIFEST,
    Input,
    Manifest,
    read_manifest,
    sha256_file,
    stage_key,
    write_atomically,
    write_manifest,
)

FILES = {"rows.parquet": b"PAR1 some rows", "sealed/test.parquet": b"PAR1 held out", "card.md": b"# Card"}


def seal(folder: Path, files: dict[str, bytes] | None = None) -> Manifest:
    """A folder with files and its manifest."""
    for name, data in (FILES if files is None else files).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return write_manifest(
        folder,
        "dataset",
        settings_passed={"a": 1},
        settings_used={"a": 1, "b": 2},
        inputs=[Input("traffic", "/logs/log.jsonl", "ab" * 32)],
        facts={"rows": 3},
        key="0123456789",
        command="potstill distill recipe.yaml",
    )


def test_manifest_reads_back_as_written(tmp_path: Path) -> None:
    written = seal(tmp_path)
    read = read_manifest(tmp_path, "dataset")
    assert read == written
    assert set(read.files) == set(FILES)
    assert read.files["card.md"] == {"sha256": sha256_file(tmp_path / "card.md"), "size_bytes": 6}
    assert (read.settings_passed, read.settings_used, read.facts) == ({"a": 1}, {"a": 1, "b": 2}, {"rows": 3})
    assert read.input("traffic").path == "/logs/log.jsonl"
    with pytest.raises(ManifestMismatch, match=r"names no adapter; it names \['traffic'\]"):
        read.input("adapter")


@given(data=st.data())
def test_any_flipped_bit_is_refused_naming_the_file(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    seal(folder)
    name = data.draw(st.sampled_from(sorted(FILES)))
    at = data.draw(st.integers(0, len(FILES[name]) - 1))
    changed = bytearray(FILES[name])
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    (folder / name).write_bytes(changed)
    with pytest.raises(ManifestMismatch, match=f"{name}: sha256") as caught:
        read_manifest(folder, "dataset")
    assert not any(other in str(caught.value) for other in FILES if other != name)
    shutil.rmtree(folder)


def test_missing_changed_and_extra_files_are_all_named(tmp_path: Path) -> None:
    seal(tmp_path)
    (tmp_path / "card.md").unlink()
    (tmp_path / "sealed" / "test.parquet").write_bytes(b"longer than it was")
    (tmp_path / "sealed" / "stowaway.parquet").write_bytes(b"x")
    with pytest.raises(ManifestMismatch) as caught:
        read_manifest(tmp_path)
    for fault in (
        "card.md: missing",
        "sealed/test.parquet: 18 bytes, expected 13",
        "sealed/stowaway.parquet: not in the manifest",
    ):
        assert fault in str(caught.value)
    assert caught.value.exit_code == 4


def test_edited_file_list_is_refused(tmp_path: Path) -> None:
    seal(tmp_path)
    changed = b"# Another card"
    (tmp_path / "card.md").write_bytes(changed)
    data = json.loads((tmp_path / MANIFEST).read_text())
    data["files"]["card.md"] = {"sha256": sha256_file(tmp_path / "card.md"), "size_bytes": len(changed)}
    (tmp_path / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(ManifestMismatch, match=r"manifest\.json: its digest is not that of its file list"):
        read_manifest(tmp_path)


def test_listed_file_outside_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    seal(folder)
    (tmp_path / "outside").write_bytes(b"x")
    data = json.loads((folder / MANIFEST).read_text())
    data["files"]["../outside"] = {"sha256": sha256_file(tmp_path / "outside"), "size_bytes": 1}
    (folder / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(ManifestMismatch, match=r"\.\./outside: stands outside the folder"):
        read_manifest(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "dataset"}', '{"inputs": [{"role": "x"}]}', '{"inputs": 3}'])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    seal(tmp_path)
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ManifestMismatch, match="not a manifest"):
        read_manifest(tmp_path)


def test_folder_without_a_manifest_is_incomplete_and_one_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestMismatch, match="found nothing"):
        read_manifest(tmp_path / "none", "dataset")
    (tmp_path / "rows.parquet").write_bytes(b"x")
    with pytest.raises(ManifestMismatch, match="incomplete folder"):
        read_manifest(tmp_path, "dataset")
    seal(tmp_path)
    with pytest.raises(ManifestMismatch, match=r"holds a dataset, expected: adapter"):
        read_manifest(tmp_path, "adapter")


def test_unverified_reading_tells_a_damaged_folder_from_no_folder(tmp_path: Path) -> None:
    written = seal(tmp_path)
    (tmp_path / "card.md").unlink()
    assert read_manifest(tmp_path, verify=False) == written


@given(st.permutations(sorted(FILES)))
def test_digest_does_not_depend_on_the_order_in_which_files_were_made(
    tmp_path_factory: pytest.TempPathFactory, order: list[str]
) -> None:
    one, other = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("other")
    assert seal(one).digest == seal(other, {name: FILES[name] for name in order}).digest
    shutil.rmtree(one)
    shutil.rmtree(other)


def test_digest_is_of_content_and_names_and_not_of_place_or_settings(tmp_path: Path) -> None:
    first = seal(tmp_path / "a").digest
    assert seal(tmp_path / "b").digest == first
    assert seal(tmp_path / "c", FILES | {"card.md": b"# Other"}).digest != first
    assert seal(tmp_path / "d", {f"x{name}": data for name, data in FILES.items()}).digest != first


def test_partial_files_are_neither_listed_nor_held_against_a_folder(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet.partial").write_bytes(b"half")
    assert set(seal(tmp_path).files) == set(FILES)
    read_manifest(tmp_path)


def test_manifest_appears_last_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk gives out at the last moment no manifest exists, and the old one stays as it was."""
    seal(tmp_path)
    before = (tmp_path / MANIFEST).read_bytes()
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        assert json.loads(Path(source).read_text())["files"].keys() == FILES.keys() | {"late.txt"}
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        seal(tmp_path, FILES | {"late.txt": b"x"})
    assert (tmp_path / MANIFEST).read_bytes() == before
    monkeypatch.setattr(os, "replace", replace)
    seal(tmp_path, {})
    assert "late.txt" in read_manifest(tmp_path).files


def test_file_written_atomically_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"old")
    write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_stage_key_changes_with_settings_and_content_but_not_with_places() -> None:
    traffic = Input("traffic", "/a/log.jsonl", "11")
    key = stage_key("distill", {"a": 1}, [traffic])
    assert key == stage_key("distill", {"a": 1}, [Input("traffic", "/b/log.jsonl", "11")])
    assert len({
        key,
        stage_key("train", {"a": 1}, [traffic]),
        stage_key("distill", {"a": 2}, [traffic]),
        stage_key("distill", {"a": 1}, [Input("traffic", "/a/log.jsonl", "12")]),
        stage_key("distill", {"a": 1}, []),
    }) == 5  # fmt: skip

"""The manifest: written last, so that its existence means complete; read first, so that nothing stale is used.

A folder's manifest holds the sha256 of every file, the settings as passed and as used, the inputs it was made
from, the commit, and library versions. `digest` is the hash over file hashes: the folder's content address.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from potstill import __version__
from potstill.errors import ManifestMismatch, UnsafeName
from potstill.forgetting.tombstone import TOMBSTONE, struck_files
from potstill.records import Json, canonical_json
from potstill.safe_names import inside
from potstill.signature import SIGNATURE, signature_faults

MANIFEST = "manifest.json"
PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "bitsandbytes", "mlflow", "xllamacpp", "gguf")


@dataclass(frozen=True, slots=True)
class Input:
    """Something a folder was made from: a role (`dataset`, `traffic`, ...), where it stood, its digest."""

    role: str
    path: str
    digest: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a finished folder says of itself; `facts` are the stage's own figures."""

    kind: str
    digest: str
    files: Mapping[str, Json]
    settings_passed: Json
    settings_used: Json
    inputs: tuple[Input, ...]
    facts: Json
    key: str = ""
    created: str = ""
    potstill: str = __version__
    code: Json = field(default_factory=dict)
    versions: Json = field(default_factory=dict)
    command: str = ""

    def input(self, role: str) -> Input:
        """The input with this role; raises ManifestMismatch when there is none."""
        for each in self.inputs:
            if each.role == role:
                return each
        raise ManifestMismatch(f"{self.kind} manifest names no {role}; it names {[i.role for i in self.inputs]}")


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def stage_key(stage: str, settings: Json, inputs: Sequence[Input]) -> str:
    """Ten hex digits that change when the settings or any input's content do: the folder's name."""
    return sha256_json({"stage": stage, "settings": settings, "inputs": [[i.role, i.digest] for i in inputs]})[:10]


@lru_cache(maxsize=1)
def code_state() -> Json:
    """Commit and dirty flag of the checkout that the running code stands in (None outside one)."""
    here = Path(__file__).resolve().parent
    try:
        commit = _git(here, "rev-parse", "HEAD")
        dirty = bool(_git(here, "status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": dirty}


def _git(where: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(where), *words], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


@lru_cache(maxsize=1)
def library_versions() -> Json:
    found: Json = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_manifest(
    folder: Path,
    kind: str,
    *,
    settings_passed: Json,
    settings_used: Json,
    inputs: Sequence[Input],
    facts: Json,
    key: str = "",
    command: str = "",
) -> Manifest:
    """Hash every file under `folder` and write its manifest last, atomically (write, fsync, rename).

    A signature that lies there is of what the folder held before, and goes.
    """
    (folder / SIGNATURE).unlink(missing_ok=True)
    files: dict[str, Json] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name not in (MANIFEST, TOMBSTONE) and not name.endswith(".partial"):
            files[name] = {"sha256": sha256_file(path), "size_bytes": path.stat().st_size}
    manifest = Manifest(
        kind=kind,
        digest=sha256_json({name: entry["sha256"] for name, entry in files.items()}),
        files=files,
        settings_passed=settings_passed,
        settings_used=settings_used,
        inputs=tuple(inputs),
        facts=facts,
        key=key,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        code=code_state(),
        versions=library_versions(),
        command=command,
    )
    write_atomically(folder / MANIFEST, json.dumps(asdict(manifest), indent=1, ensure_ascii=False).encode())
    return manifest


def write_atomically(path: Path, data: bytes) -> None:
    """The file holds either its old bytes or all the new ones, whatever happens."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)


def read_manifest(folder: Path, kind: str | None = None, *, verify: bool = True) -> Manifest:
    """Read a folder's manifest; with `verify`, refuse a folder whose files disagree with it."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ManifestMismatch(
            f"{folder}: no {MANIFEST} (found {'an incomplete folder' if folder.is_dir() else 'nothing'}, expected a "
            f"finished {kind or 'stage'} folder); run the stage that makes it"
        )
    try:
        data = json.loads(path.read_text())
        canonical_json(data).encode()  # half a character pair in an escape is no text
        data["inputs"] = tuple(Input(**each) for each in data["inputs"])
        manifest = Manifest(**data)
        if not all(isinstance(each, dict) for each in (manifest.facts, manifest.files, *manifest.files.values())):
            raise TypeError("files and facts are no objects")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as fault:
        raise ManifestMismatch(f"{path}: not a manifest ({fault}); restore or remake the folder") from fault
    if kind is not None and manifest.kind != kind:
        raise ManifestMismatch(f"{folder}: holds a {manifest.kind}, expected: {kind}; give the right folder")
    if verify:
        verify_files(folder, manifest)
    return manifest


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Refuse a folder with a missing, changed, unlisted or linked file, or another folder's signature, naming each."""
    faults = []
    digests = {MANIFEST: sha256_file(folder / MANIFEST)}
    for name, entry in (dict(manifest.files) | dict(struck_files(folder, manifest.digest))).items():
        if entry is None:
            quoted = (folder / name).exists()
            fault = "is there, but was deleted because it quoted what was forgotten" if quoted else None
        else:
            fault = _file_fault(folder, name, entry)
            digests.setdefault(name, str(entry.get("sha256")))
        faults += [f"{ascii(name)[1:-1]}: {fault}"] if fault else []
    listed = set(manifest.files) | {MANIFEST, SIGNATURE, TOMBSTONE}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            faults += [f"{ascii(name)[1:-1]}: a symbolic link"] if name not in manifest.files else []
        elif not path.is_dir() and name not in listed and not name.endswith(".partial"):
            faults.append(f"{ascii(name)[1:-1]}: not in the manifest")
    if sha256_json({name: entry.get("sha256") for name, entry in manifest.files.items()}) != manifest.digest:
        faults.append(f"{MANIFEST}: its digest is not that of its file list")
    faults += signature_faults(folder, digests)
    if faults:
        raise ManifestMismatch(
            f"{folder}: files disagree with the manifest: " + "; ".join(faults) + "; restore the folder or remake it"
        )


def _file_fault(folder: Path, name: str, entry: Json) -> str | None:
    """What is wrong with one listed file; only a regular file inside the folder is ever read."""
    if name in (MANIFEST, SIGNATURE):
        return "cannot list itself or the signature over it"
    try:
        path = inside(folder, name)
    except UnsafeName as fault:
        return "stands outside the folder" if "outside" in str(fault) or ".." in name else f"no safe name ({fault})"
    if path.is_symlink():
        return "a symbolic link, expected the file itself"
    if not path.is_file():
        return "missing"
    if (size := path.stat().st_size) != entry.get("size_bytes"):
        return f"{size} bytes, expected {entry.get('size_bytes')}"
    if (found := sha256_file(path)) != entry.get("sha256"):
        return f"sha256 {found[:12]}…, expected {str(entry.get('sha256'))[:12]}…"
    return None

"""A small artifact folder, and every way of tampering with it that tests of signatures share."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from potstill.manifest import MANIFEST, read_manifest, sha256_file, sha256_json, write_manifest
from potstill.signature import SIGNATURE
from potstill.signing import Keys, make_keys, sign_folder

TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.role }}{% endfor %}"
FILES = {
    "model-q8_0.gguf": b"GGUF\x03\x00" + bytes(range(256)) * 20 + TEMPLATE.encode() + bytes(2000),
    "contract.json": json.dumps({"chat_template": TEMPLATE, "stop": ["<|im_end|>"]}).encode(),
    "verification.json": b'{"gguf-q8_0": {"share": 1.0}}',
    "bom.json": b'{"bomFormat": "CycloneDX"}',
}


def write_artifact(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    """An artifact folder with a true manifest, unsigned."""
    folder.mkdir(parents=True)
    for name, data in (FILES if files is None else files).items():
        (folder / name).write_bytes(data)
    facts = {"formats": {"gguf-q8_0": {"file": "model-q8_0.gguf"}}}
    write_manifest(folder, "artifact", settings_passed={}, settings_used={}, inputs=[], facts=facts, key="k")
    return folder


@dataclass(frozen=True)
class Signed:
    """A signed artifact, the keys that signed it, another's keys, and another artifact by the trusted key."""

    artifact: Path
    keys: Keys
    others: Keys
    another: Path

    def copy(self, to: Path) -> Path:
        shutil.copytree(self.artifact, to)
        return to


def signed(root: Path) -> Signed:
    keys, others = make_keys(root / "keys"), make_keys(root / "others")
    artifact = write_artifact(root / "artifact")
    another = write_artifact(root / "another", FILES | {"model-q8_0.gguf": b"GGUF another student"})
    sign_folder(artifact, keys.private)
    sign_folder(another, keys.private)
    return Signed(artifact, keys, others, another)


def remade_manifest(folder: Path) -> None:
    """The manifest made true again by somebody who can write the folder: hashes, sizes and digest."""
    whole = json.loads((folder / MANIFEST).read_text())
    whole["files"] = {
        path.name: {"sha256": sha256_file(path), "size_bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path.name not in (MANIFEST, SIGNATURE)
    }
    whole["digest"] = sha256_json({name: entry["sha256"] for name, entry in whole["files"].items()})
    (folder / MANIFEST).write_text(json.dumps(whole))


def with_template(folder: Path, name: str) -> None:
    """Another chat template of the same length in a file, so that nothing else about it changes."""
    data = (folder / name).read_bytes()
    assert b"<|im_start|>" in data
    (folder / name).write_bytes(data.replace(b"<|im_start|>", b"<|im_sabot|>"))


def _rewritten(name: str, then: Callable[[Path, Signed], None]) -> Callable[[Path, Signed], None]:
    def tamper(folder: Path, made: Signed) -> None:
        with_template(folder, name)
        remade_manifest(folder)
        read_without_signature(folder)
        then(folder, made)

    return tamper


def read_without_signature(folder: Path) -> None:
    """The tampering is done well: but for the signature nothing tells it."""
    kept = (folder / SIGNATURE).read_bytes()
    (folder / SIGNATURE).unlink()
    read_manifest(folder, "artifact")
    (folder / SIGNATURE).write_bytes(kept)


def _unsign(folder: Path, made: Signed) -> None:
    (folder / SIGNATURE).unlink()


def _sign_otherwise(folder: Path, made: Signed) -> None:
    (folder / SIGNATURE).unlink()
    sign_folder(folder, made.others.private)


def _other_signature(folder: Path, made: Signed) -> None:
    shutil.copy(made.another / SIGNATURE, folder / SIGNATURE)


def _other_manifest(folder: Path, made: Signed) -> None:
    shutil.copy(made.another / MANIFEST, folder / MANIFEST)


def _facts(folder: Path, made: Signed) -> None:
    """The manifest's digest is over the files alone: what it says of them is only the signature's to keep."""
    whole = json.loads((folder / MANIFEST).read_text())
    whole["facts"]["formats"]["gguf-q8_0"]["file"] = "contract.json"
    (folder / MANIFEST).write_text(json.dumps(whole))


def _moved_out(link: Callable[[Path, Path], None], name: str) -> Callable[[Path, Signed], None]:
    def tamper(folder: Path, made: Signed) -> None:
        outside = folder.parent / f"{folder.name}-outside-{name}"
        shutil.move(folder / name, outside)
        link(outside, folder / name)

    return tamper


def _soft(source: Path, link: Path) -> None:
    link.symlink_to(source)


def _linked_folder(folder: Path, made: Signed) -> None:
    (folder / "extra").symlink_to(made.another)


def _renamed(folder: Path, made: Signed) -> None:
    (folder / "model-q8_0.gguf").rename(folder / "model-q6_k.gguf")


def _renamed_well(folder: Path, made: Signed) -> None:
    _renamed(folder, made)
    remade_manifest(folder)


def _nothing(folder: Path, made: Signed) -> None:
    pass


def _written(name: str, data: bytes) -> Callable[[Path, Signed], None]:
    def tamper(folder: Path, made: Signed) -> None:
        (folder / name).write_bytes(data)

    return tamper


def _pipe(folder: Path, made: Signed) -> None:
    (folder / "contract.json").unlink()
    os.mkfifo(folder / "contract.json")


TAMPERINGS: dict[str, Callable[[Path, Signed], None]] = {
    "unsigned": _unsign,
    "signed by another key": _sign_otherwise,
    "signature of another artifact": _other_signature,
    "signature that is no signature": _written(SIGNATURE, b"{}"),
    "signature emptied": _written(SIGNATURE, b""),
    "manifest of another artifact": _other_manifest,
    "manifest says other facts": _facts,
    "manifest gone": lambda folder, made: (folder / MANIFEST).unlink(),
    "template in the GGUF": lambda folder, made: with_template(folder, "model-q8_0.gguf"),
    "template in the contract": lambda folder, made: with_template(folder, "contract.json"),
    "template in the GGUF, manifest remade, old signature": _rewritten("model-q8_0.gguf", _nothing),
    "template in the GGUF, manifest remade, unsigned": _rewritten("model-q8_0.gguf", _unsign),
    "template in the GGUF, manifest remade, other key": _rewritten("model-q8_0.gguf", _sign_otherwise),
    "template in the GGUF, manifest remade, another's signature": _rewritten("model-q8_0.gguf", _other_signature),
    "template in the contract, manifest remade, unsigned": _rewritten("contract.json", _unsign),
    "template in the contract, manifest remade, other key": _rewritten("contract.json", _sign_otherwise),
    "file renamed": _renamed,
    "file renamed, manifest remade": _renamed_well,
    "file missing": lambda folder, made: (folder / "verification.json").unlink(),
    "extra file": _written("extra.bin", b"x"),
    "extra hidden file": _written(".gitattributes", b"x"),
    "extra partial file": _written("x.partial", b"x"),
    "file is a symbolic link out": _moved_out(_soft, "model-q8_0.gguf"),
    "file is a hard link out": _moved_out(os.link, "model-q8_0.gguf"),
    "manifest is a symbolic link out": _moved_out(_soft, MANIFEST),
    "signature is a symbolic link out": _moved_out(_soft, SIGNATURE),
    "folder linked in": _linked_folder,
    "file is a pipe": _pipe,
}

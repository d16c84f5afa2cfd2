"""The signature file of a finished folder: what it says, read without any key and without any library.

`model.sig` lies in the folder that it signs, is written after the manifest, and is the one file that neither lists.
It is a Sigstore bundle with a DSSE envelope around an in-toto statement, as OpenSSF model-signing writes it: the sha256
of every file, `manifest.json` included. Whether the signature itself holds is `potstill.signing`'s to say, with a key;
here it is held against the folder, so that another folder's signature is refused even where no key is trusted.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import Untrusted

SIGNATURE = "model.sig"
PREDICATE = "https://model_signing/signature/v1.0"
MOST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Signature:
    """What a signature claims: `key`, the sha256 of the signer's public key (PEM), and the sha256 of each file."""

    key: str
    files: Mapping[str, str]


def is_signed(folder: Path) -> bool:
    return os.path.lexists(folder / SIGNATURE)


def read_signature(folder: Path) -> Signature | None:
    """The folder's signature, not verified; None when there is none, Untrusted when it is no such file."""
    path = folder / SIGNATURE
    if not is_signed(folder):
        return None
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MOST_BYTES:
        raise Untrusted(f"{path}: expected a file of at most {MOST_BYTES} bytes, and no link; sign the folder again")
    try:
        return _parsed(json.loads(path.read_bytes()))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as fault:
        raise Untrusted(
            f"{path}: not a signature by model-signing ({type(fault).__name__}: {str(fault)[:200]}); "
            "sign the folder again"
        ) from fault


def _parsed(bundle: Any) -> Signature:
    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"], validate=True))
    if payload["predicateType"] != PREDICATE:
        raise ValueError(f"found {str(payload['predicateType'])[:80]!r}, expected {PREDICATE}")
    way = payload["predicate"]["serialization"]
    if (way["method"], way["hash_type"], way["allow_symlinks"]) != ("files", "sha256", False):
        raise ValueError("found another way of hashing, expected sha256 of whole files and no links")
    resources = payload["predicate"]["resources"]
    files = {str(each["name"]): str(each["digest"]) for each in resources}
    if len(files) != len(resources) or any(each["algorithm"] != "sha256" for each in resources):
        raise ValueError("a file is named twice, or hashed otherwise than by sha256")
    hint = bundle["verificationMaterial"]["publicKey"]["hint"]
    if not isinstance(hint, str) or not hint:
        raise ValueError("found no key named, expected the sha256 of the signer's")
    return Signature(hint, files)


def signature_faults(folder: Path, digests: Mapping[str, str]) -> list[str]:
    """How the folder's signature differs from its files (sha256 by name, the manifest's too); empty when unsigned."""
    try:
        found = read_signature(folder)
    except Untrusted as fault:
        return [str(fault)]
    if found is None:
        return []
    differing = sorted(
        name for name in found.files.keys() | digests.keys() if found.files.get(name) != digests.get(name)
    )
    return [f"{SIGNATURE}: signs another {name}" for name in differing]

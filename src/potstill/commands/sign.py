"""`potstill keygen`, `potstill sign` and `potstill verify`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from potstill.errors import Untrusted
from potstill.records import Json
from potstill.signing import SHOWN_DIGITS, fingerprint_of, make_keys, passphrase_of, sign_folder, verify_folder


def keygen(arguments: argparse.Namespace) -> int:
    """A new signing key."""
    keys = make_keys(Path(arguments.out), arguments.name, passphrase_of(arguments.passphrase_env))
    found: Json = {"private": str(keys.private), "public": str(keys.public), "fingerprint": keys.fingerprint}
    text = (
        f"private key  {keys.private} (mode 0600{', with passphrase' if arguments.passphrase_env else ''}): keep it "
        f"from whoever may not sign\npublic key   {keys.public}: give it to whoever verifies\n"
        f"fingerprint  {keys.fingerprint}"
    )
    return _told(arguments, found, text)


def sign(arguments: argparse.Namespace) -> int:
    """Sign a finished folder, or sign it anew with another key."""
    folder = Path(arguments.folder)
    fingerprint = sign_folder(folder, Path(arguments.key), passphrase_of(arguments.passphrase_env))
    return _told(arguments, {"path": str(folder), "signed_by": fingerprint}, f"{folder}: signed by key {fingerprint}")


def verify(arguments: argparse.Namespace) -> int:
    """Whether a folder or a registered version is intact, and who signed it; 4 where anything is wrong."""
    folder = _folder(arguments)
    key = Path(arguments.key) if arguments.key else None
    manifest, signer = verify_folder(folder, key)
    if key is not None and signer != fingerprint_of(key):  # replaced between two looks
        raise Untrusted(f"{folder}: changed while it was verified; verify it again")
    state = "none" if signer is None else "unchecked" if key is None else "trusted"
    said = {
        "none": "not signed",
        "unchecked": f"signed by key {(signer or '')[:SHOWN_DIGITS]}, not checked: no --key was given",
        "trusted": f"signed by the trusted key {(signer or '')[:SHOWN_DIGITS]}",
    }[state]
    found: Json = {
        "path": str(folder), "kind": manifest.kind, "digest": manifest.digest, "files": len(manifest.files),
        "signature": state, "signed_by": signer,
    }  # fmt: skip
    text = f"{folder}: {manifest.kind} {manifest.digest[:12]}, {len(manifest.files)} files intact; {said}"
    return _told(arguments, found, text)


def _folder(arguments: argparse.Namespace) -> Path:
    if not arguments.thing.startswith("models:/"):
        return Path(arguments.thing)
    from potstill.tracking import default_uri, open_tracking
    from potstill.tracking_versions import resolve_model_uri

    tracking = open_tracking(arguments.tracking_uri or default_uri(Path("work").resolve()))
    return resolve_model_uri(tracking, arguments.thing).artifact


def _told(arguments: argparse.Namespace, found: Json, text: str) -> int:
    print(json.dumps(found) if arguments.json else text)
    return 0

"""Whose signature a registered model asks for: kept with the model in MLflow, held against every version's files.

`register.trust` leaves the public key as a tag of the registered model. From then on a version is promoted, rolled back
to, served or copied only when that key signed the artifact that lies in the registry. The tag is as safe as the
registry; a server that must not rely on it names the key itself (`serve.trust`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.errors import DamagedInput
from potstill.signing import TrustSettings, check_signature, signed_by
from potstill.tracking import Tracking, client

if TYPE_CHECKING:
    from potstill.tracking_versions import Version

TRUST = "potstill.trust"  # of the registered model: the public key in PEM


def remember_trust(tracking: Tracking, version: Version, trust: TrustSettings | None) -> None:
    """Ask for this key's signature over every version of the model from now on; without a key nothing changes."""
    if trust is not None and trust.require:
        pem = Path(trust.public_key).read_text(encoding="ascii")
        client(tracking).set_registered_model_tag(version.model, TRUST, pem)


def trusted_key(tracking: Tracking, model: str) -> str | None:
    """The public key (PEM) that the registered model asks for, or None."""
    found = client(tracking).get_registered_model(model).tags.get(TRUST)
    return str(found) if found else None


def check_trust(tracking: Tracking, version: Version, artifact: Path) -> str | None:
    """The fingerprint that signed the artifact where the model asks for one; raises Untrusted for another or none."""
    pem = trusted_key(tracking, version.model)
    if pem is None:
        return signed_by(artifact)
    with tempfile.TemporaryDirectory() as scratch:
        key = Path(scratch) / "registered.pub"
        key.write_text(pem, encoding="ascii")
        return check_signature(artifact, key)


def distrust(tracking: Tracking, version: Version, artifact: Path) -> list[str]:
    """Why the artifact's signature keeps a version from promotion; empty when it does not."""
    try:
        check_trust(tracking, version, artifact)
    except DamagedInput as fault:
        return [f"its signature is refused: {fault}"]
    return []

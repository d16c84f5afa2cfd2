"""Signatures over finished folders: OpenSSF model-signing with a local key, and never a network call.

    keys = make_keys(Path("keys"))                        keys/potstill.key (mode 0600) and keys/potstill.pub
    sign_folder(folder, keys.private)                     writes model.sig beside the manifest
    check_signature(folder, keys.public)                  raises Untrusted unless that key signed exactly these files

A manifest says that a folder is whole; who can write the folder can write the manifest as well. A signature says who
made it. Keys are ECDSA P-256 in PEM; whoever has the community's own tool can verify too:
`model_signing verify key FOLDER --signature FOLDER/model.sig --public_key potstill.pub --ignore-paths FOLDER/model.sig`
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from pydantic import Field

from potstill.errors import DamagedInput, RecipeError, Untrusted
from potstill.manifest import Manifest, read_manifest, sha256_file
from potstill.progress import say
from potstill.recipe import PathText, Section
from potstill.safe_names import safe_name
from potstill.signature import SIGNATURE, is_signed, read_signature

SHOWN_DIGITS = 16
CURVES = ("secp256r1", "secp384r1", "secp521r1")


class SignSettings(Section):
    """The key that a finished folder is signed with."""

    key: Annotated[PathText, Field(description="private key (PEM), as `potstill keygen` makes it")]
    passphrase_env: Annotated[
        str | None, Field(pattern=r"^[A-Z_][A-Z0-9_]*$", description="NAME of the variable that holds its passphrase")
    ] = None


class TrustSettings(Section):
    """The key whose signature is trusted."""

    public_key: Annotated[PathText, Field(description="public key (PEM)")]
    require: Annotated[bool, Field(description="refuse what is not signed; a wrong signature always is")] = True


@dataclass(frozen=True, slots=True)
class Keys:
    """The two files of a key, and its fingerprint: the sha256 of the public key's PEM, as signatures name it."""

    private: Path
    public: Path
    fingerprint: str


def make_keys(folder: Path, name: str = "potstill", passphrase: str | None = None) -> Keys:
    """A new key as `NAME.key` (readable by this user alone) and `NAME.pub`; raises RecipeError where one is there."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    safe_name(name, "keygen --name")
    folder.mkdir(parents=True, exist_ok=True)
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    for path in (private, public):
        if os.path.lexists(path):
            raise RecipeError([f"{path}: is there already, and a key is never overwritten; give another --out or name"])
    key = ec.generate_private_key(ec.SECP256R1())
    locked: Any = form.BestAvailableEncryption(passphrase.encode()) if passphrase else form.NoEncryption()
    pem = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, locked)
    handle = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as stream:
        stream.write(pem)
    public.write_bytes(_pem(key.public_key()))
    return Keys(private, public, _fingerprint(key.public_key()))


def passphrase_of(variable: str | None) -> str | None:
    """The passphrase in the environment variable of this name; None for no name. Raises RecipeError when unset."""
    if variable is None:
        return None
    found = os.environ.get(variable)
    if not found:
        raise RecipeError([f"{variable}: unset or empty, expected the signing key's passphrase; export it"])
    return found


def sign_folder(folder: Path, private_key: Path, passphrase: str | None = None) -> str:
    """Sign a finished folder (verified first) and return the key's fingerprint; an older signature is replaced.

    Raises ManifestMismatch for a folder that disagrees with its manifest, RecipeError for a key that cannot be used.
    """
    read_manifest(folder)
    key = _private(private_key, passphrase)
    partial = folder / f"{SIGNATURE}.partial"
    for left in sorted(folder.rglob("*.partial")):
        if left != partial:
            raise DamagedInput(f"{left}: left by a stopped write, and would be signed too; remove it")
    partial.unlink(missing_ok=True)
    secret: Any = passphrase.encode() if passphrase else None  # annotated as text, but handed to what wants bytes
    signer = library().signing.Config().use_elliptic_key_signer(private_key=private_key, password=secret)
    signer.set_hashing_config(_hashing()).sign(folder, partial)
    os.replace(partial, folder / SIGNATURE)
    read_manifest(folder)
    return _fingerprint(key.public_key())


def check_signature(folder: Path, public_key: Path) -> str:
    """The fingerprint of the key when it signed exactly these files; raises Untrusted with what is wrong.

    A file with a second name is refused as well: whoever holds that name can change it after it was verified.
    """
    return _check(folder, _fingerprint(_public(public_key)), public_key)


def _check(folder: Path, trusted: str, public_key: Path) -> str:
    found = read_signature(folder)
    if found is None:
        raise Untrusted(
            f"{folder}: not signed, expected a signature by key {trusted[:SHOWN_DIGITS]}; sign it with "
            f"`potstill sign {folder} --key ...` if you made it, and do not use it if you did not"
        )
    if found.key != trusted:
        raise Untrusted(
            f"{folder}: signed by key {ascii(found.key)[1 : SHOWN_DIGITS + 1]}, trusted is {trusted[:SHOWN_DIGITS]} "
            f"({public_key}); trust that key if you know whose it is, and do not use the folder if you do not"
        )
    linked = [path.name for path in sorted(folder.rglob("*")) if path.is_file() and path.lstat().st_nlink > 1]
    if linked:
        raise Untrusted(
            f"{folder}: {', '.join(map(ascii, linked[:5]))}: has another name elsewhere (a hard link), by which it "
            "could be changed after this check; copy the folder"
        )
    verifier = library().verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    try:
        verifier.set_hashing_config(_hashing()).verify(folder, folder / SIGNATURE)
    except Exception as fault:  # ValueError, InvalidSignature, KeyError: whatever the bytes lead the library to
        said = "; ".join(_changes(folder, found.files)) or f"the signature itself is damaged ({type(fault).__name__})"
        raise Untrusted(
            f"{folder}: its signature does not hold: {said[:500]}; fetch the folder again or make it anew"
        ) from fault
    return trusted


def _changes(folder: Path, signed: Mapping[str, str]) -> list[str]:
    """What differs from what a signature lists, file by file; no link is followed."""
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not _plain_folder(path)}
    there.pop(SIGNATURE, None)
    found = [f"{ascii(name)[1:-1]} is missing" for name in sorted(signed.keys() - there.keys())]
    for name, path in sorted(there.items()):
        shown = ascii(name)[1:-1]
        if path.is_symlink() or not path.is_file():
            found.append(f"{shown} is no file of the folder's own")
        elif name not in signed:
            found.append(f"{shown} was added")
        elif sha256_file(path) != signed[name]:
            found.append(f"{shown} was changed")
    return found


def _plain_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def refuse_untrusted(folder: Path, trust: TrustSettings | None) -> str:
    """What may be said of the folder's signature, in words; raises Untrusted where the trusted key did not sign it."""
    if trust is not None and (trust.require or is_signed(folder)):
        return f"signed by the trusted key {check_signature(folder, Path(trust.public_key))[:SHOWN_DIGITS]}"
    found = read_signature(folder)
    return (
        "not signed" if found is None else f"signed by key {found.key[:SHOWN_DIGITS]}, which nothing was held against"
    )


def signed_by(folder: Path) -> str | None:
    """The fingerprint that the folder's signature names, not verified; None for an unsigned folder."""
    found = read_signature(folder)
    return None if found is None else found.key


# A stage whose settings hold `sign` has its folder signed once the manifest is written.


def asked_to_sign(settings: object) -> SignSettings | None:
    found = getattr(settings, "sign", None)
    return found if isinstance(found, SignSettings) else None


def lacks_signature(settings: object, folder: Path) -> bool:
    """Whether a finished folder has not the signature that its stage's settings ask for.

    Such a folder is made again rather than signed: what it holds now may not be what the stage wrote.
    """
    return asked_to_sign(settings) is not None and not is_signed(folder)


def seal(settings: object, folder: Path) -> None:
    """Sign a folder that was just made, where the settings ask for it."""
    sign = asked_to_sign(settings)
    if sign is not None:
        fingerprint = sign_folder(folder, Path(sign.key), passphrase_of(sign.passphrase_env))
        say(f"{folder.name}: signed by key {fingerprint[:SHOWN_DIGITS]}")


def check_seal(settings: object, folder: Path) -> None:
    """Raise Untrusted for a folder made before that is signed otherwise than the settings ask for."""
    sign = asked_to_sign(settings)
    if sign is None:
        return
    import tempfile

    key = _private(Path(sign.key), passphrase_of(sign.passphrase_env)).public_key()
    with tempfile.TemporaryDirectory() as scratch:
        public = Path(scratch) / "key.pub"
        public.write_bytes(_pem(key))
        _check(folder, _fingerprint(key), public)


def verify_folder(folder: Path, public_key: Path | None) -> tuple[Manifest, str | None]:
    """The manifest of an intact folder and who signed it; with a key, raises Untrusted unless that key did."""
    if public_key is not None:
        check_signature(folder, public_key)
    return read_manifest(folder), signed_by(folder)


def fingerprint_of(public_key: Path) -> str:
    """The sha256 of a public key as signatures name it; raises RecipeError when the file holds none."""
    return _fingerprint(_public(public_key))


def library() -> Any:
    """The `model_signing` package. Its import costs half a second.

    Version 1.1.1 imports pyOpenSSL for signatures by certificate, without asking for it to be installed. None is made
    or read here, so that where it is missing an empty module stands in for it during that import, and no longer.
    """
    if "model_signing" in sys.modules or importlib.util.find_spec("OpenSSL") is not None:
        import model_signing

        return model_signing
    stand_in: Any = ModuleType("OpenSSL")
    stand_in.crypto = ModuleType("OpenSSL.crypto")
    sys.modules["OpenSSL"] = stand_in
    try:
        import model_signing
    finally:
        del sys.modules["OpenSSL"]
    return model_signing


def _hashing() -> Any:
    return library().hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _private(path: Path, passphrase: str | None) -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), passphrase.encode() if passphrase else None)
    except (OSError, ValueError, TypeError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else str(fault).splitlines()[0][:160]
        raise RecipeError(
            [f"{path}: cannot sign with it ({reason}); give a key by `potstill keygen`, and its passphrase's variable"]
        ) from fault
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        raise RecipeError([f"{path}: found {type(key).__name__}, expected an ECDSA key (P-256); see `potstill keygen`"])
    if path.stat().st_mode & 0o077:
        say(f"{path}: others on this machine can read this private key (mode {path.stat().st_mode & 0o777:04o}); "
            "chmod 600 it")  # fmt: skip
    return key


def _public(path: Path) -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else "no public key in PEM"
        raise RecipeError([f"{path}: cannot verify with it ({reason}); give the .pub file of the signer"]) from fault
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise RecipeError([f"{path}: found {type(key).__name__}, expected an ECDSA key (P-256)"])
    return key


def _pem(public: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    found: bytes = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return found


def _fingerprint(public: Any) -> str:
    return hashlib.sha256(_pem(public)).hexdigest()

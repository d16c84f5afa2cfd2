"""Promises of signatures: what the trusted key did not sign, exactly as it stands, is refused by whoever reads it."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill import cli, signing
from potstill.errors import DamagedInput, ManifestMismatch, RecipeError, Untrusted
from potstill.manifest import MANIFEST, read_manifest, write_manifest
from potstill.serving.start import load_artifact
from potstill.signature import SIGNATURE, read_signature
from potstill.signing import TrustSettings, check_signature, make_keys, sign_folder

from .signed_folders import FILES, TAMPERINGS, Signed, signed, write_artifact

CONTRACT = {
    "task": {"kind": "generation"}, "chat_template": "t", "stop": [], "prompt_rule": {"drops": [], "strips": []},
    "max_tokens": 8, "window": 64, "golden": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    return signed(tmp_path_factory.mktemp("signed"))


def trust_in(made: Signed, **more: Any) -> TrustSettings:
    return TrustSettings(public_key=str(made.keys.public), **more)


def by_command(folder: Path, made: Signed) -> None:
    """`potstill verify`, which answers with its exit code alone."""
    code = cli.main(["verify", str(folder), "--key", str(made.keys.public)])
    if code:
        assert code == 4
        raise Untrusted("exit code 4")


CONSUMERS: dict[str, Callable[[Path, Signed], Any]] = {
    "verify": by_command,
    "serve": lambda folder, made: load_artifact(folder, None, trust_in(made)),
    "library": lambda folder, made: signing.verify_folder(folder, made.keys.public),
}


# Keys


def test_a_private_key_is_its_owners_alone_and_never_overwritten(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        keys = make_keys(tmp_path / "keys")
    finally:
        os.umask(before)
    assert stat.S_IMODE(keys.private.stat().st_mode) == 0o600
    assert b"PRIVATE" not in keys.public.read_bytes()
    held = keys.private.read_bytes()
    with pytest.raises(RecipeError, match="never overwritten"):
        make_keys(tmp_path / "keys")
    assert keys.private.read_bytes() == held
    assert make_keys(tmp_path / "keys", "second").fingerprint != keys.fingerprint


def test_a_key_with_a_passphrase_signs_with_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact, keys = write_artifact(tmp_path / "artifact"), make_keys(tmp_path, "locked", "correct horse")
    assert b"ENCRYPTED" in keys.private.read_bytes()
    for wrong in (None, "battery staple"):
        with pytest.raises(RecipeError, match="passphrase's variable"):
            sign_folder(artifact, keys.private, wrong)
    assert not (artifact / SIGNATURE).exists()
    monkeypatch.delenv("KEY_WORDS", raising=False)
    words = ["sign", str(artifact), "--key", str(keys.private), "--passphrase-env", "KEY_WORDS"]
    assert cli.main(words) == 2
    monkeypatch.setenv("KEY_WORDS", "correct horse")
    assert cli.main(words) == 0
    assert check_signature(artifact, keys.public) == keys.fingerprint


def test_keys_that_are_none_are_refused_with_what_was_found(tmp_path: Path, made: Signed) -> None:
    (tmp_path / "text").write_text("no key")
    for path in (tmp_path / "text", tmp_path / "missing", made.keys.public):
        with pytest.raises(RecipeError, match="cannot sign with it"):
            sign_folder(made.copy(tmp_path / f"copy-{path.name}"), path)
    for path in (tmp_path / "text", tmp_path / "missing", made.keys.private):
        with pytest.raises(RecipeError, match="cannot verify with it"):
            check_signature(made.artifact, path)


def test_another_kind_of_key_is_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    for at, key in enumerate((ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256K1()))):
        path = tmp_path / f"{at}.key"
        path.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
        with pytest.raises(RecipeError, match="expected an ECDSA key"):
            sign_folder(write_artifact(tmp_path / f"artifact{at}"), path)


# Signing


def test_a_signature_covers_every_file_and_the_manifest_and_changes_neither(tmp_path: Path) -> None:
    artifact, keys = write_artifact(tmp_path / "artifact"), make_keys(tmp_path / "keys")
    before = read_manifest(artifact)
    assert sign_folder(artifact, keys.private) == keys.fingerprint == check_signature(artifact, keys.public)
    assert read_manifest(artifact) == before
    found = read_signature(artifact)
    assert found is not None
    assert set(found.files) == {*FILES, MANIFEST}
    assert found.key == keys.fingerprint
    assert sorted(each.name for each in artifact.iterdir()) == sorted([*FILES, MANIFEST, SIGNATURE])


def test_signing_and_verifying_ask_no_network(tmp_path: Path) -> None:
    """In a process of its own in which any connection or name look-up ends in an error."""
    write_artifact(tmp_path / "artifact")
    code = (
        "import socket, sys\n"
        "def no(*words, **more): raise SystemExit('asked the network')\n"
        "socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = no\n"
        "from pathlib import Path\n"
        "from potstill.signing import make_keys, sign_folder, check_signature\n"
        "folder = Path(sys.argv[1])\n"
        "keys = make_keys(folder / 'keys')\n"
        "sign_folder(folder / 'artifact', keys.private)\n"
        "print(check_signature(folder / 'artifact', keys.public) == keys.fingerprint)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
    assert socket.socket.connect.__name__ == "connect"


def test_the_communitys_own_tool_accepts_our_signature(made: Signed) -> None:
    words = ["verify", "key", str(made.artifact), "--signature", str(made.artifact / SIGNATURE)]
    words += ["--public_key", str(made.keys.public), "--ignore-paths", str(made.artifact / SIGNATURE)]
    code = "import sys; from potstill.signing import library; library()\n"
    code += "from model_signing._cli import main; main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_folder_written_anew_loses_the_old_signature(tmp_path: Path, made: Signed) -> None:
    copy = made.copy(tmp_path / "copy")
    write_manifest(copy, "artifact", settings_passed={}, settings_used={}, inputs=[], facts={})
    assert not (copy / SIGNATURE).exists()
    assert read_manifest(copy).files.keys() == FILES.keys()


def test_a_damaged_folder_is_not_signed(tmp_path: Path, made: Signed) -> None:
    folder = write_artifact(tmp_path / "artifact")
    (folder / "extra").write_text("x")
    with pytest.raises(ManifestMismatch):
        sign_folder(folder, made.keys.private)
    (folder / "extra").rename(folder / "extra.partial")
    with pytest.raises(DamagedInput, match="left by a stopped write"):
        sign_folder(folder, made.keys.private)
    assert not (folder / SIGNATURE).exists()


# Tampering


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_the_artifact_as_it_was_signed_is_taken(consumer: str, tmp_path: Path) -> None:
    keys = make_keys(tmp_path)
    artifact = write_artifact(tmp_path / "artifact", FILES | {"contract.json": json.dumps(CONTRACT).encode()})
    sign_folder(artifact, keys.private)
    CONSUMERS[consumer](artifact, Signed(artifact, keys, keys, artifact))


@pytest.mark.parametrize("how", TAMPERINGS)
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_every_tampering_is_refused(consumer: str, how: str, tmp_path: Path, made: Signed) -> None:
    copy = made.copy(tmp_path / "copy")
    CONSUMERS["library"](copy, made)
    TAMPERINGS[how](copy, made)
    with pytest.raises((Untrusted, ManifestMismatch)) as caught:
        CONSUMERS[consumer](copy, made)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("name", [*FILES, MANIFEST, SIGNATURE])
@given(data=st.data())
@settings(max_examples=40)
def test_a_byte_changed_anywhere_in_any_file_is_refused(
    name: str, tmp_path_factory: pytest.TempPathFactory, made: Signed, data: st.DataObject
) -> None:
    copy = made.copy(tmp_path_factory.mktemp("flipped") / "copy")
    changed = bytearray((copy / name).read_bytes())
    at, bit = data.draw(st.integers(0, len(changed) - 1)), data.draw(st.integers(0, 7))
    changed[at] ^= 1 << bit
    (copy / name).write_bytes(changed)
    with pytest.raises((Untrusted, ManifestMismatch)):
        CONSUMERS["library"](copy, made)
    with pytest.raises((Untrusted, ManifestMismatch)):
        CONSUMERS["serve"](copy, made)
    shutil.rmtree(copy.parent)


def test_bytes_added_or_cut_off_in_any_file_are_refused(tmp_path: Path, made: Signed) -> None:
    chance = random.Random(0)
    for name in (*FILES, MANIFEST, SIGNATURE):
        whole = (made.artifact / name).read_bytes()
        for at, data in enumerate((whole[: chance.randrange(len(whole))], whole + b" {}", b"")):
            copy = made.copy(tmp_path / f"{name}{at}")
            (copy / name).write_bytes(data)
            with pytest.raises((Untrusted, ManifestMismatch)):
                CONSUMERS["library"](copy, made)


def test_refusals_say_what_was_found_and_what_was_expected(tmp_path: Path, made: Signed) -> None:
    bare = write_artifact(tmp_path / "bare")
    with pytest.raises(Untrusted, match=f"not signed, expected a signature by key {made.keys.fingerprint[:16]}"):
        check_signature(bare, made.keys.public)
    sign_folder(bare, made.others.private)
    with pytest.raises(Untrusted, match=f"signed by key {made.others.fingerprint[:16]}, trusted is"):
        check_signature(bare, made.keys.public)
    assert check_signature(bare, made.others.public) == made.others.fingerprint
    copy = made.copy(tmp_path / "copy")
    (copy / "contract.json").write_text("{}")
    (copy / "bom.json").unlink()
    (copy / "extra").write_text("x")
    said = "does not hold: bom.json is missing; contract.json was changed; extra was added; fetch"
    with pytest.raises(Untrusted, match=said):
        check_signature(copy, made.keys.public)
    copy = made.copy(tmp_path / "damaged")
    bundle = json.loads((copy / SIGNATURE).read_text())
    at = bundle["dsseEnvelope"]["signatures"][0]
    at["sig"] = at["sig"][:20] + ("A" if at["sig"][20] != "A" else "B") + at["sig"][21:]
    (copy / SIGNATURE).write_text(json.dumps(bundle))
    with pytest.raises(Untrusted, match="the signature itself is damaged"):
        check_signature(copy, made.keys.public)


def test_another_folders_signature_is_refused_even_where_no_key_is_trusted(tmp_path: Path, made: Signed) -> None:
    copy = made.copy(tmp_path / "copy")
    shutil.copy(made.another / SIGNATURE, copy / SIGNATURE)
    with pytest.raises(ManifestMismatch, match=r"model\.sig: signs another manifest\.json"):
        read_manifest(copy)
    with pytest.raises(ManifestMismatch, match=r"model\.sig: signs another"):
        load_artifact(copy)


# Without configuration, and by configuration


def test_without_a_trusted_key_an_unsigned_artifact_is_served_as_before(tmp_path: Path) -> None:
    files = FILES | {"contract.json": json.dumps(CONTRACT).encode()}
    artifact = write_artifact(tmp_path / "artifact", files)
    assert load_artifact(artifact).format == "gguf-q8_0"
    assert signing.refuse_untrusted(artifact, None) == "not signed"


def test_trust_that_does_not_require_takes_unsigned_but_no_wrong_signature(tmp_path: Path, made: Signed) -> None:
    bare = write_artifact(tmp_path / "bare")
    lenient = trust_in(made, require=False)
    assert signing.refuse_untrusted(bare, lenient) == "not signed"
    sign_folder(bare, made.others.private)
    with pytest.raises(Untrusted, match="trusted is"):
        signing.refuse_untrusted(bare, lenient)
    assert signing.refuse_untrusted(made.artifact, lenient).startswith("signed by the trusted key")


def test_verify_tells_unsigned_unchecked_and_trusted_apart(
    tmp_path: Path, made: Signed, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = write_artifact(tmp_path / "bare")
    said = []
    for words in ([str(bare)], [str(made.artifact)], [str(made.artifact), "--key", str(made.keys.public)]):
        assert cli.main(["verify", *words, "--json"]) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert [each["signature"] for each in said] == ["none", "unchecked", "trusted"]
    assert [each["signed_by"] for each in said] == [None, made.keys.fingerprint, made.keys.fingerprint]
    assert cli.main(["verify", str(bare)]) == 0
    assert "4 files intact; not signed" in capsys.readouterr().out
    assert cli.main(["verify", str(bare), "--key", str(made.keys.public)]) == 4


def test_keygen_tells_where_the_keys_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keygen", "--out", str(tmp_path / "keys"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert signing.fingerprint_of(Path(told["public"])) == told["fingerprint"]
    assert cli.main(["keygen", "--out", str(tmp_path / "keys")]) == 2
    assert cli.main(["keygen", "--out", str(tmp_path / "keys"), "--name", "../elsewhere"]) == 4
    assert not (tmp_path / "elsewhere.key").exists()

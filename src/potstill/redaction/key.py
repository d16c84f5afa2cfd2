"""The secret behind the placeholders: made once for a working folder, so that its runs agree and nobody can guess."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

VARIABLE = "POTSTILL_REDACTION_KEY"


def redaction_key(folder: Path) -> bytes:
    """The key in the environment variable POTSTILL_REDACTION_KEY, else in the folder's `redaction.key`, made if absent.

    The file is readable by its owner alone and goes into no dataset: with it, a guess at who said what can be
    confirmed. Two processes that come at once get the same key. To repeat a run's bytes elsewhere, take it along.
    """
    given = os.environ.get(VARIABLE)
    if given:
        return given.encode()
    path = folder / "redaction.key"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = folder / f".redaction.key.{os.getpid()}.{secrets.token_hex(4)}"
        descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(32))
        try:
            os.link(made, path)  # fails where another process was first: its key is the key
        except FileExistsError:
            pass
        finally:
            made.unlink()
    return path.read_text().strip().encode()

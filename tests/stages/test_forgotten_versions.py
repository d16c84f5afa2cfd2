"""A version that learnt from forgotten rows says so wherever it is served or promoted, or is refused there."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill.commands.registry import promote_command
from potstill.errors import GateRefused
from potstill.tracking import client, open_tracking
from potstill.tracking_forgotten import heed_version, tag_versions


def test_versions_made_of_marked_folders_are_tagged_warned_about_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracking = open_tracking(f"sqlite:///{tmp_path}/mlflow.db")
    api = client(tracking)
    api.create_registered_model("mail")
    for adapter in ("a" * 64, "b" * 64):
        api.create_model_version(
            "mail", str(tmp_path), tags={"potstill.adapter": adapter, "potstill.dataset": "d" * 64}
        )
    assert tag_versions(tracking, {"a" * 64: "learnt from it"}, "r.json", refuse=False) == 1
    heed_version(tracking, "models:/mail/2", "serve")
    assert "warning" not in capsys.readouterr().err
    heed_version(tracking, "models:/mail/1", "serve")
    assert "serve: warning: it learnt from it (forgotten/r.json)" in capsys.readouterr().err
    assert tag_versions(tracking, {"d" * 64: "holds it"}, "s.json", refuse=True) == 2
    tag_versions(tracking, {"d" * 64: "holds it"}, "t.json", refuse=False)

    from argparse import Namespace

    for version in ("1", "2"):
        words = Namespace(model=f"models:/mail/{version}", tracking_uri=tracking.uri, by="me", why="", json=False)
        with pytest.raises(GateRefused, match="it holds it"):
            promote_command(words)

"""The loop by itself: v1 served, its users' feedback trains, tries and promotes v2; a poisoned batch moves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shared_traffic import shared_log
from tests.stages.tiny_llama import tiny_base

TRAIN = (
    "{learning_rate: 0.01, epochs: 4, batch_tokens: 512, window: 256, evals: 2, score_rows: 10, chat_template: base}"
)


@pytest.mark.slow
def test_the_loop_promotes_by_itself_and_poison_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real servers over HTTP, a real watcher beside; a tiny student, so that minutes do (benchmarks/watch_loop.py)."""
    from benchmarks import watch_loop

    monkeypatch.setenv("POTSTILL_TRAFFIC", str(shared_log("banking77.jsonl.gz").parent))
    shared_log("banking77.gold.jsonl.gz")
    base = tiny_base(tmp_path / "base").path
    words = ["--small", "--base", str(base), "--margin", "0.7", "--place", str(tmp_path / "loop"), "--train", TRAIN]
    code = watch_loop.main(words)
    journal = [each["kind"] for each in watch_loop.journal(tmp_path / "loop")]
    assert code == 0, capsys.readouterr().out
    deeds = [kind for kind in journal if kind not in ("waiting", "refused")]
    assert deeds == ["intake", "train", "trained", "canary", "canary_began", "promote", "promoted", "held"]
    assert "refused" in journal

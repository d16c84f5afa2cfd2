"""Promise of `forget`: no answer that a server keeps to give again outlives whom it was given to."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill import cli
from potstill.serving.caches.behind import ANSWERS, opened
from potstill.serving.caches.journal import EVENTS
from potstill.serving.caches.kept import Kept

from .forget_place import make_place, secret
from .mail_log import exchange


def test_answers_that_a_server_keeps_go_with_whom_it_served_and_stay_with_anybody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = exchange(1, text=secret(1), metadata={"user": "walter-u7"})
    made = make_place(tmp_path, monkeypatch, [exchange(at) for at in range(10, 50)], [served, exchange(2)])
    answers = opened(made.work / "exact-cache.sqlite", *ANSWERS)
    events = opened(made.work / "semantic-cache.sqlite", *EVENTS)
    kept = Kept(secret(1).encode(), 1.0)
    answers.execute("INSERT INTO answers VALUES (?, 1, 1, 1, ?)", (b"k" * 32, kept.packed(b"k" * 32)))
    events.execute("INSERT INTO events (scope, at, event) VALUES (?, 1, ?)", (b"s" * 32, secret(1).encode()))
    counted = [(answers, "SELECT count(*) FROM answers"), (events, "SELECT count(*) FROM events")]
    forgotten = ["forget", "--work-dir", str(made.work), "--yes", "--user"]
    assert cli.main([*forgotten, "somebody-else"]) == 0
    assert [base.execute(query).fetchone()[0] for base, query in counted] == [1, 1]
    assert cli.main([*forgotten, "walter-u7"]) == 0  # beside connections that a server holds
    assert [base.execute(query).fetchone()[0] for base, query in counted] == [0, 0]
    assert made.holding("zanzibar0001") == []

"""`potstill check`: what it shows before compute is spent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from potstill.cli import main
from potstill.commands.check import masked, training_text, wants_colour
from potstill.commands.serve import settings_from
from potstill.errors import RecipeError
from potstill.records import Json

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SPANS = [{"learnt": False, "text": "user: hi\nbot: "}, {"learnt": True, "text": "hello\nyou<end>"}]


def recipe(tmp_path: Path, *, serve: Json | None = None, **train: Any) -> Path:
    """A recipe whose log has one row: all that `check` asks of it."""
    log = {"id": "1", "request": {"messages": [{"role": "user", "content": "hi"}]}}
    answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}]}
    (tmp_path / "log.jsonl").write_text(json.dumps(log | {"response": answer}) + "\n")
    (tmp_path / "gold.jsonl").write_text(json.dumps({"id": "1", "answer": "a"}) + "\n")
    found = {
        "name": "one", "task": {"kind": "classification", "labels": ["a", "b"]}, "work_dir": str(tmp_path / "work"),
        "base_model": "Qwen/Qwen3-4B", "train": train,
        "distill": {"sources": [{"format": "openai_pairs", "path": "log.jsonl"}]},
        "evaluate": {"gold": "gold.jsonl"}, "register": {"model": "one"}, "serve": serve or {},
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(found))
    return path


def test_learnt_text_is_marked_and_the_rest_is_as_it_is() -> None:
    assert masked(SPANS, colour=False) == "user: hi\nbot: [[hello]]\n[[you<end>]]"


def test_colour_ends_on_every_line_so_that_a_pager_does_not_carry_it_on() -> None:
    for line in masked(SPANS, colour=True).splitlines():
        assert line.count("\x1b[1;32m") == line.count("\x1b[0m")
    assert "[[" not in masked(SPANS, colour=True)


def test_no_color_and_a_pipe_mean_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert wants_colour()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    assert not wants_colour()


def test_check_gives_memory_and_the_choice_for_a_base_that_is_not_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(recipe(tmp_path, gpu_memory_gib=24)), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    ahead = found["training"]["forecast"]
    assert ahead["memory"]["weights"] == 4_022_468_096 * 2
    assert ahead["choice"]["fits"]
    assert ahead["licence"] == "apache-2.0"
    assert found["settings"]["train.gpu_memory_gib"] == {"value": 24, "origin": "recipe"}
    assert found["training"]["rows"] is None


def test_check_in_words_names_parts_choice_licence_and_what_export_will_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(recipe(tmp_path)), "train.gpu_memory_gib=24"]) == 0
    shown = capsys.readouterr().out
    for word in ("activations", "optimizer", "total", "apache-2.0", "chosen: bf16"):
        assert word in shown
    assert "export will refuse" not in shown
    towers = ["train.gpu_memory_gib=24", "base_model=google/gemma-3-4b-it"]
    assert main(["check", str(recipe(tmp_path)), *towers]) == 0
    assert "export will refuse" in capsys.readouterr().out


def test_an_architecture_without_a_formula_is_said_and_nothing_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "mamba"}')
    assert main(["check", str(recipe(tmp_path)), f"base_model={base}"]) == 0
    shown = capsys.readouterr().out
    assert "memory: not estimated" in shown
    assert "refused at its start where packing changes the logits" in shown


def test_a_probe_without_a_dataset_says_what_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(recipe(tmp_path)), "--probe"]) == 1
    assert "potstill distill" in capsys.readouterr().err


def test_a_dry_run_of_train_shows_what_training_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(recipe(tmp_path, gpu_memory_gib=24)), "--dry-run", "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)
    assert [each["stage"] for each in stages] == ["distill", "train"]
    assert stages[-1]["training"]["forecast"]["memory"]["total"] > 0
    assert not (tmp_path / "work").exists()


def test_rows_that_are_left_out_are_counted_by_reason_and_hours_have_a_price() -> None:
    ahead = {
        "rows": 90, "tokens_an_epoch": 9000, "supervised_tokens_an_epoch": 900, "rows_too_long": ["a", "b", "c", "d"],
        "rows_dropped_before": {"fold: near-duplicate of a kept row": 7},
        "example": {"id": "e1", "spans": SPANS},
        "forecast": {
            "memory": {"weights": 2**20, "total": 2**20}, "choice": None, "licence": None, "exports": True,
            "base_model": "x",
        },
        "probe": {
            "steps": 3, "tokens_per_second": 500.0, "peak_bytes": 2**30, "hours": 2.5, "tokens": 4_500_000, "usd": 1.25,
        },
    }  # fmt: skip
    shown = "\n".join(training_text(ahead, colour=False))
    assert "0 rows truncated, 4 dropped as longer than the window (longest: a, b, c, ...)" in shown
    assert "7 dropped by distill: fold: near-duplicate of a kept row" in shown
    assert "500 tokens/s, peak 1,024 MiB; 2.5 h for 4,500,000 tokens, $1.25" in shown
    assert "[[hello]]" in shown


AT_ODDS: list[tuple[Json, str, str]] = [
    ({"escalate": {}}, "serve.escalate", "needs serve.large"),
    ({"shadow": {"candidate": "large"}}, "serve.shadow", "needs serve.large"),
    ({"drift": {"check": {"share": 0.1}}}, "serve.drift", "needs serve.large"),
    ({"hedge": {}}, "serve.hedge", "there is none: set serve.large"),
    ({"budgets": {"tenants": {"acme": {"daily_usd": 5}}}}, "serve.budgets.tenants.acme.daily_usd", "neither has"),
]  # fmt: skip


@pytest.mark.parametrize(("serve", "key", "wrong"), AT_ODDS)
def test_settings_of_the_server_that_make_no_sense_together_are_refused_at_their_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], serve: Json, key: str, wrong: str
) -> None:
    path = recipe(tmp_path, serve=serve)
    for words in (["check", str(path)], ["serve", "--recipe", str(path), "models:/m@champion"]):
        assert main(words) == 2
        told = capsys.readouterr().err
        assert f"{path}:1:" in told
        assert f"{key}: " in told
        assert wrong in told


def test_what_a_server_may_have_alone_is_accepted(tmp_path: Path) -> None:
    priced = {"prices": {"student": {"output": 0.5}}, "budgets": {"key": {"daily_usd": 5}}}
    for serve in (
        {"breaker": None},
        {"budgets": {"key": {"daily_tokens": 5}}},
        priced,
        {"shadow": {"candidate": "canary"}},
    ):
        assert main(["check", str(recipe(tmp_path, serve=serve)), "--json"]) == 0


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("prot=1", "command line: prot=1: prot: not a setting (did you mean port?)"),
        ("port=abc", "command line: port=abc: port: found 'abc'"),
        ("keys=ONE", "keys: found 'ONE', expected a list: [ONE]"),
        ("batches=true", "batches: found True, expected a mapping (any of share, "),
        ("engine.kind=lama_cpp", "engine.kind: found 'lama_cpp', expected one of 'llama_cpp', 'vllm', 'address' (did"),
        ("budgets.key.daily_usd=5", "command line: budgets.key.daily_usd: counts by serve.prices.student"),
    ],
)  # fmt: skip
def test_settings_without_a_recipe_are_told_as_a_recipes_are(word: str, told: str) -> None:
    with pytest.raises(RecipeError) as refused:
        settings_from([word])
    assert told in str(refused.value)

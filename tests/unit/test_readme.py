"""What the README and the pages in docs tell people to type and to open is there."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest
import yaml

from distillation.connectors import FORMATS, connector
from potstill.cli import parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
MADE_BY_RUNNING = "work/"


def fenced(text: str) -> list[str]:
    """Lines of shell blocks, continued lines joined, without comments."""
    blocks = [body.replace("\\\n", " ") for language, body in FENCE.findall(text) if language == "sh"]
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def quoted(text: str) -> list[str]:
    """Spans of inline code."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def found(start: str) -> list[str]:
    pieces = [piece for page in PAGES for piece in (*fenced(page.read_text()), *quoted(page.read_text()))]
    return sorted({piece for piece in pieces if piece.startswith(start)})


@pytest.mark.parametrize("line", found("potstill "))
def test_commands_that_are_shown_parse(line: str) -> None:
    parser().parse_args(shlex.split(line, comments=True)[1:])


def test_readme_lists_every_command() -> None:
    (commands,) = (each for each in parser()._actions if isinstance(each, argparse._SubParsersAction))
    shown = {line.split()[1] for line in quoted((ROOT / "README.md").read_text()) if line.startswith("potstill ")}
    assert shown == set(commands.choices)


@pytest.mark.parametrize("line", found("make "))
def test_make_targets_that_are_shown_exist(line: str) -> None:
    targets = re.findall(r"^([\w.-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert shlex.split(line, comments=True)[1] in targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_that_are_shown_exist(page: Path) -> None:
    tops = {f"{each.name}/" for each in ROOT.iterdir() if each.is_dir()}
    text = page.read_text()
    words = {word for line in (*quoted(text), *fenced(text)) for word in re.split(r"[\s'\"=,]+", line)}
    paths = {word for word in words if any(word.startswith(top) for top in tops)} | {
        word for word in words if "/" not in word and re.fullmatch(r"[\w.-]+\.(md|toml|txt)", word)
    }
    missing = {path for path in paths if not path.startswith(MADE_BY_RUNNING) and not (ROOT / path).exists()}
    assert not missing


def test_recipe_that_is_shown_is_the_quick_starts() -> None:
    (shown,) = (body for language, body in FENCE.findall((ROOT / "README.md").read_text()) if language == "yaml")
    assert yaml.safe_load(shown) == yaml.safe_load((ROOT / "configs" / "quickstart" / "recipe.yaml").read_text())


def test_page_on_traffic_lists_every_format_with_its_companions() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\|([^|]*)\|$", (ROOT / "docs" / "traffic.md").read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == list(FORMATS)
    for name, companions in rows:
        shown = set(re.findall(r"`(\w+)`", companions))
        assert shown >= set(connector(name).companions)
        assert shown <= set(connector(name).companions) | set(connector(name).companions.values())

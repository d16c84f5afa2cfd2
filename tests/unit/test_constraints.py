"""constraints.txt: a fresh machine gets what everything was tested with, whichever Python of those promised it has."""

from __future__ import annotations

import importlib.metadata as metadata
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
PINNED = {canonicalize_name(each.name): next(iter(each.specifier)).version for each in map(Requirement, LINES)}
PROMISED = SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"])
OLDEST = f"{next(iter(PROMISED)).version}.0"
APART = {"potstill", "pip"}


def needed(name: str, extra: str = "") -> Iterator[Requirement]:
    """What this distribution needs on the oldest Python promised and on this one, and what those need in turn."""
    reached: set[str] = set()
    left = [(canonicalize_name(name), extra)]
    while left:
        at, wanted = left.pop()
        if (key := f"{at}[{wanted}]") in reached:
            continue
        reached.add(key)
        try:
            requirements = metadata.requires(at) or []
        except metadata.PackageNotFoundError:  # needed on another Python than this one
            continue
        for each in map(Requirement, requirements):
            here: dict[str, str] = {"extra": wanted}
            there = here | {"python_version": OLDEST.rpartition(".")[0], "python_full_version": OLDEST}
            if each.marker is None or each.marker.evaluate(here) or each.marker.evaluate(there):
                yield each
                left += [(canonicalize_name(each.name), one) for one in ("", *each.extras)]


def test_everything_that_is_installed_has_its_version_pinned() -> None:
    names = {canonicalize_name(each.name) for each in needed("potstill", "dev")}
    assert len(names) > 100
    assert sorted(names - PINNED.keys() - APART) == []


def test_the_pinned_versions_fit_each_other() -> None:
    clashes = {
        f"{each}, pinned {PINNED[name]}"
        for each in needed("potstill", "dev")
        if (name := canonicalize_name(each.name)) in PINNED
        and not each.specifier.contains(PINNED[name], prereleases=True)
    }
    assert clashes == set()


def test_the_pinned_versions_install_on_the_oldest_python_promised() -> None:
    assert Version(OLDEST) in PROMISED
    too_new, looked_at = {}, 0
    for each in metadata.distributions():
        if PINNED.get(canonicalize_name(each.name)) != each.version.partition("+")[0]:
            continue
        looked_at += 1
        wanted = each.metadata.get("Requires-Python")
        if wanted and not SpecifierSet(wanted).contains(OLDEST):
            too_new[each.name] = wanted
    if looked_at < len(PINNED) // 2:
        pytest.skip(f"{looked_at} of the {len(PINNED)} pinned versions are installed here")
    assert too_new == {}

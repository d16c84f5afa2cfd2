"""Promises of names that become paths: what may pass passes as it is, and nothing else passes."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import UnsafeName
from potstill.safe_names import fault_of, inside, safe_name, safe_relative

from .hostile_names import Area

GOOD = (
    "banking-intents", "model-q8_0.gguf", "sealed/test.parquet", "model-00001-of-00003.safetensors", "tokenizer.json",
    "Ärger 2.json", "模型.gguf", "a+b=c, (d) [e].txt", "report@3", ".gitattributes", "checkpoint-1/state.json",
    "console.log",
)  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_names_that_people_and_stages_give_are_taken_as_they_are(name: str, tmp_path: Path) -> None:
    assert safe_relative(name) == name
    assert inside(tmp_path, name) == tmp_path / name


@given(st.text(max_size=40))
def test_a_safe_name_is_one_component_that_normalisation_leaves_alone(name: str) -> None:
    if fault_of(name) is not None:
        with pytest.raises(UnsafeName) as caught:
            safe_name(name)
        assert str(caught.value).isprintable()
        assert caught.value.exit_code == 4
        return
    for form in (name, unicodedata.normalize("NFKC", name), unicodedata.normalize("NFKD", name)):
        assert not set("/\\:\x00") & set(form)
        assert form.strip(". ")
    assert (Path("/a") / name).parent == Path("/a")


@given(st.lists(st.sampled_from(["..", ".", "a", "", "~", "C:", "a\\b", "．．", "con", "b.json"]), max_size=5))
def test_a_path_is_safe_exactly_when_each_of_its_components_is(parts: list[str]) -> None:
    name = "/".join(parts)
    if name and all(part in ("a", "b.json") for part in parts):
        assert safe_relative(name) == name
    else:
        with pytest.raises(UnsafeName):
            safe_relative(name)


@pytest.mark.parametrize("name", [None, 7, b"x", ["a"], {}])
def test_what_is_no_text_is_no_name(name: object) -> None:
    with pytest.raises(UnsafeName):
        safe_name(name)
    with pytest.raises(UnsafeName):
        safe_relative(name)


def test_no_hostile_name_passes_and_a_link_leads_nowhere(tmp_path: Path) -> None:
    area = Area(tmp_path)
    assert sum(area.attack(lambda name: inside(area.work, name))) == len(area.names)
    with pytest.raises(UnsafeName, match="symbolic link"):
        inside(area.work, "link/sentinel.txt")
    refused, taken = area.attack(lambda name: area.work / safe_name(name))
    assert refused > 0.97 * len(area.names), taken


def test_these_names_do_escape_from_a_plain_join(tmp_path: Path) -> None:
    """Or the attacks would show nothing: of the same names one in six leads out where nobody checks."""
    area = Area(tmp_path)
    with pytest.raises(AssertionError):
        area.attack(lambda name: area.work / name)
    escaping = 0
    for name in area.names:
        try:
            escaping += not (area.work / name).resolve().is_relative_to(area.work.resolve())
        except (OSError, ValueError):
            continue
    assert escaping > 400

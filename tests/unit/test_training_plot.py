"""The picture of a training run: whole, small, readable, and drawn from the log alone."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.plot import POINTS, draw, means, panels_of, ticks


def write_log(path: Path, steps: int, *, scored: bool = True) -> None:
    lines = []
    for step in range(steps + 1):
        if step:
            lines.append({"step": step, "loss": 3 / step, "grad_norm": 1.0, "tokens_per_second": 900.0})
        if step % 50 == 0:
            lines.append({"step": step, "eval_loss": 2.0})
            if scored:
                lines[-1] |= {"eval_score": 0.5, "eval_score_low": 0.4, "eval_score_high": 0.6}
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))


def test_the_picture_is_well_formed_self_contained_and_small(tmp_path: Path) -> None:
    write_log(tmp_path / "log.jsonl", 5000)
    draw(tmp_path / "log.jsonl", tmp_path / "training.svg")
    text = (tmp_path / "training.svg").read_text()
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    assert len(text) < 60_000
    assert "href" not in text
    assert "url(" not in text
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for curve in root.iter("{http://www.w3.org/2000/svg}polyline"):
        for point in curve.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height
    titles = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text") if each.get("font-weight")]
    assert titles == ["loss", "task score on validation answers", "gradient norm", "tokens a second"]


def test_a_figure_that_was_never_logged_has_no_panel(tmp_path: Path) -> None:
    write_log(tmp_path / "log.jsonl", 10, scored=False)
    draw(tmp_path / "log.jsonl", tmp_path / "training.svg")
    assert "task score" not in (tmp_path / "training.svg").read_text()
    (tmp_path / "empty.jsonl").write_text("")
    draw(tmp_path / "empty.jsonl", tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()


def test_what_is_no_number_is_left_out() -> None:
    panels = panels_of([{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 1.0}])
    assert panels[0].curve == [(2, 1.0)]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=2000))
def test_a_long_curve_keeps_its_mean_and_few_points(values: list[float]) -> None:
    curve = [(float(at), value) for at, value in enumerate(values)]
    found = means(curve)
    assert len(found) <= POINTS
    assert min(values) - 1e-9 <= min(value for _, value in found)
    if len(values) <= POINTS:
        assert [value for _, value in found] == pytest.approx(values)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    high = low + span
    found = ticks(low, high)
    assert 1 <= len(found) <= 6
    slack = 1e-6 * max(abs(low), abs(high), span)
    assert all(low - slack <= each <= high + slack for each in found) or len(found) == 1


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-9])
def test_a_constant_has_a_tick(value: float) -> None:
    assert ticks(value, value)

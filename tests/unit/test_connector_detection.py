"""Each log format is told from all others: every fixture against every connector that is there."""

from __future__ import annotations

import pytest

from .traffic_round_trip import assert_detected_by_its_own_alone, existing_formats


@pytest.mark.parametrize("name", list(existing_formats()))
def test_a_fixture_is_known_by_its_own_connector_alone(name: str) -> None:
    assert_detected_by_its_own_alone(name)

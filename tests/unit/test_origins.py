"""What the report says the student was made of, from the manifests."""

from __future__ import annotations

from evaluation.origins import trained_on
from potstill.manifest import Manifest
from potstill.records import Json
from potstill.stage import Noun


def manifests(training: Json) -> dict[Noun, Manifest]:
    adapter = Manifest("adapter", "d", {}, {}, {"settings": {"method": "lora"}}, (), {"training": training})
    return {"adapter": adapter, "artifact": Manifest("artifact", "d", {}, {}, {}, (), {"wall_s": 3.0})}


def test_training_took_both_phases() -> None:
    first = {"steps": 7, "train_seconds": 10.0}
    assert trained_on(manifests(first))["training"] == first
    both = trained_on(manifests(first | {"then": {"steps": 5, "train_seconds": 4.5}}))
    assert both["training"] == {"steps": 7, "train_seconds": 14.5}
    assert both["export_wall_s"] == 3.0

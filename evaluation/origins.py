"""What the student was made of, for the report: its base, its rows, what training and export took."""

from __future__ import annotations

from collections.abc import Mapping

from potstill.manifest import Manifest
from potstill.records import Json
from potstill.stage import Noun

TRAINING_FACTS = (
    "steps", "train_seconds", "tokens_per_second", "loss_first", "loss_last", "tokens_an_epoch",
    "supervised_tokens_an_epoch", "best_checkpoint_step",
)  # fmt: skip
SETTINGS = ("method", "learning_rate", "epochs", "batch_tokens", "window", "rank", "seed")


def trained_on(manifests: Mapping[Noun, Manifest]) -> Json:
    """`base`, `rows`, `training` and `settings` of the adapter's manifest, and the seconds that each step took.

    `train_seconds` are of both phases of the training, the other figures of the first.
    """
    adapter = manifests["adapter"]
    facts, found = adapter.facts, adapter.settings_used.get("settings", {})
    training = facts.get("training") or {}
    if second := training.get("then"):
        training = training | {"train_seconds": training["train_seconds"] + second["train_seconds"]}
    return {
        "base": (facts.get("base") or {}).get("spec"),
        "base_digest": (facts.get("base") or {}).get("digest"),
        "rows": facts.get("rows") or {},
        "training": {key: training[key] for key in TRAINING_FACTS if training.get(key) is not None},
        "settings": {key: found[key] for key in SETTINGS if isinstance(found, dict) and found.get(key) is not None},
        "train_wall_s": facts.get("wall_s"),
        "export_wall_s": manifests["artifact"].facts.get("wall_s"),
    }

"""Settings of learning from a teacher's distributions, section `train.distil`, and the teacher as an input."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from potstill.manifest import Input, read_manifest
from potstill.models import base_input
from potstill.recipe import ModelSpec, Section

Share = Annotated[float, Field(ge=0, le=1)]


class Distil(Section):
    """What the student learns besides the text of an answer: what else its teacher would have written, and how likely.

    `teacher` is an open model (a folder, `package:...`, a hub id, or the folder of a trained adapter); without one the
    log-probabilities that the log recorded count. `share` is that of the soft loss, the rest is the answer itself.
    `head`, `draws` and `proposal` say what is kept of a distribution (see soft_targets.py). `prompt`: the teacher is
    asked with the prompt that the student sees, or with the full one; `auto` takes the student's for an adapter.
    `least_usable`: refuse when fewer of the answers' tokens than this have a soft target.

    For `objective: on_policy`: `generated` is the share of steps whose answers the student writes itself, at
    `sampling_temperature`, and `beta` says which divergence: 0 forward, 1 reverse Kullback-Leibler.
    """

    teacher: ModelSpec | None = None
    share: Share = 0.5
    temperature: Annotated[float, Field(gt=0, le=20)] = 1.0
    head: Annotated[int, Field(ge=0, le=1024)] = 8
    draws: Annotated[int, Field(ge=0, le=255)] = 16
    proposal: Annotated[float, Field(gt=0, le=10)] = 1.0
    prompt: Literal["auto", "student", "full"] = "auto"
    least_usable: Share = 0.2
    generated: Share = 0.5
    sampling_temperature: Annotated[float, Field(gt=0, le=5)] = 1.0
    beta: Share = 0.5


def teacher_input(spec: str) -> Input:
    """The teacher as an input of training, by content: a model, or the folder of a trained adapter."""
    if is_adapter(spec):
        return Input("teacher", spec, read_manifest(Path(spec), "adapter", verify=False).digest)
    found = base_input(spec)
    return Input("teacher", found.path, found.digest)


def is_adapter(spec: str) -> bool:
    return (Path(spec) / "adapter" / "adapter_config.json").is_file()

"""Settings of what answers: the engine of a version, several models, the alias that is followed, who may administer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from potstill.recipe import PathText, Section
from potstill.serving.names import VariableName

# llama.cpp answers between two batches: shorter than the longest prompt takes to be read, and it would be ended for it
Hung = Annotated[float, Field(gt=0, description="alive but no answer to a health question for so long: replaced")]


class LlamaCppSettings(Section):
    """llama.cpp as a child process, for the artifact's GGUF files."""

    kind: Literal["llama_cpp"] = "llama_cpp"
    hung_after_s: Hung = 60.0


class VllmSettings(Section):
    """vLLM as a child process, for the artifact's safetensors folders."""

    kind: Literal["vllm"]
    command: Annotated[str, Field(description="the program, where it is not on the path: /opt/vllm/bin/vllm")] = "vllm"
    arguments: Annotated[tuple[str, ...], Field(description="more of `vllm serve`, as --tensor-parallel-size=2")] = ()
    start_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    hung_after_s: Hung = 60.0


class AddressSettings(Section):
    """A server of somebody else's that answers with this artifact's model: any that speaks OpenAI's API."""

    kind: Literal["address"]
    url: Annotated[str, Field(description="with its /v1")]
    model: Annotated[str | None, Field(description="its name there; unset: the only one that it lists")] = None
    key: Annotated[VariableName | None, Field(description="NAME of the environment variable with its key")] = None


EngineSettings = Annotated[LlamaCppSettings | VllmSettings | AddressSettings, Field(discriminator="kind")]
ModelAddress = Annotated[str, Field(pattern=r"^models:/[^@]+@.+$")]


class ModelSettings(Section):
    """One of several models; what is unset is as for the whole server."""

    artifact: Annotated[
        ModelAddress | PathText, Field(union_mode="left_to_right", description="a folder, or models:/NAME@ALIAS")
    ]
    format: str | None = None
    slots: Annotated[int | None, Field(ge=1, le=256)] = None
    threads: Annotated[int | None, Field(ge=1)] = None
    engine: EngineSettings | None = None


class FollowSettings(Section):
    """Swap to what an alias names whenever it moves."""

    every_s: Annotated[float, Field(ge=0.1, description="seconds between two looks at the registry")] = 30.0

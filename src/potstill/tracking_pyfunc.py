"""What makes a registered version loadable by `mlflow.pyfunc.load_model`: an MLmodel file beside its folders.

MLflow writes the file (`mlflow.pyfunc.save_model`) with a script as the model, so that nothing is pickled and nothing
is copied: the script finds `artifact/` where the version already holds it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from potstill import __version__
from potstill.manifest import Manifest
from potstill.progress import say
from potstill.records import Json
from potstill.tracking import Tracking, client

SCRIPT = Path(__file__).with_name("tracking_pyfunc_model.py")
FILES = ("MLmodel", SCRIPT.name, "requirements.txt", "python_env.yaml", "conda.yaml")
# What `load_model(uri, model_config={...})` may change, and what it is otherwise; see `serve:` for their meaning.
CONFIG: Json = {"threads": None, "slots": 4, "request_timeout_s": 60.0, "constrain": True}
LLAMA_CPP = "llama_cpp"


def log_pyfunc(tracking: Tracking, model_id: str, artifact: Manifest, shipped: str) -> None:
    """Put MLmodel and script beside the folders of a logged model, where this engine can load what was judged.

    `shipped` is the candidate that the gate judged (`artifact:FORMAT`, or empty): its format answers, unless the
    loader asks for another.
    """
    formats: dict[str, Json] = artifact.facts.get("formats") or {}
    ours = [name for name, each in formats.items() if each.get("engine", LLAMA_CPP) == LLAMA_CPP]
    judged = shipped.removeprefix("artifact:") if shipped.startswith("artifact:") else None
    if not ours or (judged is not None and judged not in ours):
        say(f"MLflow: {judged or 'this version'} is no GGUF, so pyfunc.load_model will not load it; vLLM does")
        return
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / "written"
        _save(written, model_id, CONFIG | {"format": judged, "artifact_digest": artifact.digest})
        wanted = Path(scratch) / "wanted"
        wanted.mkdir()
        for name in FILES:  # and nothing else that MLflow may have found in the working directory
            shutil.copy2(written / name, wanted / name)
        client(tracking).log_model_artifacts(model_id, str(wanted))


def _save(folder: Path, model_id: str, config: Json) -> None:
    from mlflow.models import Model
    from mlflow.pyfunc import FLAVOR_NAME, save_model

    model = Model(model_id=model_id, signature=_signature())
    with _uv_files_left_alone():
        save_model(
            str(folder), python_model=str(SCRIPT), mlflow_model=model, model_config=config,
            pip_requirements=requirements(), streamable=True,
        )  # fmt: skip
    # Handed over as `artifacts`, the folder would be copied into a second place of the version.
    model.flavors[FLAVOR_NAME]["artifacts"] = {"artifact": {"path": "artifact", "uri": "artifact"}}
    model.save(str(folder / "MLmodel"))


def _signature() -> Any:
    """What comes back. The input has no schema: MLflow would spoil lists of conversations by making a table of them."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types import schema as untyped

    kinds: Any = untyped
    text, number = DataType.string, DataType.long
    return ModelSignature(
        outputs=Schema(
            [
                ColSpec(text, "text", required=False),
                ColSpec(kinds.Map(kinds.AnyType()), "message", required=False),
                ColSpec(DataType.boolean, "valid"),
                ColSpec(text, "reason", required=False),
                ColSpec(text, "finish_reason", required=False),
                ColSpec(number, "prompt_tokens", required=False),
                ColSpec(number, "completion_tokens", required=False),
                ColSpec(text, "error", required=False),
            ]
        )
    )


def requirements() -> list[str]:
    """What the loading environment needs, at the versions of this one."""
    named = {"potstill[serve]": __version__}
    for package in ("mlflow", "xllamacpp"):
        try:
            named[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return [f"{name}=={version}" for name, version in named.items()]


@contextmanager
def _uv_files_left_alone() -> Iterator[None]:
    """MLflow copies uv.lock and pyproject.toml of whatever directory the command stands in, unless told not to."""
    from mlflow.environment_variables import MLFLOW_UV_AUTO_DETECT as untyped

    switch: Any = untyped
    before = switch.get_raw()
    switch.set(False)
    try:
        yield
    finally:
        if before is None:
            switch.unset()
        else:
            switch.set(before)

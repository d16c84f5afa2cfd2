"""Finds a stage's run file: beside the checkout, or inside the installed wheel as `potstill.stages.*`.

Stages import nothing by their own absolute name, so both places serve the same code.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

STAGE_FILES = {
    "distill": "distillation.run",
    "train": "training.run",
    "export": "export.run",
    "evaluate": "evaluation.run",
    "register": "evaluation.register",
}


def stage_module(section: str) -> ModuleType:
    """The run module of a section (`distill`, `train`, ...), imported."""
    name = STAGE_FILES[section]
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / name.partition(".")[0]).is_dir():
        if str(checkout) not in sys.path:
            sys.path.insert(0, str(checkout))
        return importlib.import_module(name)
    return importlib.import_module(f"potstill.stages.{name}")


def stage_modules() -> dict[str, ModuleType]:
    """Every stage in the order in which `potstill run` takes them."""
    return {section: stage_module(section) for section in STAGE_FILES}

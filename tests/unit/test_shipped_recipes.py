"""Every recipe in configs loads offline, and what it plans for one card fits that card, whichever student is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from potstill.commands.recipes import read
from potstill.known_bases import KNOWN
from training.memory_choice import FULL_SPEED_TOKENS

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "configs").glob("*/*.yaml"))
ON_GPUS = [path for path in RECIPES if path.stem.startswith("gpu")]
STUDENTS = {
    "Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B", "Qwen/Qwen3-8B", "meta-llama/Llama-3.2-1B-Instruct",
    "meta-llama/Llama-3.2-3B-Instruct", "meta-llama/Llama-3.1-8B-Instruct", "google/gemma-3-270m-it",
    "google/gemma-3-1b-it", "google/gemma-3-4b-it",
}  # fmt: skip


def named(path: Path) -> list[str]:
    """The students that a recipe names: its own and those of its opening comment."""
    return [base for base in KNOWN if re.search(rf"{re.escape(base)}(?![\w.-]*\w)", path.read_text())]


def forecast(path: Path, *overrides: str) -> Any:
    recipe, modules = read(str(path), overrides)
    return modules["train"].forecast(recipe.sections["train"], recipe.shared)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_loads_and_its_memory_is_known_without_the_hub(path: Path) -> None:
    assert forecast(path)["memory"]["total"] > 0


@pytest.mark.parametrize("path", ON_GPUS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_gpu_recipe_fits_its_card_with_every_student_that_it_names(path: Path) -> None:
    recipe, _ = read(str(path), [])
    assert recipe.shared.base_model in named(path)
    for base in named(path):
        found = forecast(path, f"base_model={base}")
        choice = found["choice"]
        assert choice["fits"], (base, choice)
        assert choice["available_bytes"] < 80 * 2**30
        assert choice["micro_tokens"] >= min(FULL_SPEED_TOKENS, recipe.sections["train"].batch_tokens)
        assert re.search(r"(bf16|NF4), with(out)? activation checkpointing, [\d,]+ tokens", choice["text"])


def test_gpu_recipes_cover_every_task_and_every_student() -> None:
    assert {path.parent.name for path in ON_GPUS} == {"banking77", "restaurants8k", "tau_airline"}
    assert {base for path in ON_GPUS for base in named(path)} >= STUDENTS


def test_a_card_to_plan_for_and_a_price_do_not_name_another_adapter() -> None:
    path = str(ROOT / "configs" / "banking77" / "gpu.yaml")
    plain, other = (read(path, more)[0].sections["train"] for more in ([], ["train.gpu_memory_gib=80"]))
    priced = read(path, ["train.machine_usd_per_hour=2.5"])[0].sections["train"]
    assert plain.model_dump() == other.model_dump() == priced.model_dump()

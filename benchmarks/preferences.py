"""Preferences learnt after the answers: a finished adapter before and after DPO (or KTO), against gold, paired.

    python -m benchmarks.preferences --adapter work/banking-intents/adapter-KEY --gold GOLD [--objective dpo] [--keep]

The adapter is one that `potstill train` finished; its dataset (found by its manifest) holds the pairs. The second phase
is trained from it just as `train.then` would, then both answer the same rows: the sealed test split and, apart from it,
the validation split (by which the phase chose its weights: its figures flatter). Settings were fixed before the test
rows were read; `--quick` takes the first 600 rows of the test split by hash of their conversation.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.rows import HeldOut, read_held_out
from potstill import chat, models
from potstill.completers import CompletionRequest
from potstill.completers.transformers import TransformersCompleter
from potstill.contract import Contract
from potstill.dataset import read_examples
from potstill.intervals import Resampling, decide, estimate, paired_difference
from potstill.manifest import Manifest, read_manifest
from potstill.progress import track
from potstill.records import Example
from potstill.stage import Shared
from potstill.tasks import Task
from training.fit import make_student, then_plan
from training.run import Settings, resolved_quantization
from training.scoring import Scorer
from training.then import Then, learn_judged, read_judged

from .lines import read_lines
from .record import WORK, Record, arguments

HARM = 0.02  # what the phase may cost at the lower end of the interval
QUICK_ROWS = 600


@dataclass(frozen=True)
class Start:
    """A finished adapter folder with what it was made from."""

    folder: Path
    manifest: Manifest
    dataset: Path
    base: Path
    contract: Contract

    @property
    def task(self) -> Task:
        return self.contract.make_task()


def main() -> int:
    """Train the phase, answer, compare; returns the exit code."""
    args = parsed()
    models.prepare_torch()
    start = read_start(args.adapter)
    record = Record("preferences", quick=args.quick, packages=("torch", "transformers", "peft"))
    out = WORK / "preferences"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)

    began = time.perf_counter()
    learn(record, start, then_of(args), args, out)
    record.figure("time of the phase, evaluations included", time.perf_counter() - began, "s")
    test = read_held_out(
        start.dataset, args.gold, start.task, max_rows=QUICK_ROWS if args.quick else None, seed=args.seed
    )
    gold = {each["id"]: each["answer"] for each in read_lines(args.gold)}
    validation = read_examples(start.dataset, "validation")
    for name, examples, answers in (
        ("test", test.examples, parsed_gold(test)),
        ("validation", validation, {each.id: start.task.from_gold(gold[each.id]).value for each in validation}),
    ):
        compare(record, start, out, name, [each for each in examples if each.id in answers], answers, args.seed)
    return record.finish(as_json=args.json, keep=args.keep)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = arguments(__doc__)
    parser.add_argument("--adapter", type=Path, required=True, help="a finished adapter folder (adapter-KEY)")
    parser.add_argument("--gold", type=Path, required=True, help="JSON lines {id, answer}, gzip")
    parser.add_argument("--objective", choices=("dpo", "kto"), default="dpo")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--sft-weight", type=float, default=0.0, help="dpo: adds the chosen answer's cross-entropy")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def then_of(args: argparse.Namespace) -> Then:
    """The phase that the command line asks for, as a recipe would write it."""
    values = {name: getattr(args, name) for name in ("objective", "beta", "learning_rate", "epochs")}
    return Then(**values | ({"sft_weight": args.sft_weight} if args.objective == "dpo" else {}))


def read_start(folder: Path) -> Start:
    """The adapter folder, its files checked against its manifest."""
    manifest = read_manifest(folder, "adapter")
    dataset = Path(manifest.input("dataset").path)
    return Start(folder, manifest, dataset, Path(manifest.facts["base"]["path"]), Contract.read(folder))


def learn(record: Record, start: Start, then: Then, args: argparse.Namespace, out: Path) -> None:
    """Train the second phase from the adapter; the result stands in `out/adapter`."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    known = {name: value for name, value in used(start.manifest).items() if name in Settings.model_fields}
    settings = Settings(**known | {"then": then, "seed": args.seed})
    tokenizer = chat.load_tokenizer(start.folder / "tokenizer")
    judged = read_judged(then, tokenizer, start.dataset, settings.window, settings.seed)
    model = make_student(settings, start.base, resolved_quantization(settings))
    weights = load_file(start.folder / "adapter" / "adapter_model.safetensors")
    refused: Any = set_peft_model_state_dict(model, weights)
    assert not refused.unexpected_keys, refused.unexpected_keys
    shared = Shared("preferences", start.contract.task, str(start.base), WORK, "")
    validation = read_examples(start.dataset, "validation")
    score = Scorer(shared, model, tokenizer, validation, settings.score_rows, start.contract)
    facts = learn_judged(then, judged, model, then_plan(settings), out, settings, score)
    model.save_pretrained(out / "adapter")
    record.figure("pairs or answers learnt from", facts["train"], "")
    record.figure("steps", facts["steps"], "")
    record.figure("preference loss, first", facts["preference_loss_first"], facts["preference_loss_on"])
    record.figure("preference loss, best", facts["preference_loss_best"], facts["preference_loss_on"])
    if "reward_accuracy" in facts:
        low, high = facts["reward_accuracy_low"], facts["reward_accuracy_high"]
        record.figure(
            "reward accuracy, held out", [low, facts["reward_accuracy"], high], f"{facts['validation']}, Wilson 95 %"
        )
    if facts["best_checkpoint_step"] == 0:
        record.note("no evaluation was better than the start: after is before")
    record.note(f"train.then: {then.model_dump_json(exclude_unset=True)}; left out: {facts['left_out']}")


def used(manifest: Manifest) -> dict[str, Any]:
    """The settings that the adapter was trained with."""
    found: dict[str, Any] = manifest.settings_used.get("settings", manifest.settings_used)
    return found


def compare(
    record: Record, start: Start, out: Path, name: str, examples: Sequence[Example], gold: dict[str, Any], seed: int
) -> None:
    """Both adapters' answers to the same rows against gold: the figures of each and the paired difference."""
    task, metric = start.task, start.task.metrics[0]
    clusters = [each.conversation for each in examples]
    how = Resampling(seed=seed)
    scores = {}
    for when, folder in (("before", start.folder / "adapter"), ("after", out / "adapter")):
        texts = answers(start, folder, examples, f"{name}, {when}")
        parsed_texts = zip(examples, texts, strict=True)
        scores[when] = [task.score(task.parse(text, each.tools).value, gold[each.id]) for each, text in parsed_texts]
        found = estimate(metric, scores[when], clusters, how)
        assert found is not None
        record.figure(f"{name} {metric.name}, {when}", [found.low, found.value, found.high], f"{found.n} rows, 95 %")
    difference = paired_difference(metric, scores["after"], scores["before"], clusters, how)
    assert difference is not None
    shown = [difference.low, difference.value, difference.high]
    record.figure(f"{name} {metric.name}, after - before", shown, f"+{difference.wins} -{difference.losses} rows, 95 %")
    if name == "test":
        record.check("test, after - before: lower end", difference.low, at_least=-HARM)
        record.note(f"test: {decide(difference, HARM).verdict}: {decide(difference, HARM).reason}")


def answers(start: Start, adapter: Path, examples: Sequence[Example], what: str) -> list[str]:
    """Greedy answers under the task's constraint, as evaluation asks an adapter."""
    completer = TransformersCompleter(start.base, adapter, start.folder / "tokenizer")
    requests = [
        CompletionRequest(
            each.id,
            each.messages,
            each.tools,
            max_tokens=start.contract.max_tokens,
            stop=tuple(start.contract.stop),
            constraint=start.task.constraint(),
        )
        for each in examples
    ]
    return [each.text for each in track(completer.complete(requests), what, len(requests))]


def parsed_gold(rows: HeldOut) -> dict[str, Any]:
    """Gold values by row id."""
    if rows.source != "gold":
        raise SystemExit("the gold file fits no row of the dataset")
    return rows.gold


if __name__ == "__main__":
    raise SystemExit(main())

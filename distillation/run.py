"""Distil: traffic -> dataset.

In:  logs of exchanges (`sources`), one JSON object a line, gzip or not, globs, any fsspec address.
Out: `dataset-<key>/` with train, validation and sealed test rows, the rejected rows with reasons, and a data card.
Run: `potstill distill RECIPE`
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from potstill.dataset import SEALED, write_examples
from potstill.errors import DamagedInput, NothingLearned, RecipeError
from potstill.manifest import Input
from potstill.models import base_input
from potstill.progress import say, track
from potstill.prompt import PromptRule, find_rule, instructions, sha256_text
from potstill.recipe import PathText, Section
from potstill.records import Example, Exchange, Json
from potstill.redaction import KINDS, Kind, Redactor
from potstill.stage import Noun, Shared, Upstream

from .card import data_card
from .choose import feedback_refusal, matches, to_example
from .duplicates import near_duplicates, prompt_text
from .lengths import row_lengths
from .read import Damaged, read_exchanges, source_inputs
from .rejections import Rejections
from .split import Division, Split, divide, leakage, representatives

NOUN: Noun = "dataset"
NEEDS: tuple[Noun, ...] = ()
Originals = dict[tuple[str, str], set[str]]
Share = Annotated[float, Field(ge=0, lt=1)]


class Source(Section):
    """One log. `openai_pairs` is what the server captures: request and response in OpenAI's form, a line each."""

    format: Literal["openai_pairs"] = "openai_pairs"
    path: PathText


class Where(Section):
    """Rows whose dotted keys have these values, such as `metadata.split: test`; a list means any of them."""

    where: dict[str, Any]


class Select(Section):
    """Which exchanges count. `scores` are minimums by feedback name, such as `task_success: 1.0`."""

    where: dict[str, Any] = Field(default_factory=dict)
    scores: dict[str, float] = Field(default_factory=dict)


class Corrections(Section):
    """What corrections do. `train_on: corrected` learns and validates on those rows alone; `weight` repeats them."""

    use: bool = True
    train_on: Literal["all", "corrected"] = "all"
    weight: Annotated[float, Field(ge=1, le=20)] = 1.0


class Redact(Section):
    """Kinds of personal data to replace; `region` is where national telephone numbers are read as (ISO 3166)."""

    kinds: tuple[Kind, ...] = KINDS
    region: Annotated[str, Field(pattern="^[A-Z]{2}$")] = "US"


class SplitSettings(Section):
    """Shares of all rows, or where the log has recorded the split."""

    test: Share | Where = 0.2
    validation: Share | Where = 0.05
    seed: int = 0


class Settings(Section):
    """Section `distill` of a recipe."""

    sources: Annotated[list[Source], Field(min_length=1)]
    prompt: Literal["keep", "internalise"] = "internalise"
    select: Select = Select()
    corrections: Corrections = Corrections()
    redact: Redact = Redact()
    split: SplitSettings = SplitSettings()
    near_duplicate_threshold: Annotated[float, Field(gt=0.3, le=1)] = 0.9
    damaged_limit: Annotated[float, Field(ge=0, le=1)] = 0.01


def inputs(settings: Settings, shared: Shared) -> list[Input]:
    """The log files and the base (whose tokenizer measures the rows), by content."""
    return [*source_inputs([each.path for each in settings.sources]), base_input(shared.base_model)]


def main(settings: Settings, shared: Shared, upstream: Upstream, out: Path) -> Json:
    """Make the dataset; raises DamagedInput past the damage limit and NothingLearned when no row is left."""
    rejected, steps = Rejections(), Counter[str]()
    redactor = Redactor(settings.redact.kinds, settings.redact.region)

    originals: Originals = {}
    exchanges = read_redacted(settings, redactor, rejected, steps, originals)
    chosen = choose(settings, exchanges, rejected, steps)
    rule = find_rule((e.messages for e in chosen), originals) if settings.prompt == "internalise" else PromptRule()
    examples, refusals = make_examples(settings, shared, chosen, rule, steps)
    clusters = near_duplicates([prompt_text(each.messages) for each in examples], settings.near_duplicate_threshold)
    division = split_rows(settings, chosen, examples, clusters)
    leaks = leakage(examples, clusters, division)
    splits = settle(settings, examples, refusals, clusters, division, rejected, steps)
    return write(shared, out, splits, rejected, rule, leaks, steps, redactor)


def read_redacted(
    settings: Settings, redactor: Redactor, rejected: Rejections, steps: Counter[str], originals: Originals
) -> list[Exchange]:
    """Every readable line with personal data replaced; damaged lines are kept aside, redacted too.

    `originals` collects the hashes of instructions that redaction changed, so that serving can tell live ones.
    """
    exchanges: dict[str, Exchange] = {}
    for found in track(read_exchanges([each.path for each in settings.sources]), "read and redact", unit="lines"):
        steps["lines"] += 1
        if isinstance(found, Damaged):
            steps["damaged" if found.damaged else "feedback without its exchange"] += 1
            rejected.add_line(found, redactor.text(found.text))
        elif found.id in exchanges:
            rejected.add(found.id, "read", "id seen before", redactor.exchange(found.to_json()))
        else:
            exchanges[found.id] = redacted = Exchange.from_json(redactor.exchange(found.to_json()))
            for before, after in zip(instructions(found.messages), instructions(redacted.messages), strict=True):
                if before != after:
                    originals.setdefault(after, set()).add(sha256_text(before[1]))
    if steps["damaged"] > settings.damaged_limit * steps["lines"]:
        raise DamagedInput(
            f"{steps['damaged']:,} of {steps['lines']:,} lines are damaged, more than damaged_limit "
            f"{settings.damaged_limit:.1%}; the first: {rejected.first_damaged()}; mend the log or raise the limit"
        )
    if steps["damaged"]:
        say(f"{steps['damaged']:,} damaged lines kept aside, the first: {rejected.first_damaged()}")
    steps["exchanges"] = len(exchanges)
    return list(exchanges.values())


def choose(settings: Settings, exchanges: list[Exchange], rejected: Rejections, steps: Counter[str]) -> list[Exchange]:
    """Selection by metadata and feedback."""
    chosen = []
    for each in exchanges:
        if not matches(each, settings.select.where):
            rejected.add(each.id, "select", "not selected by select.where", each.to_json())
        elif reason := feedback_refusal(each, settings.select.scores):
            rejected.add(each.id, "select", reason, each.to_json())
        else:
            chosen.append(each)
    steps["selected"] = len(chosen)
    return chosen


def make_examples(
    settings: Settings, shared: Shared, chosen: list[Exchange], rule: PromptRule, steps: Counter[str]
) -> tuple[list[Example], dict[int, str]]:
    """A row an exchange, and for each row that teaches nothing (an invalid answer, say) the reason."""
    task = shared.task()
    corrections = settings.corrections
    examples: list[Example] = []
    refusals: dict[int, str] = {}
    for row, exchange in enumerate(chosen):
        example, refusal = to_example(
            exchange, task, rule, use_corrections=corrections.use, correction_weight=corrections.weight
        )
        examples.append(example)
        if refusal:
            refusals[row] = refusal
    steps["valid"] = len(examples) - len(refusals)
    steps["corrected"] = sum(each.corrected for each in examples)
    if not steps["valid"]:
        raise NothingLearned(
            f"no row of {steps['lines']:,} lines can be learnt from; the first reason: "
            f"{next(iter(refusals.values()), 'nothing was selected')}; mend the task or the selection"
        )
    return examples, refusals


def split_rows(
    settings: Settings, exchanges: Sequence[Exchange], examples: Sequence[Example], clusters: Sequence[int]
) -> Division:
    """The division into splits, recorded or by share."""
    shares: dict[Split, float | Where] = {"test": settings.split.test, "validation": settings.split.validation}
    wanted = {name: value for name, value in shares.items() if isinstance(value, Where)}
    recorded: list[Split | None] = []
    for each in exchanges:
        named = next((name for name, where in wanted.items() if matches(each, where.where)), None)
        recorded.append(named or ("train" if "test" in wanted else None))
    return divide(
        examples,
        clusters,
        recorded,
        test=settings.split.test if isinstance(settings.split.test, float) else 0.0,
        validation=settings.split.validation if isinstance(settings.split.validation, float) else 0.0,
        seed=settings.split.seed,
    )


def settle(
    settings: Settings,
    examples: Sequence[Example],
    refusals: Mapping[int, str],
    clusters: Sequence[int],
    division: Division,
    rejected: Rejections,
    steps: Counter[str],
) -> dict[Split, list[Example]]:
    """The rows of each split. Training and validation lose what teaches nothing and near-duplicates of kept rows;
    the test split stays as it came."""
    left_out = [(row, "split", reason) for row, reason in division.left_out]
    splits: dict[Split, list[Example]] = {"test": [replace(examples[r], cluster=clusters[r]) for r in division.test]}
    for name, rows in (("train", division.train), ("validation", division.validation)):
        left_out += [(r, "validate", refusals[r]) for r in rows if r in refusals]
        rows = [r for r in rows if r not in refusals]
        if settings.corrections.train_on == "corrected":
            left_out += [
                (r, "choose", "not corrected (corrections.train_on)") for r in rows if not examples[r].corrected
            ]
            rows = [r for r in rows if examples[r].corrected]
        weights, twins = representatives(examples, rows, clusters)
        left_out += [(row, "fold", reason) for row, reason in twins]
        splits[name] = [replace(examples[r], cluster=clusters[r], weight=w) for r, w in weights.items()]  # type: ignore[index]
    for row, step, reason in sorted(left_out):
        rejected.add(examples[row].id, step, reason, examples[row].as_row())
    steps.update({f"in {name}": len(rows) for name, rows in splits.items()})
    if not splits["train"] or not splits["test"]:
        raise RecipeError(
            [
                f"distill.split: {len(splits['train'])} training and {len(splits['test'])} test rows; both need some: "
                "change split.test or select"
            ]
        )
    return splits


def write(
    shared: Shared,
    out: Path,
    splits: dict[Split, list[Example]],
    rejected: Rejections,
    rule: PromptRule,
    leaks: Json,
    steps: Counter[str],
    redactor: Redactor,
) -> Json:
    """Splits, rejections and card; the facts go to the manifest. Fails on any leak."""
    if any(leaks.values()):
        raise DamagedInput(f"splits overlap: {leaks}; this is a fault of the splitter, please report it")
    for name, rows in splits.items():
        write_examples(out / (SEALED if name == "test" else Path(f"{name}.parquet")), rows)
    rejected.write(out / "rejections.parquet")
    facts: Json = {
        "rows": {name: len(rows) for name, rows in splits.items()},
        "read": {"lines": steps["lines"], "damaged": steps["damaged"]},
        "steps": dict(steps),
        "rejections": rejected.reasons(),
        "redacted": dict(redactor.found.most_common()),
        "prompt_rule": rule.to_json(),
        "leakage": leaks,
        "lengths": row_lengths(shared, splits),
    }
    card = data_card(shared.name, facts, splits, facts["lengths"])
    (out / "card.md").write_text(card, encoding="utf-8")
    say(f"dataset: {json.dumps(facts['rows'])}; card at {out / 'card.md'}")
    return facts

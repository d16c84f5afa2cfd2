"""Distil: traffic -> dataset.

In:  logs of exchanges (`sources`) in any of the known formats, compressed or not, globs, any fsspec address.
Out: `dataset-<key>/` with train, validation and sealed test rows, the rejected rows with reasons, and a data card.
Run: `potstill distill RECIPE`
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from potstill.errors import DamagedInput, NothingLearned, RecipeError
from potstill.manifest import Input
from potstill.models import base_input
from potstill.progress import say
from potstill.prompt import PromptRule, find_rule
from potstill.recipe import Section
from potstill.records import Json
from potstill.stage import Noun, Shared, Upstream

from .card import data_card
from .choose import Corrections, Select
from .describe import DescribePlan
from .duplicates import components, near_duplicates
from .filters import Filters
from .fingerprints import bands_for
from .groups import Group
from .ingest import IngestPlan
from .lengths import row_lengths
from .passes import Logged, Work, deliver_blocks, describe_blocks, ingest_logs
from .redact import Redact
from .rejections import Rejections
from .runtime import runtime_of
from .sources import Source, check_sources, open_logs, source_inputs
from .split import TWIN, TWIN_OF_TEST, Split, divide, leakage
from .verdicts import OWN_FILTER, OWN_REFUSAL, Verdicts, fold, seen_before

NOUN: Noun = "dataset"
NEEDS: tuple[Noun, ...] = ()
SAMPLE_BYTES = 32 * 2**20  # of the sources, looked at for standing prompts; a smaller log is looked at whole
Share = Annotated[float, Field(ge=0, lt=1)]


class Where(Section):
    """Rows whose dotted keys have these values, such as `metadata.split: test`; a list means any of them."""

    where: dict[str, Any]


class SplitSettings(Section):
    """Each of test and validation is a share of the rows, or what the log itself recorded."""

    test: Share | Where = 0.2
    validation: Share | Where = 0.05
    group: tuple[Group, ...] = ()
    seed: int = 0

    def shares(self) -> tuple[tuple[Split, float | Where], ...]:
        return ("test", self.test), ("validation", self.validation)


class Duplicates(Section):
    """Jaccard similarity of character 5-grams from which two prompts are one; and what the row that stays weighs.

    `weight: count` repeats it as often as the log had it, at most `most` times; `one` does not.
    """

    threshold: Annotated[float, Field(gt=0.3, le=1)] = 0.9
    weight: Literal["one", "count"] = "count"
    most: Annotated[float, Field(ge=1, le=20)] = 3.0


class Settings(Section):
    """Section `distill`."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    prompt: Literal["keep", "internalise"] = "internalise"
    select: Select = Select()
    corrections: Corrections = Corrections()
    redact: Redact = Redact()
    filters: Filters = Filters()
    duplicates: Duplicates = Duplicates()
    split: SplitSettings = SplitSettings()
    damaged_limit: Annotated[float, Field(ge=0, le=1)] = 0.01
    runtime: Literal["local", "ray"] = "local"


def inputs(settings: Settings, shared: Shared) -> list[Input]:
    """The log files and the base (whose tokenizer measures the rows), by content."""
    check_sources(settings.sources)
    return [*source_inputs(settings.sources), base_input(shared.base_model)]


def main(settings: Settings, shared: Shared, upstream: Upstream, out: Path) -> Json:
    """Make the dataset; raises DamagedInput past the damage limit and NothingLearned when no row is left."""
    scratch = out / ".scratch"
    scratch.mkdir(parents=True)
    with runtime_of(settings.runtime) as runtime, Rejections(out / "rejections.parquet") as rejected:
        work = Work(scratch, runtime, rejected)
        logged = read_logs(settings, work)
        standing = find_rule(logged.sample, logged.originals)
        rule = standing if settings.prompt == "internalise" else PromptRule()
        rows, groups = describe_rows(settings, shared, work, logged, standing)
        clusters = find_clusters(settings, work, logged, rows)
        verdicts = split_rows(settings, rows, clusters, groups, logged)
        leaks = leakage(rows, clusters, groups, verdicts.place)
        settle(settings, work, rows, verdicts)
        deliver_blocks(work, out, logged, verdicts)
        facts = facts_of(work, verdicts, rule, leaks)
    shutil.rmtree(scratch)
    return write_card(shared, out, facts)


def read_logs(settings: Settings, work: Work) -> Logged:
    """Every readable, selected exchange, redacted, in the spool."""
    import os

    logs, companions = open_logs(settings.sources, work.scratch)
    size = sum(os.path.getsize(each.file) for each in logs if os.path.isfile(each.file))
    plan = IngestPlan(
        scratch=work.scratch,
        companions=companions,
        select=settings.select,
        redact=settings.redact,
        sample_share=min(1.0, SAMPLE_BYTES / max(size, 1)),
    )
    return ingest_logs(work, plan, logs, settings.damaged_limit)


def describe_rows(
    settings: Settings, shared: Shared, work: Work, logged: Logged, standing: PromptRule
) -> tuple[Any, list[Any]]:
    """What is known of every row; raises NothingLearned when none can be learnt from."""
    split = settings.split
    plan = DescribePlan(
        scratch=work.scratch,
        task=shared.task_definition,
        standing=standing,
        internalise=settings.prompt == "internalise",
        corrections=settings.corrections,
        filters=settings.filters,
        recorded={name: each.where for name, each in split.shares() if isinstance(each, Where)},
        groups=split.group,
        seed=split.seed,
        threshold=settings.duplicates.threshold,
    )
    rows, groups = describe_blocks(work, plan, logged)
    work.steps["valid"] = int(rows["teaches"].sum())
    work.steps["corrected"] = int(rows["corrected"].sum())
    if not work.steps["valid"]:
        raise NothingLearned(
            f"no row of {work.steps['lines']:,} lines can be learnt from; the first reason: "
            f"{first_refusal(work, logged)}; mend the task or the selection"
        )
    return rows, groups


def first_refusal(work: Work, logged: Logged) -> str:
    from .spool import read_spool

    for block in logged.blocks:
        table = read_spool(work.scratch, "rows", block, ("filtered", "refusal"))
        for row in table.to_pylist():
            if reason := row["filtered"] or row["refusal"]:
                return str(reason)
    return "nothing was selected"


def find_clusters(settings: Settings, work: Work, logged: Logged, rows: Any) -> Any:
    """For each row the smallest row number of its cluster of duplicates; shape (rows,), int64."""
    threshold = settings.duplicates.threshold
    bands, _ = bands_for(threshold)
    edges = near_duplicates(
        rows["prompt"], rows["selected"], bands, logged.places(work.scratch), threshold, work.runtime
    )
    return components(len(rows), edges)


def split_rows(settings: Settings, rows: Any, clusters: Any, groups: list[Any], logged: Logged) -> Verdicts:
    """The division into splits, recorded or by share; what was seen before or filtered is in none."""
    verdicts = Verdicts.begin(rows, clusters)
    verdicts.leave_out(seen_before(logged.ids), "read", "id seen before")
    verdicts.leave_out_for(~rows["selected"], OWN_FILTER)
    test, validation = (each if isinstance(each, float) else 0.0 for _, each in settings.split.shares())
    active = ~verdicts.left_out()
    place = divide(rows, clusters, groups, active, test=test, validation=validation)
    verdicts.place[active] = place[active]
    verdicts.leave_out(place == TWIN, "split", TWIN_OF_TEST)
    return verdicts


def settle(settings: Settings, work: Work, rows: Any, verdicts: Verdicts) -> None:
    """Training and validation lose what teaches nothing and duplicates; the test split stays as it came."""
    verdicts.leave_out_for(verdicts.learning() & ~rows["teaches"], OWN_REFUSAL)
    if settings.corrections.train_on == "corrected":
        verdicts.leave_out(verdicts.learning() & ~rows["corrected"], "choose", "not corrected (corrections.train_on)")
    verdicts.weight[rows["corrected"]] = settings.corrections.weight
    fold(verdicts, rows, rows["answer"], most=settings.duplicates.most if settings.duplicates.weight == "count" else 1)
    counts = verdicts.counts()
    work.steps.update({f"in {name}": count for name, count in counts.items()})
    if not counts["train"] or not counts["test"]:
        raise RecipeError(
            [
                f"distill.split: {counts['train']} training and {counts['test']} test rows; both need some: "
                "change split.test or select"
            ]
        )


def facts_of(work: Work, verdicts: Verdicts, rule: PromptRule, leaks: Json) -> Json:
    """What the manifest and the card say of the dataset. Fails on any leak."""
    if any(leaks.values()):
        raise DamagedInput(f"splits overlap: {leaks}; this is a fault of the splitter, please report it")
    steps = work.steps
    return {
        "rows": verdicts.counts(),
        "read": {"lines": steps["lines"], "damaged": steps["damaged"]},
        "steps": dict(steps),
        "rejections": work.rejected.reasons(),
        "redacted": dict(work.found.most_common()),
        "prompt_rule": rule.to_json(),
        "leakage": leaks,
        "seconds": {step: round(cpu, 3) for step, cpu in work.seconds.items()},
    }


def write_card(shared: Shared, out: Path, facts: Json) -> Json:
    """The data card beside the splits; gives the facts with the rows' lengths."""
    facts["lengths"] = row_lengths(shared, out)
    (out / "card.md").write_text(data_card(shared.name, facts, out), encoding="utf-8")
    say(f"dataset: {json.dumps(facts['rows'])}; card at {out / 'card.md'}")
    return facts

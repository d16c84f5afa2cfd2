"""Distil: traffic -> dataset.

In:  logs of exchanges (`sources`) in any of the known formats, compressed or not, globs, any fsspec address.
Out: `dataset-<key>/` with train, validation and sealed test rows, the rejected rows with reasons, and a data card.
Run: `potstill distill RECIPE`
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from potstill.errors import DamagedInput, NothingLearned, RecipeError
from potstill.forgetting.suppressed import FOLDER, Suppressed, suppressed, suppressed_digest
from potstill.manifest import Input, sha256_file
from potstill.models import base_input
from potstill.progress import say
from potstill.prompt import PromptRule, find_rule
from potstill.recipe import Section
from potstill.records import Json
from potstill.redaction import redaction_key
from potstill.stage import Noun, Shared, Upstream

from .audit.settings import Audit
from .boilerplate import Boilerplate
from .card import data_card
from .choose import Corrections, Select
from .decontaminate import Decontaminate
from .describe import DescribePlan
from .duplicates import components, near_duplicates, semantic_edges
from .filters import Filters
from .fingerprints import bands_for
from .groups import Group
from .ingest import IngestPlan
from .lengths import row_lengths
from .mend import ask_again, audit_teacher, write_audit
from .passes import Logged, Rows, Work, deliver_blocks, describe_blocks, ingest_logs
from .poisoning import Poisoning
from .redact import Redact
from .rejections import Rejections
from .relabel import Relabel
from .runtime import runtime_of
from .sample import Budget
from .samples import Samples
from .semantic import Semantic
from .settle import (
    against_poison,
    decontaminate,
    learn_whole,
    leave_boilerplate_out,
    spend_budget,
    write_judged,
)
from .sources import Source, check_sources, open_logs, source_inputs
from .split import TWIN, TWIN_OF_TEST, Split, divide, leakage, record_newest
from .spool import forget_spool
from .turns import Turns
from .verdicts import OWN_FILTER, OWN_REFUSAL, Verdicts, fold, seen_before

NOUN: Noun = "dataset"
NEEDS: tuple[Noun, ...] = ()
NOTHING_FORGOTTEN = Suppressed()
SAMPLE_BYTES = 32 * 2**20  # of the sources, looked at for standing prompts; a smaller log is looked at whole
Share = Annotated[float, Field(ge=0, lt=1)]


class Chosen(Section):
    """Rows whose dotted keys have these values (`where: {metadata.split: test}`; a list means any of them), or the
    newest rows by the log's own time (`newest: 0.2`): how well the past foretells the present.

    Rows that hang together with test rows (conversation, user, near-duplicate) are left out of training.
    """

    where: dict[str, Any] | None = None
    newest: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Chosen:
        if (self.where is None) == (self.newest is None):
            raise ValueError("expected either where or newest")
        return self


class SplitSettings(Section):
    """Each of test and validation is a share of the rows, what the log itself recorded, or its newest rows."""

    test: Share | Chosen = 0.2
    validation: Share | Chosen = 0.05
    group: tuple[Group, ...] = ()
    seed: int = 0

    def share(self, split: Split) -> float:
        """The share of a split that is drawn, 0 for one that is chosen."""
        given = self.test if split == "test" else self.validation
        return given if isinstance(given, float) else 0.0

    def recorded(self) -> dict[str, Mapping[str, Any]]:
        """What rows of a split look like in the log, where it was recorded."""
        return {name: each.where for name, each in self._chosen() if each.where is not None}

    def newest(self) -> dict[Split, float]:
        """How many of the newest rows a split is."""
        return {name: each.newest for name, each in self._chosen() if each.newest is not None}

    def _chosen(self) -> list[tuple[Split, Chosen]]:
        given: tuple[tuple[Split, float | Chosen], ...] = ("test", self.test), ("validation", self.validation)
        return [(name, each) for name, each in given if isinstance(each, Chosen)]


class Duplicates(Section):
    """Jaccard similarity of character 5-grams from which two prompts are one; and what the row that stays weighs.

    `weight: count` repeats it as often as the log had it, at most `most` times; `one` does not.
    """

    threshold: Annotated[float, Field(gt=0.3, le=1)] = 0.9
    weight: Literal["one", "count"] = "count"
    most: Annotated[float, Field(ge=1, le=20)] = 3.0
    semantic: Semantic = Semantic()


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
    turns: Turns = "logged"
    longest_prompt: Annotated[int, Field(ge=200)] | None = None  # characters; older turns go first
    decontaminate: Decontaminate = Decontaminate()
    poisoning: Poisoning = Poisoning()
    audit: Audit = Audit()
    relabel: Relabel | None = None
    samples: Samples = "first"  # of a teacher asked for several answers: learn the first, or all by share
    preferences: bool = True  # pairs for DPO and opinions for KTO, written beside the splits
    boilerplate: Boilerplate | None = Boilerplate()
    budget: Budget = Budget()
    damaged_limit: Annotated[float, Field(ge=0, le=1)] = 0.01
    runtime: Literal["local", "ray"] = "local"


def inputs(settings: Settings, shared: Shared) -> list[Input]:
    """The log files, the base (whose tokenizer measures the rows) and what this recipe must forget, by content."""
    check_sources(settings.sources)
    files = [each.path for each in settings.decontaminate.evaluation_files()]
    exams = [Input("evaluation file", each, sha256_file(Path(each))) for each in files]
    work = shared.work_dir.parent
    found = suppressed(work, shared.name)
    forgotten = [Input("forgotten", str(work / FOLDER), suppressed_digest(found))] if found else []
    return [*source_inputs(settings.sources), *exams, base_input(shared.base_model), *forgotten]


def main(settings: Settings, shared: Shared, upstream: Upstream, out: Path) -> Json:
    """Make the dataset; raises DamagedInput past the damage limit and NothingLearned when no row is left."""
    scratch = TemporaryDirectory(prefix=".scratch-", dir=out)  # of this run alone: a killed one may still be writing
    forget_spool()
    with scratch as folder, runtime_of(settings.runtime) as runtime, Rejections(out / "rejections.parquet") as rejected:
        work = Work(Path(folder), runtime, rejected)
        place = shared.work_dir.parent
        logged = read_logs(settings, shared.task_definition, redaction_key(place), work, suppressed(place))
        standing = find_rule(logged.sample, logged.originals)
        rule = standing if settings.prompt == "internalise" else PromptRule()
        rows = describe_rows(settings, shared, work, logged, standing)
        clusters = find_clusters(settings, work, rows)
        with work.clock.step("split"):
            verdicts = split_rows(settings, rows, clusters)
            leaks = leakage(rows.numbers, clusters, rows.groups, verdicts.place)
        facts = settle(settings, shared, work, rows, verdicts, standing, rule, out)
        deliver_blocks(work, out, rows, verdicts)
        facts |= facts_of(work, verdicts, rule, leaks)
    return write_card(shared, out, facts)


def read_logs(
    settings: Settings, task: Json, key: bytes, work: Work, forgotten: Suppressed = NOTHING_FORGOTTEN
) -> Logged:
    """Every readable, selected exchange that was not forgotten, redacted, in the spool."""
    import os

    logs, companions = open_logs(settings.sources, work.scratch)
    size = sum(os.path.getsize(each.file) for each in logs if os.path.isfile(each.file))
    plan = IngestPlan(
        scratch=work.scratch,
        companions=companions,
        select=settings.select,
        redact=settings.redact,
        key=key,
        sample_share=min(1.0, SAMPLE_BYTES / max(size, 1)),
        turns=settings.turns,
        task=task,
        forgotten=forgotten,
    )
    return ingest_logs(work, plan, logs, settings.damaged_limit)


def describe_rows(settings: Settings, shared: Shared, work: Work, logged: Logged, standing: PromptRule) -> Rows:
    """What is known of every row; raises NothingLearned when none can be learnt from."""
    split = settings.split
    plan = DescribePlan(
        scratch=work.scratch,
        task=shared.task_definition,
        standing=standing,
        internalise=settings.prompt == "internalise",
        corrections=settings.corrections,
        filters=settings.filters,
        recorded=split.recorded(),
        groups=split.group,
        seed=split.seed,
        threshold=settings.duplicates.threshold,
        turns=settings.turns,
        longest_prompt=settings.longest_prompt,
        samples=settings.samples,
    )
    rows = describe_blocks(work, plan, logged)
    work.steps["valid"] = int(rows.numbers["teaches"].sum())
    work.steps["corrected"] = int(rows.numbers["corrected"].sum())
    if not work.steps["valid"]:
        raise NothingLearned(
            f"no row of {work.steps['lines']:,} lines can be learnt from; the first reason: "
            f"{first_refusal(work, logged)}; mend the task or the selection"
        )
    return rows


def first_refusal(work: Work, logged: Logged) -> str:
    from .spool import read_spool

    for block in logged.blocks:
        table = read_spool(work.scratch, "rows", block, ("filtered", "refusal"))
        for row in table.to_pylist():
            if reason := row["filtered"] or row["refusal"]:
                return str(reason)
    return "nothing was selected"


def find_clusters(settings: Settings, work: Work, rows: Rows) -> Any:
    """For each row the smallest row number of its cluster of duplicates; shape (rows,), int64."""
    numbers, threshold, semantic = rows.numbers, settings.duplicates.threshold, settings.duplicates.semantic
    bands, _ = bands_for(threshold)
    places = rows.places(work.scratch)
    with work.clock.step("duplicates"):
        edges = near_duplicates(
            numbers["prompt"], numbers["selected"], bands, places, threshold, work.runtime, work.clock.seconds
        )
        if semantic.enabled:
            edges.append(semantic_edges(numbers["selected"], places, semantic))
        return components(rows.size, edges)


def split_rows(settings: Settings, rows: Rows, clusters: Any) -> Verdicts:
    """The division into splits, recorded or by share; what was seen before or filtered is in none."""
    verdicts = Verdicts.begin(rows.numbers, clusters)
    verdicts.leave_out(seen_before(rows.ids), "read", "id seen before")
    verdicts.leave_out_for(~rows.numbers["selected"], OWN_FILTER)
    active = ~verdicts.left_out()
    split = settings.split
    if newest := split.newest():
        record_newest(rows.numbers, active, newest)
    place = divide(
        rows.numbers, clusters, rows.groups, active, test=split.share("test"), validation=split.share("validation")
    )
    placed = active & (place != TWIN)
    verdicts.place[placed] = place[placed]
    verdicts.leave_out(place == TWIN, "split", TWIN_OF_TEST)
    return verdicts


def settle(
    settings: Settings,
    shared: Shared,
    work: Work,
    rows: Rows,
    verdicts: Verdicts,
    standing: PromptRule,
    rule: PromptRule,
    out: Path,
) -> Json:
    """What is learnt of every row in training and validation, and what is not; the test split stays as it came."""
    task = shared.task()
    decontaminate(settings.decontaminate, settings.redact, work, rows, verdicts)
    facts: Json = {"poisoning": against_poison(settings.poisoning, task, work, rows, verdicts), "preferences": None}
    if settings.preferences:
        with work.clock.step("preferences"):
            facts["preferences"] = write_judged(out, task, rule, work, rows, verdicts)
    if settings.turns == "whole":
        learn_whole(rows, verdicts)
    verdicts.leave_out_for(rows.numbers["down"], OWN_FILTER)
    with work.clock.step("audit"):
        audited = audit_teacher(settings.audit, task, standing, work, rows, verdicts)
    facts["audit"], facts["audit_card"] = audited.facts, list(audited.card)
    facts["relabel"] = ask_again(settings.relabel, task, audited, work, rows, verdicts, shared.work_dir / "relabel")
    if settings.samples == "first":
        verdicts.samples.clear()
    write_audit(audited, out)
    verdicts.leave_out_for(verdicts.learning() & ~rows.numbers["teaches"], OWN_REFUSAL)
    if settings.corrections.train_on == "corrected":
        left = verdicts.learning() & ~rows.numbers["corrected"]
        verdicts.leave_out(left, "choose", "not corrected (corrections.train_on)")
    leave_boilerplate_out(settings.boilerplate, task, rows, verdicts)
    verdicts.weight[rows.numbers["corrected"]] = settings.corrections.weight
    most = settings.duplicates.most if settings.duplicates.weight == "count" else 1
    with work.clock.step("fold"):
        fold(verdicts, rows.numbers, rows.numbers["answer"], most=most, samples=settings.samples)
    spend_budget(settings.budget, work, rows, verdicts)
    refuse_empty(work, verdicts)
    return facts


def refuse_empty(work: Work, verdicts: Verdicts) -> None:
    """Count what is left; raises RecipeError when training or test has no row."""
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
    steps, counts = work.steps, verdicts.counts()
    counts["train"] += steps["further samples"]
    return {
        "rows": counts,
        "read": {"lines": steps["lines"], "damaged": steps["damaged"]},
        "steps": dict(steps),
        "rejections": work.rejected.reasons(),
        "redacted": dict(work.found.most_common()),
        "prompt_rule": rule.to_json(),
        "leakage": leaks,
        "seconds": {step: round(cpu, 3) for step, cpu in work.clock.seconds.items()},
    }


def write_card(shared: Shared, out: Path, facts: Json) -> Json:
    """The data card beside the splits; gives the facts with the rows' lengths."""
    facts["lengths"] = row_lengths(shared, out)
    (out / "card.md").write_text(data_card(shared.name, facts, out), encoding="utf-8")
    say(f"dataset: {json.dumps(facts['rows'])}; card at {out / 'card.md'}")
    return facts

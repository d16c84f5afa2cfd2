"""Soft targets of rows: from what a service logged of its answers, or from an open teacher that is asked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.errors import NothingLearned
from potstill.logprobs import AnswerLogprobs
from potstill.manifest import sha256_json
from potstill.progress import say
from potstill.records import Example, Json

from ..alignment import Vocabulary, aligned, as_targets, same_vocabulary
from ..distil import Distil
from ..rows import Row
from ..soft_targets import nothing, stack
from ..target_store import TargetStore
from ..teacher import Teacher, asked_in_full, drawn_targets, written_logprobs


class Logged:
    """Targets from log-probabilities by token (`logprobs.parquet` of the dataset), whatever the vocabulary."""

    def __init__(
        self, logged: Mapping[str, AnswerLogprobs], tokenizer: Any, *, least_usable: float, of: str = "the log"
    ) -> None:
        self.logged, self.tokenizer, self.least_usable, self.of = logged, tokenizer, least_usable, of

    def targets(self, rows: Sequence[Row], vocabulary: int, folder: Path) -> tuple[TargetStore, Json]:
        """Raises NothingLearned when fewer of the answers' tokens than `least_usable` have a target."""
        known = Vocabulary.of(self.tokenizer)
        parts, usable, tokens = [], 0, 0
        for row in rows:
            start, end = row.answer
            answer = row.token_ids[start:end]
            found = self.logged.get(row.id)
            made = aligned(answer, found, known) if found is not None else [None] * len(answer)
            usable += sum(each is not None for each in made)
            tokens += sum(known.text(each) is not None for each in answer)
            before = sum(last - first for first, last in row.learnt if last <= start)
            after = row.supervised_tokens - before - len(answer)
            parts += [nothing(before), as_targets(made), nothing(after)]
        share = usable / max(tokens, 1)
        say(f"soft targets: {usable:,} of {tokens:,} answer tokens ({share:.0%}), from {self.of}")
        if share < self.least_usable:
            raise NothingLearned(
                f"train.distil: {self.of} gives soft targets for {share:.0%} of the answers' tokens, fewer than "
                f"least_usable {self.least_usable:.0%}: {self._why(rows)}; lower least_usable, name a "
                "train.distil.teacher that shares the student's vocabulary, or use objective: sft"
            )
        store = TargetStore.of(rows, stack(parts), vocabulary)
        return store, {"usable_share": round(share, 4), "tokens": tokens, "size_bytes": store.size_bytes}

    def _why(self, rows: Sequence[Row]) -> str:
        missing = sum(row.id not in self.logged for row in rows)
        if missing * 2 > len(rows):
            return f"{missing:,} of {len(rows):,} rows have no log-probabilities"
        return "its tokens end in other places than the student's"


class Asked:
    """Targets from an open teacher. One that shares the vocabulary is asked about the student's very tokens."""

    def __init__(
        self,
        teacher: Teacher,
        settings: Distil,
        tokenizer: Any,
        examples: Sequence[Example],
        *,
        micro_tokens: int,
        seed: int,
    ) -> None:
        self.teacher, self.settings, self.tokenizer, self.examples = teacher, settings, tokenizer, examples
        self.micro_tokens, self.seed = micro_tokens, seed

    def targets(self, rows: Sequence[Row], vocabulary: int, folder: Path) -> tuple[TargetStore, Json]:
        """What a person corrected keeps its hard labels: the teacher would argue for its own answer."""
        own = self.teacher.tokenizer
        corrected = {each.id for each in self.examples if each.corrected}
        asked = [row for row in rows if row.id not in corrected]
        self._refuse_little(rows, asked, len(corrected))
        if not same_vocabulary(self.tokenizer, own):
            return self._of_another_vocabulary(own, rows, vocabulary, corrected, folder)
        key = self._key(asked)
        store = TargetStore.read(folder, key)
        if store is None:
            store = TargetStore.of(asked, self._drawn(asked, own), vocabulary)
            store.write(folder, key)
        facts = {
            "usable_share": round(len(store.counts) / max(sum(row.supervised_tokens for row in rows), 1), 4),
            "tokens": len(store.counts),
            "size_bytes": store.size_bytes,
        }
        return store, facts | {"teacher": self.teacher.digest}

    def _refuse_little(self, rows: Sequence[Row], asked: Sequence[Row], corrected: int) -> None:
        share = sum(row.supervised_tokens for row in asked) / max(sum(row.supervised_tokens for row in rows), 1)
        if not asked:
            raise NothingLearned(
                f"train.distil: there is nothing to ask the teacher about: all of {len(rows):,} answers were corrected "
                "by a person and keep what they say; use objective: sft"
            )
        if share < self.settings.least_usable:
            raise NothingLearned(
                f"train.distil: the teacher gives soft targets for {share:.0%} of the answers' tokens, expected at "
                f"least {self.settings.least_usable:.0%} (least_usable): {corrected:,} answers were corrected by a "
                "person and keep what they say; lower least_usable, or use objective: sft"
            )

    def _drawn(self, rows: Sequence[Row], own: Any) -> Any:
        settings = self.settings
        full = settings.prompt == "full" or (settings.prompt == "auto" and self.teacher.adapter is None)
        say(f"asking the teacher about {len(rows):,} rows (once; kept until the run is done)")
        return drawn_targets(
            self.teacher.load(),
            asked_in_full(rows, self.examples, own) if full else rows,
            self.micro_tokens,
            head=settings.head,
            draws=settings.draws,
            proposal=settings.proposal,
            temperature=settings.temperature,
            seed=self.seed,
        )

    def _of_another_vocabulary(
        self, own: Any, rows: Sequence[Row], vocabulary: int, corrected: set[str], folder: Path
    ) -> tuple[TargetStore, Json]:
        """Top tokens by their bytes: draws are of no use where only tokens that both have can be targets."""
        wanted = {row.id for row in rows} - corrected
        examples = [each for each in self.examples if each.id in wanted and each.learn == "answer"]
        if not examples:
            raise NothingLearned(
                f"train.distil.teacher: none of {len(wanted):,} rows can be asked of a teacher of another vocabulary: "
                "it is asked about single answers, not whole conversations (distill.turns); take a teacher of the "
                "student's family, or use objective: sft"
            )
        logged = written_logprobs(self.teacher.load(), own, examples, self.micro_tokens, max(self.settings.head, 1))
        of = "a teacher of another vocabulary"
        source = Logged(logged, self.tokenizer, least_usable=self.settings.least_usable, of=of)
        store, facts = source.targets(rows, vocabulary, folder)
        return store, facts | {"teacher": self.teacher.digest}

    def _key(self, rows: Sequence[Row]) -> str:
        """What the targets depend on, in a few digits."""
        settings = self.settings
        drawn = [settings.head, settings.draws, settings.proposal, settings.temperature, settings.prompt, self.seed]
        return sha256_json([self.teacher.digest, drawn, [[row.id, row.token_ids] for row in rows]])[:16]

"""Where a teacher's tokens say something about the student's: the same vocabulary, or the same bytes in the same place.

The k-th token of the student's answer begins at some byte of it. Where one of the teacher's tokens begins at that very
byte, what the teacher thought likeliest there are continuations of the same text, and each of them that is one token
of the student's vocabulary is a target. Where it does not, or where the token that the student has to write is not
among them (it ends elsewhere), the position keeps its hard label alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.logprobs import AnswerLogprobs, TokenLogprobs

from .soft_targets import NO_TOKEN, SoftTargets

Candidates = dict[int, float]  # probability by token id of the student


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The bytes of the student's tokens (special tokens, which stand for no text, are none)."""

    bytes_of: tuple[bytes | None, ...]
    id_of: Mapping[bytes, int]

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabulary:
        """Read off a byte-level or sentencepiece tokenizer by what each token decodes to."""
        special = set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids)
        names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        found = tuple(None if at in special else _bytes(name) for at, name in enumerate(names))
        return cls(found, {each: at for at, each in reversed(list(enumerate(found))) if each})

    def text(self, token: int) -> bytes | None:
        """The bytes of a token; None for one without, also for ids that a model has beyond its tokenizer's."""
        return self.bytes_of[token] if token < len(self.bytes_of) else None


def _byte_level() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes (Radford et al. 2019): printable ones are themselves, others follow 256."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [each for each in range(256) if each not in plain]
    return {chr(each): each for each in plain} | {chr(256 + at): each for at, each in enumerate(others)}


_STAND_INS = _byte_level()


def _bytes(name: str | None) -> bytes | None:
    if name is None:
        return None
    if "\u2581" in name:  # sentencepiece writes spaces so
        return name.replace("\u2581", " ").encode()
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes([int(name[3:5], 16)])
    if all(each in _STAND_INS for each in name):
        return bytes(_STAND_INS[each] for each in name)
    return name.encode()


def same_vocabulary(student: Any, teacher: Any) -> bool:
    """Whether two tokenizers give the same ids to the same tokens (their templates may differ)."""
    return bool(student.get_vocab() == teacher.get_vocab())


def aligned(answer: Sequence[int], logged: AnswerLogprobs, vocabulary: Vocabulary) -> list[Candidates | None]:
    """For each token of the student's answer the targets that the teacher's log gives it, None where it gives none.

    Tokens that stand for no text (the end of the turn) have none; so has everything where the texts differ.
    """
    starts, at = [], 0
    for token in answer:
        starts.append(at)
        at += len(vocabulary.text(token) or b"")
    text = b"".join(vocabulary.text(token) or b"" for token in answer)
    if logged.text[logged.start : logged.start + len(text)] != text:
        return [None] * len(answer)
    by_start: dict[int, TokenLogprobs] = {}
    place = -logged.start
    for each in logged.tokens:
        if each.token:
            by_start[place] = each
        place += len(each.token)
    return [
        _candidates(by_start.get(start), token, vocabulary) if vocabulary.text(token) else None
        for start, token in zip(starts, answer, strict=True)
    ]


def _candidates(found: TokenLogprobs | None, wanted: int, vocabulary: Vocabulary) -> Candidates | None:
    """Probabilities of the candidates that are one token of the student's; the wanted one must be among them."""
    import math

    if found is None:
        return None
    known = {vocabulary.id_of.get(token, NO_TOKEN): math.exp(logprob) for token, logprob in found.candidates().items()}
    known.pop(NO_TOKEN, None)
    return known if wanted in known else None


def as_targets(rows: Sequence[Candidates | None]) -> SoftTargets:
    """Candidates as tensors; the mass of all that is not named is the rest."""
    import torch

    most = max((len(each) for each in rows if each), default=1)
    ids = torch.full((len(rows), most), NO_TOKEN)
    weights, rest = torch.zeros((len(rows), most)), torch.zeros(len(rows))
    for at, each in enumerate(rows):
        if each:
            ids[at, : len(each)] = torch.tensor(list(each))
            weights[at, : len(each)] = torch.tensor(list(each.values()))
            rest[at] = max(0.0, 1.0 - sum(each.values()))
    return SoftTargets(ids, weights, rest)

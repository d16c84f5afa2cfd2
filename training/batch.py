"""A micro-batch as tensors, and the scores of what is learnt in it.

The rows stand behind each other as one sequence of T tokens without padding; those that begin alike may have their
common tokens computed once (beginnings.py), so that C tokens go through the model. Only the hidden states in front of a
learnt token are multiplied with the vocabulary: N of them, in chunks that are computed again in the backward pass
rather than kept, since [N, vocabulary] is the largest tensor of training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .attention import rows_apart
from .beginnings import tree_of
from .fused import target_scores
from .packing import Unit

CHUNK = 1024  # learnt tokens whose logits stand in memory at once


@dataclass(frozen=True, slots=True)
class Batch:
    """T tokens of R rows, C of them computed, N of them learnt.

    input_ids, position_ids [1, C]; places [T]: the computed token of each token of the rows, empty where C is T;
    learnt_at [N]: the place (of C) of the hidden state that predicts the token; targets [N]: the token; row_of [N]:
    its row (0 .. R-1); weights [N]: its weight.
    """

    units: tuple[Unit, ...]
    input_ids: Tensor
    position_ids: Tensor
    row_lengths: tuple[int, ...]
    places: tuple[int, ...]
    learnt_at: Tensor
    targets: Tensor
    row_of: Tensor
    weights: Tensor

    @classmethod
    def of(cls, units: Sequence[Unit], device: str = "cpu", share: bool = False) -> Batch:
        """The units' rows; with `share` tokens of common beginnings are computed once (see `shares`)."""
        rows = [row for unit in units for row in unit.rows]
        ids = [token for row in rows for token in row.token_ids]
        positions = [at for row in rows for at in range(len(row.token_ids))]
        learnt_at: list[int] = []
        row_of: list[int] = []
        weights: list[float] = []
        start = 0
        for number, row in enumerate(rows):
            for first, end in row.learnt:
                learnt_at += range(start + first - 1, start + end - 1)
                row_of += [number] * (end - first)
            weights += row.token_weights()
            start += len(row.token_ids)

        def on(values: Any, kind: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=kind, device=device)

        targets = [ids[at + 1] for at in learnt_at]
        places: tuple[int, ...] = ()
        if share and (tree := tree_of(row.token_ids for row in rows)).shares:
            ids, positions, places = tree.token_ids, tree.positions, tree.places
            learnt_at = [places[at] for at in learnt_at]
        return cls(
            tuple(units),
            on([ids], torch.long),
            on([positions], torch.long),
            tuple(len(row.token_ids) for row in rows),
            places,
            on(learnt_at, torch.long),
            on(targets, torch.long),
            on(row_of, torch.long),
            on(weights, torch.float32),
        )

    @property
    def rows(self) -> int:
        return len(self.row_lengths)

    @property
    def computed_share(self) -> tuple[int, int]:
        """C and T: what a figure of the computed share of tokens is the mean of."""
        return self.input_ids.shape[1], sum(self.row_lengths)

    def row_sums(self, scores: Tensor) -> Tensor:
        """[R]: scores [N] of the learnt tokens summed by row."""
        return scores.new_zeros(self.rows).index_add(0, self.row_of, scores)


def inner_of(model: Any) -> Any:
    """The transformers model inside a peft model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def shares(model: Any) -> bool:
    """Whether a model is to compute common beginnings of rows once (beginnings.share)."""
    return bool(getattr(inner_of(model), "potstill_shares", False))


def logit_scale(config: Any) -> float:
    """What a model multiplies its head's output with: Cohere's `logit_scale`; Granite divides by `logits_scaling`."""
    scaling = getattr(config, "logits_scaling", None)
    if scaling:
        return float(scaling if config.model_type.startswith("hyperclovax") else 1 / scaling)
    return float(getattr(config, "logit_scale", None) or 1)


TokenScores = Callable[[Tensor, Batch, slice], Tensor]


def target_log_probs(logits: Tensor, batch: Batch, at: slice) -> Tensor:
    """[n]: log-probability of each learnt token; logits [n, vocabulary] in float32."""
    targets = batch.targets[at]
    return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def token_scores(model: Any, batch: Batch, scores: TokenScores = target_log_probs) -> tuple[Tensor, int]:
    """[N] scores of the learnt tokens, differentiable, and how many of them are the model's first choice."""
    inner = inner_of(model)
    with rows_apart(inner, batch.row_lengths, batch.places) as rows:
        hidden = (
            inner.get_decoder()(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                use_cache=False,
                **rows,
            )
            .last_hidden_state[0]
            .index_select(0, batch.learnt_at)
        )
    head = inner.get_output_embeddings()
    config = inner.config.get_text_config()
    scale, softcap = logit_scale(config), getattr(config, "final_logit_softcapping", None)
    fused = getattr(inner, "potstill_fused", False) and scores is target_log_probs and scale == 1 and not softcap
    hits = 0

    def chunk(part: Tensor, at: slice) -> Tensor:
        nonlocal hits
        logits = head(part)
        if fused:
            found, first = target_scores(logits, batch.targets[at])
            hits += int(first.sum())
            return found
        logits = logits.float()
        if scale != 1:
            logits = logits * scale
        if softcap:
            logits = torch.tanh(logits / softcap) * softcap
        hits += int((logits.detach().argmax(-1) == batch.targets[at]).sum())
        return scores(logits, batch, at)

    count = hidden.shape[0]
    if count <= CHUNK:
        return chunk(hidden, slice(0, count)), hits
    made = [
        torch.utils.checkpoint.checkpoint(chunk, hidden[a:b], slice(a, b), use_reentrant=False)
        for a, b in pairwise([*range(0, count, CHUNK), count])
    ]
    found = hits  # counted before the backward pass runs the chunks again
    return torch.cat(made), found

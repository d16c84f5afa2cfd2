"""Attention inside rows that stand behind each other without padding.

A micro-batch is one sequence of T tokens; `row_lengths` says where its rows end. Rows of like length are put into a
bucket, padded to its longest, and attended to as batched matrix products. On a CPU that is several times faster than
scaled_dot_product_attention with a mask over the whole sequence: its kernel multiplies what the mask then hides, and
its backward pass costs as much for 48 keys as for 300. Rows longer than LONG go through it all the same: there it wins.

Rows may share beginnings, whose tokens are computed once (beginnings.py): every row still attends as a whole, to keys
and values that are those of several rows, and whose gradients are summed over these in float32.

transformers calls `rows_attention` by the name NAME for every architecture that it knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from .fused import packed

NAME = "potstill_rows"
FLASH = "flash_attention_2"  # transformers' name of it
LONG = 256  # tokens: from here on the fused kernel is at least as fast and needs no square of memory


@dataclass(frozen=True, slots=True)
class Bucket:
    """`rows` rows padded to `length`, standing at `start` of the padded order."""

    start: int
    rows: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.rows * self.length


@dataclass(frozen=True, slots=True)
class Layout:
    """`take` [P] gives the token of each padded place (a row's last one for padding); `place` [C] is its inverse.

    Of a token that stands in several rows, `place` is that in the first one, and `all_places` and `firsts` give those
    in all of them: token c's begin at all_places[firsts[c]]. Both are None where no row shares its beginning.
    """

    buckets: tuple[Bucket, ...]
    take: Tensor
    place: Tensor
    all_places: Tensor | None = None
    firsts: Tensor | None = None

    def summed(self, padded: Tensor) -> Tensor:
        """[C, ...] of [P, ...]: what stands at a token's places, summed (in float32) where there are several."""
        if self.all_places is None:
            return padded.index_select(0, self.place)
        return _sums(padded, self.all_places, self.firsts)


def _sums(x: Tensor, places: Tensor, firsts: Tensor | None) -> Tensor:
    """[C, ...] of x [P, ...]: for token c the sum of x at places[firsts[c] : firsts[c + 1]], added up in float32."""
    flat = x.reshape(x.shape[0], -1)
    flat = flat.float() if x.dtype.itemsize < 4 else flat
    found = torch.nn.functional.embedding_bag(places, flat, firsts, mode="sum")
    return found.to(x.dtype).view(-1, *x.shape[1:])


def _every_place(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Where each token c stands in `tokens`, token after token, and where token c's places begin."""
    order = torch.argsort(tokens, stable=True)
    counts = torch.bincount(tokens)
    return order, counts.cumsum(0) - counts


@lru_cache(maxsize=4)
def layout_of(row_lengths: tuple[int, ...], device: str, places: tuple[int, ...] = ()) -> Layout:
    """Rows by length, a new bucket where padding to the longest would cost more than an eighth.

    `places`: the computed token of each token of the rows, where they share beginnings.
    """
    starts = [0]
    for length in row_lengths:
        starts.append(starts[-1] + length)
    order = sorted(range(len(row_lengths)), key=lambda at: -row_lengths[at])
    groups: list[list[int]] = []
    for at in order:
        if groups and row_lengths[at] * 9 >= row_lengths[groups[-1][0]] * 8:
            groups[-1].append(at)
        else:
            groups.append([at])
    buckets, take = [], list[int]()
    place = [0] * starts[-1]
    for group in groups:
        length = row_lengths[group[0]]
        buckets.append(Bucket(len(take), len(group), length))
        for at in group:
            own = row_lengths[at]
            place[starts[at] : starts[at] + own] = range(len(take), len(take) + own)
            take += [*range(starts[at], starts[at] + own), *[starts[at] + own - 1] * (length - own)]
    padded, stands = torch.tensor(take, device=device), torch.tensor(place, device=device)
    if not places:
        return Layout(tuple(buckets), padded, stands)
    computed = torch.tensor(places, device=device)
    rows_first, firsts = _every_place(computed)
    every = stands[rows_first]
    return Layout(tuple(buckets), computed[padded], every[firsts], every, firsts)


def _unseen(length: int, window: int, device: str, asked: int) -> Tensor:
    """[asked, L], true where one of the last queries must not look: later tokens, those `window` or more before it."""
    at = torch.arange(length, device=device)
    distance = at[length - asked :, None] - at[None, :]
    return (distance < 0) | (distance >= window)


@lru_cache(maxsize=64)
def _hidden(length: int, window: int, device: str) -> Tensor:
    """[L, L] for every query of a row."""
    return _unseen(length, window, device, length)


class _RowsAttention(torch.autograd.Function):
    """softmax(q k^T * scale) v for each row alone; q [C, H, D], k and v [C, K, D] with H a multiple of K."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float, window: int) -> Tensor:
        heads, size = q.shape[1], q.shape[2]
        padded = q.new_empty(layout.take.numel(), heads, size)
        taken = [each.index_select(0, layout.take) for each in (q, k, v)]
        kept = []
        for bucket in layout.buckets:
            queries, keys, values = (_rows(each, bucket, k.shape[1]) for each in taken)
            scores = torch.matmul(queries, keys.transpose(1, 2)).float().mul_(scale)
            scores.view(-1, bucket.length, bucket.length).masked_fill_(
                _hidden(bucket.length, window, str(q.device)), -math.inf
            )
            weights = torch.softmax(scores, -1).to(q.dtype)
            _put(torch.matmul(weights, values), padded, bucket, k.shape[1])
            kept += [queries, keys, values, weights]
        ctx.save_for_backward(*kept)
        ctx.layout, ctx.scale, ctx.kv_heads, ctx.shapes = layout, scale, k.shape[1], (q.shape, k.shape)
        return padded.index_select(0, layout.place)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        layout, scale = ctx.layout, ctx.scale
        (_, heads, size), (_, kv_heads, _) = ctx.shapes
        places = layout.take.numel()
        padded = grad.new_zeros(places, heads, size).index_copy_(0, layout.place, grad)
        dq, dk, dv = (grad.new_empty(places, n, size) for n in (heads, kv_heads, kv_heads))
        saved = ctx.saved_tensors  # once: recomputed activations are given out a single time
        for at, bucket in enumerate(layout.buckets):
            queries, keys, values, weights = saved[4 * at : 4 * at + 4]
            out = _rows(padded, bucket, kv_heads)
            _put(torch.matmul(weights.transpose(1, 2), out), dv, bucket, kv_heads)
            to_weights = torch.matmul(out, values.transpose(1, 2))
            to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype).mul_(scale)
            _put(torch.matmul(to_scores, keys), dq, bucket, kv_heads)
            _put(torch.matmul(to_scores.transpose(1, 2), queries), dk, bucket, kv_heads)
        return dq.index_select(0, layout.place), layout.summed(dk), layout.summed(dv), None, None, None


def _rows(padded: Tensor, bucket: Bucket, kv_heads: int) -> Tensor:
    """A bucket of [P, heads, D] as [rows * kv heads, heads of a kv head * L, D]."""
    part = padded[bucket.start : bucket.end]
    split = part.view(bucket.rows, bucket.length, kv_heads, -1, part.shape[-1])
    return split.permute(0, 2, 3, 1, 4).reshape(bucket.rows * kv_heads, -1, part.shape[-1])


def _put(found: Tensor, padded: Tensor, bucket: Bucket, kv_heads: int) -> None:
    """The inverse of `_rows`."""
    split = found.view(bucket.rows, kv_heads, -1, bucket.length, found.shape[-1])
    padded[bucket.start : bucket.end].view(bucket.rows, bucket.length, kv_heads, -1, found.shape[-1]).copy_(
        split.permute(0, 3, 1, 2, 4)
    )


class _Spread(torch.autograd.Function):
    """[T, ...] of x [C, ...]: each row's tokens, of which several may be the same computed one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: SharedRows) -> Tensor:
        ctx.rows = rows
        return x.index_select(0, rows.computed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _sums(grad, ctx.rows.order, ctx.rows.firsts), None


def _bucketed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_lengths: tuple[int, ...],
    scale: float,
    window: int,
    places: tuple[int, ...] = (),
) -> Tensor:
    """Rows of like length together: q [C, H, D] -> [C, H, D]."""
    layout = layout_of(row_lengths, str(q.device), places)
    return _RowsAttention.apply(q, k, v, layout, scale, window)  # type: ignore[no-any-return, no-untyped-call]


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int, mask: Tensor | None = None) -> Tensor:
    """One row by the library's kernel: for rows whose square would not stay in the cache.

    q may be of the row's end alone, whose `mask` then says what it sees.
    """
    queries, keys, values = (each.transpose(0, 1)[None] for each in (q, k, v))
    length = keys.shape[2]
    if mask is None and window < length:
        mask = ~_hidden(length, window, str(q.device))
    found = torch.nn.functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
    )
    return found[0].transpose(0, 1)


def _mixed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_lengths: tuple[int, ...],
    scale: float,
    window: int,
    places: tuple[int, ...] = (),
) -> Tensor:
    """Long rows by the library's kernel, the short ones between them in buckets: q [C, H, D] -> [C, H, D].

    What a row has in common with one before it is answered there: of each row its end counts, the tokens it brings.
    """
    if not places:
        whole, keys, values = (torch.split(each, list(row_lengths)) for each in (q, k, v))
        return torch.cat(_mixed_rows(whole, keys, values, scale, window))
    rows = shared_rows(row_lengths, places, str(q.device))
    whole, keys, values = (torch.split(_Spread.apply(each, rows), list(row_lengths)) for each in (q, k, v))  # type: ignore[no-untyped-call]
    masks = _masks_of_ends(row_lengths, rows.brought, window, str(q.device), q.dtype)
    asked = [row[len(row) - rows.brought[at] :] if at in masks else row for at, row in enumerate(whole)]
    found = _mixed_rows(asked, keys, values, scale, window, masks)
    return torch.cat([each[len(each) - count :] for each, count in zip(found, rows.brought, strict=True)])


def _mixed_rows(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    scale: float,
    window: int,
    masks: Mapping[int, Tensor] = MappingProxyType({}),
) -> list[Tensor]:
    """Of each row what its queries see, in order; a row with a mask asks for its end alone."""
    lengths = [len(each) for each in keys]
    short = [at for at, length in enumerate(lengths) if length <= LONG]
    out: dict[int, Tensor] = {}
    if short:
        sizes = tuple(lengths[at] for at in short)
        asked, seen, said = (torch.cat([each[at] for at in short]) for each in (queries, keys, values))
        found = _bucketed(asked, seen, said, sizes, scale, min(window, max(sizes)))
        out = dict(zip(short, torch.split(found, list(sizes)), strict=True))
    for at, row in enumerate(zip(queries, keys, values, strict=True)):
        if at not in out:
            out[at] = _fused(*row, scale, window, masks.get(at))
    return [out[at] for at in range(len(lengths))]


@dataclass(frozen=True, slots=True, eq=False)
class SharedRows:
    """Rows that share beginnings: `computed` [T], the computed token of each of theirs, and `brought`, how many tokens
    each row brings that none before it has: its last ones. Token c stands at order[firsts[c]] and behind."""

    computed: Tensor
    order: Tensor
    firsts: Tensor
    brought: tuple[int, ...]


@lru_cache(maxsize=4)
def shared_rows(row_lengths: tuple[int, ...], places: tuple[int, ...], device: str) -> SharedRows:
    computed = torch.tensor(places, device=device)
    brought, known, end = [], 0, 0
    for length in row_lengths:
        end += length
        brought.append(max(0, places[end - 1] + 1 - known))  # tokens are numbered in the order of the rows
        known += brought[-1]
    return SharedRows(computed, *_every_place(computed), tuple(brought))


@lru_cache(maxsize=2)
def _masks_of_ends(
    row_lengths: tuple[int, ...], brought: tuple[int, ...], window: int, device: str, dtype: torch.dtype
) -> dict[int, Tensor]:
    """For each long row that brings less than half of its tokens the mask [brought, L] of these, to be added.

    For more a mask costs more than the queries that it saves. The same for all layers, which keep it for their
    backward pass: as what the kernel adds, it stands in memory once.
    """
    masks = {}
    for at, (length, count) in enumerate(zip(row_lengths, brought, strict=True)):
        if length > LONG and 0 < 2 * count < length:
            added = torch.zeros(count, length, dtype=dtype, device=device)
            masks[at] = added.masked_fill_(_unseen(length, window, device, count), -math.inf)
    return masks


def rows_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    row_lengths: tuple[int, ...] = (),
    row_places: tuple[int, ...] = (),
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, H, C, D], key and value [1, K, C, D] -> [1, C, H, D].

    `row_lengths` (summing to T) comes through the model's keyword arguments, and where rows share beginnings
    `row_places`, the computed token of each of theirs [T]; else T is C. Dropout in attention is not done.
    """
    if not row_lengths:
        raise ValueError("the model's layers do not hand row_lengths on to its attention")
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    longest = max(row_lengths)
    window = min(sliding_window or longest, longest)
    attend = _mixed if longest > LONG else _bucketed
    return attend(q, k, v, row_lengths, scale, window, row_places)[None], None


@contextmanager
def rows_apart(model: Any, row_lengths: tuple[int, ...], places: tuple[int, ...] = ()) -> Iterator[dict[str, Any]]:
    """Within, the model attends inside rows, called with the arguments given; outside, as it was loaded.

    By `rows_attention`, or by the attention that the model's `potstill_rows` names, one for rows of different lengths
    that share no beginnings (`places`, see beginnings.py).
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, rows_attention)
    chosen = getattr(model, "potstill_rows", NAME)
    arguments: dict[str, Any] = {"row_lengths": row_lengths, "row_places": places}
    if chosen != NAME:
        assert not places, f"{chosen} takes whole rows"
        ends = torch.tensor(row_lengths, device=model.device).cumsum(0, dtype=torch.int32)
        starts = torch.nn.functional.pad(ends, (1, 0))
        arguments = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts}
        arguments |= dict.fromkeys(("max_length_q", "max_length_k"), max(row_lengths))
    configs = [model.config, model.config.get_text_config()]
    before = [each._attn_implementation for each in configs]
    for each in configs:
        each._attn_implementation = chosen
    try:
        with packed(model):
            yield arguments
    finally:
        for each, name in zip(configs, before, strict=True):
            each._attn_implementation = name

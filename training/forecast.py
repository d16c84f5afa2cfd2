"""What a recipe's training would need, before anything is loaded: memory by part, the way chosen for a card, steps.

Used by `potstill check` and `potstill train --dry-run`; a probe of three real steps (probe.py) adds time and cost.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from potstill.errors import PotstillError
from potstill.free_memory import free_bytes
from potstill.gguf_layout import EXPORTED_FAMILIES
from potstill.known_bases import KNOWN
from potstill.manifest import read_manifest, write_atomically
from potstill.model_shape import ModelShape, shape_of
from potstill.progress import say
from potstill.records import Json
from potstill.stage import Shared

from . import processes
from .beginnings import computed_tokens
from .distil import is_adapter
from .memory import BF16, REFERENCE_TOKENS, Loss, StepPlan, described
from .memory_choice import Choice, card_bytes, choose, larger
from .packing import Stream, Unit, micro_batches

if TYPE_CHECKING:
    from .rows import Tokenised
    from .run import Settings
    from .then import Judged

ASSUMED_LEARNT_SHARE = 0.25  # of the tokens, as long as no dataset says it: chat rows lie between 0.1 and 0.4
CHOSEN = "way.json"
ROOM = 1.5  # times the bf16 copy of an NF4 base: what else a step needs stands beside it
CPU_MICRO_TOKENS = 4096  # on a CPU larger products are no faster
WALKED = 2_000_000  # tokens whose common beginnings are counted: seconds
COUNTED_ROWS = 4_000_000  # rows whose steps are counted one by one: seconds


@dataclass(frozen=True, slots=True)
class Way:
    """How a step is done: quantisation of the base, recomputing of activations, tokens a micro-batch.

    On a CPU also whether loops are compiled (fused.py), and whether an NF4 base has a copy in bf16.
    """

    quantization: Literal["none", "nf4"]
    checkpointing: bool
    micro_tokens: int
    fused: bool = False
    copied: bool = True


def forecast(
    settings: Settings,
    shared: Shared,
    rows: Tokenised | None = None,
    held: Tokenised | None = None,
    judged: Judged | None = None,
) -> Json:
    """Memory by part (bytes) and what would be chosen; with rows, also steps. `memory` is None for an unknown base.

    `choice` is None on a CPU, where nothing needs to be chosen. With `train.then` the memory is that of the `phase`
    which takes more.
    """
    found: Json = {"base_model": shared.base_model, "shape": None, "memory": None, "choice": None, "exports": None}
    known = KNOWN.get(shared.base_model)
    found["licence"] = known.licence if known else None
    shape = None
    try:
        shape = shape_of(shared.base_model)
    except PotstillError as fault:
        found["why_no_memory"] = str(fault)
    if shape is not None:
        card = card_bytes(settings.gpu_memory_gib)
        device: Literal["cpu", "cuda"] = "cpu" if card is None else "cuda"
        first = plan_of(settings, rows, held, device)
        then = then_plan_of(settings, first, judged)
        found["shape"] = shape.to_json()
        if card is None:
            plan, found["memory"] = larger(shape, [first, *([then] if then else [])])
        else:
            chosen = choose_for(settings, shape, first, card, then)
            plan = chosen.plan
            found["choice"] = chosen.to_json() | {"text": chosen.to_text()}
            found["memory"] = chosen.parts
        found["plan"], found["phase"] = described(plan), "then" if plan.reference_tokens else "first"
        found["exports"] = shape.family in EXPORTED_FAMILIES and not shape.other_parameters
    return found | steps_of(settings, rows, judged)


def plan_of(
    settings: Settings, rows: Tokenised | None, held: Tokenised | None, device: Literal["cpu", "cuda"]
) -> StepPlan:
    """The step that the settings describe, before anything is chosen for a card."""
    most = settings.micro_tokens or (CPU_MICRO_TOKENS if device == "cpu" else settings.batch_tokens)
    lengths = [len(row.token_ids) for row in rows.rows] if rows else [settings.window]
    together = max(processes.count(), settings.devices)
    tokens = max(min(-(-settings.batch_tokens // together), most), max(lengths))
    shared = 0
    if rows and device == "cpu":
        tokens, shared = _largest_micro_batch(settings, units_of(rows), settings.batch_tokens, tokens)
    share = rows.supervised_tokens / max(rows.tokens, 1) if rows else ASSUMED_LEARNT_SHARE
    full = settings.method == "full"
    asked = settings.objective == "logits" and settings.distil.teacher is not None
    asked_at_once = min(settings.micro_tokens or CPU_MICRO_TOKENS, rows.tokens if rows else CPU_MICRO_TOKENS)
    return StepPlan(
        device=device,
        micro_tokens=tokens if settings.packing else max(lengths),
        supervised_tokens=round(tokens * share),
        adapter="full" if full else "dora" if settings.lora.variant == "dora" else "lora",
        rank=settings.lora.rank,
        quantization="nf4" if settings.quantization == "nf4" and not full else "none",
        checkpointing=settings.activation_checkpointing == "on",
        row_tokens=round(sum(length * length for length in lengths) / max(sum(lengths), 1)),
        longest_row=max(lengths),
        shared_tokens=shared,
        held_tokens=min(most, held.tokens) if held else 0,
        optimizer="paged_8bit" if settings.optimizer == "paged_adamw_8bit" else "adamw",
        shards=together if settings.shard == "full" else 1,
        loss=_loss(settings),
        teacher_parameters=_teacher_parameters(settings),
        asked_tokens=round(asked_at_once * share) if asked else 0,
        asked_row=max(row.supervised_tokens for row in rows.rows) if rows else round(settings.window * share),
    )


def then_plan_of(settings: Settings, first: StepPlan, judged: Judged | None) -> StepPlan | None:
    """The step of the second phase, None where there is none: pairs are not cut, and a reference is asked before.

    Before there is a dataset, answers are taken to fill the window.
    """
    then = settings.then
    if then is None:
        return None
    most = settings.micro_tokens or (CPU_MICRO_TOKENS if first.device == "cpu" else settings.batch_tokens)
    together = max(processes.count(), settings.devices)
    batch = then.batch_tokens or settings.batch_tokens
    lengths = [settings.window] * (2 if then.objective == "dpo" else 1)
    unit, share, held, asked = sum(lengths), ASSUMED_LEARNT_SHARE, 0, REFERENCE_TOKENS
    if judged is not None:
        rows = [row for each in judged.units for row in each.rows]
        lengths, unit = [len(row.token_ids) for row in rows], max(each.tokens for each in judged.units)
        share = sum(row.supervised_tokens for row in rows) / max(sum(lengths), 1)
        held, asked = min(most, sum(each.tokens for each in judged.held)), judged.reference_tokens
    tokens = max(min(-(-batch // together), most), unit)
    shared = 0
    if judged is not None and first.device == "cpu":
        tokens, shared = _largest_micro_batch(settings, judged.units, batch, tokens)
    tokens = tokens if settings.packing else unit
    return replace(
        first,
        micro_tokens=tokens,
        supervised_tokens=round(tokens * share),
        row_tokens=round(sum(length * length for length in lengths) / max(sum(lengths), 1)),
        longest_row=max(lengths),
        largest_unit=unit,
        shared_tokens=shared,
        held_tokens=held,
        reference_tokens=max(min(REFERENCE_TOKENS, asked), max(lengths)),
        loss="answers",
        teacher_parameters=0 if first.asked_tokens else first.teacher_parameters,
        asked_tokens=0,
    )


def units_of(rows: Tokenised) -> list[Unit]:
    """Each row alone: what the first phase learns from."""
    return [Unit(row.id, (row,)) for row in rows.rows]


def _loss(settings: Settings) -> Loss:
    if settings.objective == "on_policy":
        return "mixture" if 0 < settings.distil.beta < 1 else "divergence"
    return "soft_targets" if settings.objective == "logits" else "answers"


def _largest_micro_batch(settings: Settings, units: Sequence[Unit], step_tokens: int, most: int) -> tuple[int, int]:
    """Tokens of the largest micro-batch of the first epoch, and how many of them common beginnings save.

    Long rows, which stay whole, leave their steps unfilled. The one of which most is computed need not be the largest:
    smaller ones are looked at until they cannot be it, or WALKED tokens have been.
    """
    most = most if settings.packing else 1
    stream = Stream(units, seed=settings.seed, step_tokens=step_tokens)
    steps = (stream.step(at) for at in range(stream.steps))
    micros = [(sum(unit.tokens for unit in micro), micro) for step in steps for micro in micro_batches(step, most)]
    micros.sort(key=lambda found: -found[0])
    tokens = micros[0][0]
    drops = settings.method != "full" and settings.lora.dropout
    if drops or settings.objective == "on_policy" or processes.count() > 1:  # other answers, other parts of a step
        return tokens, 0
    computed = walked = 0
    for size, micro in micros:
        if size <= computed:
            break
        computed = max(computed, computed_tokens(micro) if walked < WALKED else size)
        walked += size
    return tokens, tokens - computed


def _teacher_parameters(settings: Settings) -> int:
    """Of an open teacher; 0 where its shape is not known."""
    spec = settings.distil.teacher
    if settings.objective == "sft" or spec is None:
        return 0
    try:
        if is_adapter(spec):
            spec = str(read_manifest(Path(spec), "adapter", verify=False).facts["base"]["spec"])
        shape = shape_of(spec)
    except PotstillError:
        return 0
    return 0 if shape is None else shape.parameters


def choose_for(
    settings: Settings, shape: ModelShape, plan: StepPlan, card: int, then: StepPlan | None = None
) -> Choice:
    """What these settings leave open, chosen for a card with so many bytes; both phases go the same way."""
    allowed: tuple[Literal["none", "nf4"], ...] = ("none", "nf4")
    if settings.method != "qlora":
        allowed = ("none",)
    if settings.quantization != "auto" and settings.method != "full":
        allowed = (settings.quantization,)
    again = {"auto": (False, True), "on": (True,), "off": (False,)}[settings.activation_checkpointing]
    return choose(
        shape,
        plan,
        card,
        batch_tokens=plan.micro_tokens,
        longest_row=plan.longest_row if settings.micro_tokens is None else plan.micro_tokens,
        quantizations=allowed,
        checkpointings=again,
        then=then,
    )


def way_here(
    settings: Settings,
    base: Path,
    rows: Tokenised,
    held: Tokenised,
    quantization: Literal["none", "nf4"],
    folder: Path,
    judged: Judged | None = None,
) -> Way:
    """How the steps are done on this machine; says what was chosen for a GPU, and when it will not fit.

    `quantization` is what the settings mean where there is nothing to choose by. What was chosen stands in `folder`:
    a run that goes on does so in the same way, however much of the card others have taken meanwhile.
    """
    plain = Way(quantization, settings.activation_checkpointing == "on", settings.micro_tokens or CPU_MICRO_TOKENS)
    chosen_before = folder / CHOSEN
    if chosen_before.is_file():
        return Way(**json.loads(chosen_before.read_text()))
    card = card_bytes(None)
    if card is None:
        copied = quantization == "none" or not can_be_copied(settings) or room_for_copy(base)
        way = replace(plain, fused=fused_here(settings, rows), copied=copied)
        keep_way(chosen_before, way)
        return way
    try:
        shape = shape_of(str(base))
    except PotstillError as fault:
        say(f"nothing is chosen by the memory of the GPU: {fault}")
        return plain
    assert shape is not None  # a base that was resolved is a folder
    first = plan_of(settings, rows, held, "cuda")
    chosen = choose_for(settings, shape, first, card, then_plan_of(settings, first, judged))
    say(chosen.to_text())
    way = Way(chosen.quantization, chosen.checkpointing, chosen.micro_tokens)
    keep_way(chosen_before, way)
    return way


def keep_way(place: Path, way: Way) -> None:
    """Write down what was chosen, for a run that goes on."""
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, json.dumps(asdict(way)).encode())


def can_be_copied(settings: Settings) -> bool:
    """Whether the adapter is one whose NF4 base lean.py can hold in bf16; says so of the others."""
    if settings.lora.variant != "dora" and settings.lora.dropout == 0:
        return True
    say("nf4: dequantised anew at every use, which is slower: DoRA and dropout know no copy in bf16")
    return False


def room_for_copy(base: Path) -> bool:
    """Whether a bf16 copy of an NF4 base fits beside it: on a CPU dequantising at every use costs more than memory."""
    try:
        shape = shape_of(str(base))
    except PotstillError:
        shape = None
    free = free_bytes()
    need = ROOM * BF16 * shape.linear_parameters * processes.count() if shape else 0
    if free is None or free >= need:
        say("nf4: dequantised once into bf16, the values stay NF4's: on a CPU memory is dearer saved than used")
        return True
    say(
        f"nf4: dequantised anew at every use, which is slower: its copy in bf16, and room to work in, need "
        f"{need / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free"
    )
    return False


def fused_here(settings: Settings, rows: Tokenised) -> bool:
    """Whether elementwise work is compiled on this processor (fused.py): where that is asked for, or gains time."""
    from .fused import can_compile, worth_it

    if processes.count() > 1 or settings.compile is False:
        if settings.compile is True:
            say("train.compile: not used by several processes on a CPU")
        return False
    if settings.compile is True:
        return can_compile()
    steps = settings.max_steps
    return worth_it(round(rows.tokens * settings.epochs) if steps is None else steps * settings.batch_tokens)


def steps_of(settings: Settings, rows: Tokenised | None, judged: Judged | None = None) -> Json:
    """Steps of the training, those of `then` apart, and tokens of both; a forward pass alone counts them by half.

    As many as training makes: by the same order and the same packing.
    """
    if rows is None:
        return {"tokens": None, "steps": settings.max_steps, "then": None}
    seed, batch = settings.seed, settings.batch_tokens
    steps, tokens = counted(units_of(rows), seed, batch, settings.epochs, settings.max_steps)
    if judged is None or settings.then is None:
        return {"tokens": tokens, "steps": steps, "then": None}
    then = settings.then
    then_steps, learnt = counted(judged.units, seed, then.batch_tokens or batch, then.epochs, then.max_steps)
    epochs = learnt / max(sum(unit.tokens for unit in judged.units), 1)
    forward = judged.reference_tokens + round(epochs * judged.stranger_tokens)
    second = {"steps": then_steps, "tokens": learnt, "forward_tokens": forward}
    return {"tokens": tokens + learnt + forward // 2, "steps": steps, "then": second}


def counted(
    units: Sequence[Unit], seed: int, step_tokens: int, epochs: float, max_steps: int | None
) -> tuple[int, int]:
    """Steps and tokens of a phase; of very many rows those of the first epochs stand for the others."""
    known = min(epochs, max(1, COUNTED_ROWS // max(len(units), 1)))
    stream = Stream(units, seed=seed, step_tokens=step_tokens, epochs=known, max_steps=max_steps)
    scale = epochs / known if max_steps is None else 1.0
    return round(stream.steps * scale), round(stream.all_tokens * scale)


def time_and_cost(settings: Settings, tokens: int, tokens_per_second: float) -> Json:
    """Hours for `tokens` (steps alone, without evaluations and scoring) and, with a price, dollars."""
    hours = tokens / tokens_per_second / 3600
    price = settings.machine_usd_per_hour
    return {"hours": round(hours, 4), "usd": None if price is None else round(hours * price, 4)}

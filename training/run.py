"""Train: dataset -> adapter.

In:  `dataset-<key>/` (train and validation rows; the test split is sealed), a base model.
Out: `adapter-<key>/` with `adapter/` (PEFT; after `method: full` all weights in `model/`), `tokenizer/`,
     `contract.json`, `trainer_log.jsonl`, `training.svg` (of a second phase `then_log.jsonl`, `then.svg`).
Run: `potstill train RECIPE`, on several GPUs `torchrun --nproc-per-node 8 -m potstill.cli train RECIPE`; a run that was
     stopped goes on from its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from potstill import chat, models
from potstill.contract import Contract
from potstill.dataset import read_examples
from potstill.manifest import Input, read_manifest
from potstill.models import base_input, resolve_base, resolve_tokenizer
from potstill.progress import say
from potstill.recipe import Section
from potstill.records import Example, Json
from potstill.stage import Noun, Shared, Upstream
from potstill.tracking_live import live_run

from . import processes
from .distil import Distil, teacher_input
from .forecast import forecast, units_of
from .full import refuse_full
from .probe import probe as probe  # `check --probe` asks for it by this name
from .repeatable import repeatable
from .rows import Tokenised, refuse_nothing_to_learn, tokenise
from .then import Judged, Then, read_judged

NOUN: Noun = "adapter"
NEEDS: tuple[Noun, ...] = ("dataset",)
GOLDEN_ROWS = 8
SHOWN = 3  # names of rows left out, when they are said


class Lora(Section):
    """The adapter: rank, alpha (scale is alpha / rank), dropout on its input."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    alpha: Annotated[int, Field(ge=1)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    variant: Literal["lora", "rslora", "dora"] = "lora"


class Settings(Section):
    """Section `train` of a recipe. Lengths are in tokens."""

    objective: Literal["sft", "logits", "on_policy"] = "sft"
    method: Literal["qlora", "lora", "full"] = "qlora"
    quantization: Literal["auto", "none", "nf4"] = "auto"
    chat_template: Literal["auto", "base", "chatml"] = "auto"
    lora: Lora = Lora()
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 2e-4
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    epochs: Annotated[float, Field(gt=0, le=100)] = 2.0
    max_steps: Annotated[int, Field(ge=1)] | None = None
    batch_tokens: Annotated[int, Field(ge=64)] = 1024
    micro_tokens: Annotated[int, Field(ge=64)] | None = None  # None: 4,096 on a CPU, what fits on a GPU
    activation_checkpointing: Literal["auto", "on", "off"] = "auto"  # auto: on a GPU, where memory asks for it
    window: Annotated[int, Field(ge=32)] = 1024
    packing: bool = True
    evals: Annotated[int, Field(ge=1, le=100)] = 4
    score_rows: Annotated[int, Field(ge=0)] = 100
    patience: Annotated[int, Field(ge=1)] | None = None
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 5.0
    checkpoint_steps: Annotated[int, Field(ge=1)] | None = None
    rationale_weight: Annotated[float, Field(ge=0, le=10)] = 0.0
    distil: Distil = Distil()
    optimizer: Literal["adamw", "paged_adamw_8bit"] = "adamw"
    attention: Literal["rows", "flash_attention_2"] = "rows"
    kernels: Literal["none", "liger"] = "none"
    compile: Literal["auto"] | bool = "auto"  # auto: on a CPU, where the training is long; never on a GPU
    deterministic: bool = False
    shard: Literal["none", "full"] = "none"
    seed: int = 0
    then: Then | None = None
    # To plan by where no card is; they change no result, hence no folder's name.
    gpu_memory_gib: Annotated[float | None, Field(gt=0, exclude=True)] = None
    devices: Annotated[int, Field(ge=1, le=1024, exclude=True)] = 1
    machine_usd_per_hour: Annotated[float | None, Field(ge=0, exclude=True)] = None

    @model_validator(mode="after")
    def _probabilities_are_to_be_had(self) -> Settings:
        if self.objective == "on_policy" and self.distil.teacher is None:
            raise ValueError("objective on_policy asks a teacher at every step: name an open model in distil.teacher")
        if self.objective == "logits" and self.distil.teacher is None and self.distil.temperature != 1:
            raise ValueError(
                "distil.temperature other than 1 needs distil.teacher: a log has no probabilities at another one"
            )
        return self

    @model_validator(mode="after")
    def _trainable(self) -> Settings:
        if self.method == "full" and self.quantization == "nf4":
            raise ValueError(
                "method full trains every weight, and NF4 weights cannot be trained: found quantization nf4, expected "
                "none or auto (or method qlora)"
            )
        if self.method == "full" and self.shard == "full":
            raise ValueError(
                "shard full spreads frozen weights, and method full has none: found shard full, expected none"
            )
        return self


Chosen = Callable[[Settings, Tokenised, Tokenised], tuple[Settings, Tokenised, Tokenised]]


def inputs(settings: Settings, shared: Shared) -> list[Input]:
    """The base model and the teacher, where one is asked, by content."""
    found = [base_input(shared.base_model)]
    if settings.objective != "sft" and settings.distil.teacher is not None:
        found.append(teacher_input(settings.distil.teacher))
    return found


def main(settings: Settings, shared: Shared, upstream: Upstream, out: Path, choose: Chosen | None = None) -> Json:
    """Train the student; raises NothingLearned when there is nothing to learn or nothing was learnt.

    `choose` picks the training and validation rows that are used (a probe's few), and settings for them; without it
    all are.
    """
    with repeatable(settings.deterministic):
        return make_adapter(settings, shared, upstream, out, choose)


def make_adapter(settings: Settings, shared: Shared, upstream: Upstream, out: Path, choose: Chosen | None) -> Json:
    """The stage's work, from the dataset to the adapter's facts."""
    models.prepare_torch()
    processes.join()
    dataset = upstream["dataset"]
    train, validation = read_examples(dataset, "train"), read_examples(dataset, "validation")

    base = resolve_base(shared.base_model, shared.cache_dir)
    refuse_full(settings, base.path)
    if processes.first():
        lead(upstream, out)
    tokenizer = load_student_tokenizer(settings, base.path, train)
    rows = tokenise(tokenizer, train, settings.window, settings.rationale_weight)
    refuse_nothing_to_learn(rows, settings.window)
    held = tokenise(tokenizer, validation, settings.window)
    judged = judged_of(settings, tokenizer, dataset)
    say_left_out(rows, held, judged, settings.window)
    if choose is not None:
        settings, rows, held = choose(settings, rows, held)

    if processes.first():
        write_contract(shared, settings, dataset, tokenizer, train, rows, out)
        tokenizer.save_pretrained(out / "tokenizer")
    processes.wait()
    from .checkpoints import discard
    from .fit import fit
    from .objectives.choose import first_objective

    objective = first_objective(settings, shared, dataset, tokenizer, units_of(rows), units_of(held))
    with live_run(shared, out) as live:
        learnt = fit(settings, shared, base.path, tokenizer, rows, held, validation, judged, out, objective, live)
    processes.leave()
    if not processes.first():
        return {}
    discard(out / "checkpoints")
    return {
        "base": {"spec": base.spec, "digest": base.digest, "path": str(base.path)},
        "rows": {"train": len(rows.rows), "validation": len(held.rows), "too_long": len(rows.too_long)},
        "training": learnt,
    }


def say_left_out(rows: Tokenised, held: Tokenised, judged: Judged | None, window: int) -> None:
    """Say which rows nothing is learnt from, and why: a run that goes on with fewer must not look whole."""
    for what, found in (("training", rows), ("validation", held)):
        if found.too_long:
            longest = ", ".join(found.too_long[:SHOWN])
            say(
                f"{len(found.too_long):,} of {len(found.rows) + len(found.too_long):,} {what} rows are left out, "
                f"longer than train.window {window:,} (longest: {longest}); raise it to learn from them"
            )
    for split, reasons in (judged.left_out if judged else {}).items():
        if reasons:
            why = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
            say(f"train.then: left out of {split}: {why}")


def lead(upstream: Upstream, out: Path) -> None:
    """Tell the other processes, which wait in `follow`, where the work stands."""
    global _led
    _led = True
    processes.agreed((dict(upstream), out))


def follow(settings: Settings, shared: Shared) -> int:
    """What a process other than the first does under torchrun: wait for the stage to begin, take part, end."""
    processes.join()
    order: tuple[Upstream, Path] | None = processes.agreed(None)
    if order is None:
        processes.leave()
    else:
        main(settings, shared, *order)
    return 0


def dismiss() -> None:
    """Let the other processes go when there was nothing to train."""
    if processes.count() > 1 and not _led:
        processes.join()
        processes.agreed(None)
        processes.leave()


_led = False


def load_student_tokenizer(settings: Settings, base: Path, train: list[Example]) -> Any:
    """The base's tokenizer carrying the template that the student is trained with."""
    tokenizer = chat.load_tokenizer(base)
    has_tools = any(example.tools for example in train)
    tokenizer.chat_template = chat.choose_template(tokenizer, settings.chat_template, tools=has_tools)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def write_contract(
    shared: Shared, settings: Settings, dataset: Path, tokenizer: Any, train: list[Example], rows: Tokenised, out: Path
) -> None:
    """Write down what export and serving must agree with: template, stop, task, prompt rule, golden token ids."""
    longest = max(row.longest_turn for row in rows.rows)
    fitting = {row.id for row in rows.rows}
    shown = [each for each in train if each.id in fitting][:GOLDEN_ROWS]
    Contract(
        task=shared.task_definition,
        chat_template=str(tokenizer.chat_template),
        stop=[chat.end_of_turn(tokenizer)],
        prompt_rule=read_manifest(dataset, "dataset", verify=False).facts["prompt_rule"],
        max_tokens=longest + max(8, longest // 4),
        window=settings.window + longest,
        golden=[chat.golden(tokenizer, each.messages, each.tools) for each in shown],
    ).write(out)


def preview(settings: Settings, shared: Shared, upstream: Upstream) -> Json:
    """What training would see, without the base's weights: tokens, rows left out, one row with its loss mask.

    The row shown is the first with the most learnt turns; its `spans` in order make up the whole rendered text.
    """
    base = resolve_tokenizer(shared.base_model, shared.cache_dir)
    refuse_full(settings, base)
    train = read_examples(upstream["dataset"], "train")
    tokenizer = load_student_tokenizer(settings, base, train)
    rows = tokenise(tokenizer, train, settings.window, settings.rationale_weight)
    refuse_nothing_to_learn(rows, settings.window)
    held = tokenise(tokenizer, read_examples(upstream["dataset"], "validation"), settings.window)
    judged = judged_of(settings, tokenizer, upstream["dataset"])
    shown = max(rows.rows, key=lambda row: len(row.learnt))
    return {
        "rows": len(rows.rows),
        "tokens_an_epoch": rows.tokens,
        "supervised_tokens_an_epoch": rows.supervised_tokens,
        "rows_too_long": rows.too_long,
        **({"then": {"objective": settings.then.objective, **judged.facts}} if settings.then and judged else {}),
        "forecast": forecast(settings, shared, rows, held, judged),
        "example": {
            "id": shown.id,
            "spans": [{"learnt": learnt, "text": tokenizer.decode(ids)} for learnt, ids in shown.pieces()],
        },
    }


def judged_of(settings: Settings, tokenizer: Any, dataset: Path) -> Judged | None:
    """What the second phase learns from; None where there is none."""
    if settings.then is None:
        return None
    return read_judged(settings.then, tokenizer, dataset, settings.window, settings.seed)


def resolved_quantization(settings: Settings) -> Literal["none", "nf4"]:
    """Where memory chooses nothing (forecast.way_here): NF4 on a GPU with qlora; none on a CPU, where it costs time."""
    if settings.quantization != "auto":
        return settings.quantization
    import torch

    wanted = settings.method == "qlora" and torch.cuda.is_available()
    if settings.method == "qlora" and not wanted:
        say("quantization: none (bf16): on a CPU the memory that NF4 saves costs training time; nf4 forces it")
    return "nf4" if wanted else "none"

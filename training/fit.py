"""The training itself: TRL's SFTTrainer as the frame, our rows, our optimiser, our checks.

TRL pads or flattens a batch; we hand it ready blocks instead (ids, labels, restarting position ids), so that a step
multiplies real tokens only and attention stays within short blocks. Its fused loss multiplies every token with the
whole vocabulary, in chunks; ours only those that are learnt, which on short answers is two fifths of a step less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.completers import CompletionRequest
from potstill.completers.transformers import TransformersCompleter
from potstill.contract import Contract
from potstill.errors import DamagedInput
from potstill.progress import say
from potstill.records import Example, Json
from potstill.stage import Shared

from .model import student
from .optimizer import MasterAdamW
from .rows import IGNORED, Row, Tokenised, block_columns, make_blocks, pack_length_for
from .watch import Watch, last_checkpoint

if TYPE_CHECKING:
    from .run import Settings


def fit(
    settings: Settings,
    shared: Shared,
    base: Path,
    tokenizer: Any,
    rows: Tokenised,
    held: Tokenised,
    validation: Sequence[Example],
    out: Path,
) -> Json:
    """Train and leave the best adapter in `out/adapter`; returns the figures for the manifest."""
    from .run import resolved_quantization

    quantization = resolved_quantization(settings)
    model = student(
        base,
        quantization=quantization,
        rank=settings.lora.rank,
        alpha=settings.lora.alpha,
        dropout=settings.lora.dropout,
        seed=settings.seed,
    )
    length = (
        pack_length_for(rows.rows, settings.window) if settings.packing else max(len(r.token_ids) for r in rows.rows)
    )
    blocks = blocks_of(settings, rows.rows, length)
    plan = plan_steps(settings, len(blocks), length)
    score = Scorer(shared, model, tokenizer, validation, settings.score_rows, Contract.read(out))
    watch = Watch(out / "trainer_log.jsonl", plan["steps"], plan["blocks_a_step"] * rows.tokens / len(blocks))
    trainer = make_trainer(settings, model, tokenizer, blocks, blocks_of(settings, held.rows, length), plan, score, out)
    trainer.add_callback(watch.callback())

    checkpoint = last_checkpoint(out / "checkpoints")
    say(
        f"training {len(rows.rows):,} rows ({rows.tokens:,} tokens, {rows.supervised_tokens:,} learnt) in "
        f"{len(blocks):,} blocks of {length}, {plan['steps']:,} steps"
        + (f", going on from {checkpoint.name}" if checkpoint else "")
    )
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    learnt = watch.verdict()
    model.save_pretrained(out / "adapter")
    (out / "adapter" / "README.md").unlink(missing_ok=True)  # peft's template card; ours is the manifest
    return learnt | {
        "quantization": quantization,
        "blocks": len(blocks),
        "block_length": length,
        "packing_share": round(rows.tokens / (len(blocks) * length), 4),
        "tokens_an_epoch": rows.tokens,
        "supervised_tokens_an_epoch": rows.supervised_tokens,
        "best_checkpoint_step": trainer.state.best_global_step,
    }


def blocks_of(settings: Settings, rows: Sequence[Row], length: int) -> list[list[Row]]:
    """Packed blocks, or one row a block."""
    return make_blocks(rows, length, settings.seed) if settings.packing else [[row] for row in rows]


def plan_steps(settings: Settings, blocks: int, length: int) -> dict[str, int]:
    """Blocks a step, steps in all, and steps between evaluations."""
    a_step = max(1, min(round(settings.batch_tokens / length), blocks))
    steps = settings.max_steps or max(1, math.ceil(math.ceil(blocks / a_step) * settings.epochs))
    return {"blocks_a_step": a_step, "steps": steps, "eval_steps": max(1, steps // settings.evals)}


class Scorer:
    """The task's primary metric on generated answers to the first validation rows (chosen once, the same each time)."""

    def __init__(
        self, shared: Shared, model: Any, tokenizer: Any, examples: Sequence[Example], rows: int, contract: Contract
    ) -> None:
        self.task = shared.task()
        self.examples = list(examples)[:rows]
        self._model, self._tokenizer = model, tokenizer
        self._requests = [
            CompletionRequest(
                e.id, e.messages, e.tools, max_tokens=contract.max_tokens, constraint=self.task.constraint()
            )
            for e in self.examples
        ]

    def __call__(self) -> float | None:
        """The metric's value in [0, 1], None without validation rows."""
        if not self.examples:
            return None
        was_training = self._model.training
        self._model.eval()
        completer = TransformersCompleter.around(self._model, self._tokenizer)
        metric = self.task.metrics[0]
        above = below = 0.0
        for example, completion in zip(self.examples, completer.complete(self._requests), strict=True):
            parsed = self.task.parse(completion.text, example.tools)
            row = self.task.score(parsed.value, self.task.parse(example.answer, example.tools).value)
            above += sum(weight * row[name] for name, weight in metric.numerator.items())
            below += sum(weight * row[name] for name, weight in metric.denominator.items()) if metric.denominator else 1
        self._model.train(was_training)
        return above / below if below else None


def make_trainer(
    settings: Settings,
    model: Any,
    tokenizer: Any,
    blocks: Sequence[Sequence[Row]],
    held: Sequence[Sequence[Row]],
    plan: dict[str, int],
    score: Scorer,
    out: Path,
) -> Any:
    """TRL's trainer over ready blocks, evaluating and saving at the same steps, keeping the best and the last."""
    import torch
    from datasets import Dataset
    from transformers import get_scheduler
    from trl.trainer.sft_trainer import SFTTrainer

    longest = max((sum(len(row.token_ids) for row in block) for block in [*blocks, *held]), default=1)

    def as_dataset(source: Sequence[Sequence[Row]]) -> Any:
        width = max(longest, 1)
        return Dataset.from_list([block_columns(block, width, tokenizer.pad_token_id) for block in source])

    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        return {name: torch.tensor([item[name] for item in items]) for name in items[0]}

    class Trainer(SFTTrainer):
        """Our loss, and the task score in every evaluation; the best has the best score, loss breaking ties."""

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            loss, accuracy = answer_loss(model, inputs, num_items_in_batch)
            self._metrics["train" if model.training else "eval"]["mean_token_accuracy"].append(accuracy)
            return loss

        def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
            value = score()
            extra = {"eval_selection": (value or 0.0) - 0.01 * min(metrics["eval_loss"], 20.0)}
            if value is not None:
                extra["eval_score"] = value
            self.log(dict(extra))
            return metrics | extra

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            restore_adapter(self.model, Path(resume_from_checkpoint))

        def _load_best_model(self) -> None:
            restore_adapter(self.model, Path(str(self.state.best_model_checkpoint)))

    optimizer = MasterAdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    warmup = round(settings.warmup_share * plan["steps"])
    schedule = get_scheduler(settings.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=plan["steps"])
    trainer = Trainer(
        model=model,
        args=_arguments(settings, plan, out, evaluates=bool(held)),
        train_dataset=as_dataset(blocks),
        eval_dataset=as_dataset(held) if held else None,
        processing_class=tokenizer,
        data_collator=collate,
        optimizers=(optimizer, schedule),
    )
    trainer.remove_callback(_printer())
    return trainer


def _arguments(settings: Settings, plan: dict[str, int], out: Path, *, evaluates: bool) -> Any:
    """TRL's settings: evaluate and save at the same steps where there is something to evaluate on."""
    import torch
    from trl.trainer.sft_config import SFTConfig

    return SFTConfig(
        output_dir=str(out / "checkpoints"),
        max_steps=plan["steps"],
        per_device_train_batch_size=plan["blocks_a_step"],
        per_device_eval_batch_size=plan["blocks_a_step"] * 2,
        learning_rate=settings.learning_rate,
        max_grad_norm=settings.max_grad_norm,
        bf16=torch.cuda.is_available(),  # on a CPU the weights are bf16 already; autocast would only add casts
        gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=plan["eval_steps"],
        eval_on_start=evaluates,
        save_strategy="steps",
        save_steps=plan["eval_steps"],
        save_total_limit=2,
        load_best_model_at_end=evaluates,
        metric_for_best_model="eval_selection",
        greater_is_better=True,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a hidden NaN is worse than a stopped run
        report_to="none",
        disable_tqdm=True,
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def answer_loss(model: Any, inputs: Json, tokens: Any = None) -> tuple[Any, float]:
    """Cross-entropy summed over answer tokens divided by `tokens` (default: their number), and the share got right.

    Only the hidden states in front of an answer token are multiplied with the vocabulary.
    """
    import torch

    language_model = model.get_base_model()
    hidden = language_model.get_decoder()(
        input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False
    ).last_hidden_state
    labels = inputs["labels"][:, 1:]
    learnt = labels != IGNORED
    targets = labels[learnt]
    logits = language_model.get_output_embeddings()(hidden[:, :-1][learnt]).float()
    total = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    count = max(int(targets.numel()), 1)
    accuracy = float((logits.detach().argmax(-1) == targets).sum()) / count
    return total / (count if tokens is None else tokens), accuracy


def restore_adapter(model: Any, checkpoint: Path) -> None:
    """Copy a checkpoint's adapter into the model's own parameters.

    peft's `load_adapter` puts new float32 parameters in their place: the optimiser then goes on moving the old ones,
    and the resumed run learns nothing without saying so.
    """
    import torch
    from safetensors.torch import load_file

    saved = load_file(checkpoint / "adapter_model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(saved.pop(name.replace(".default.", ".")))
    if saved:
        raise DamagedInput(f"{checkpoint}: holds weights that this adapter has not: {', '.join(sorted(saved)[:3])}")


def _printer() -> Any:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback

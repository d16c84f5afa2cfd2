"""Compiled loops give what transformers' own operations give, both ways, and are made where they are worth it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from potstill import models
from tests.stages.datasets import dataset_folder
from tests.stages.processes_child import units
from tests.stages.test_training import ROOT, example, losses, settings_with
from tests.stages.tiny_families import tiny_family
from tests.stages.tiny_llama import tiny_base
from training import forecast, fused
from training.attention import rows_apart
from training.batch import Batch, inner_of, target_log_probs, token_scores
from training.model import student


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> models.Base:
    return tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def as_written(function: Any) -> Any:
    """What `torch.compile` is given, run as it stands."""
    return function


def scored(model: Any, batch: Batch) -> tuple[torch.Tensor, int, dict[str, torch.Tensor]]:
    scores, hits = token_scores(model, batch)
    (-(scores * torch.linspace(0.5, 1.5, len(scores))).sum()).backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return scores.detach(), hits, gradients


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_loops_give_the_scores_and_gradients_of_the_model_as_it_was(
    base: models.Base, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_compiled", as_written)
    compare(base, method)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_so_do_the_loops_that_the_compiler_made_of_them(base: models.Base, method: str) -> None:
    if not fused.can_compile():
        pytest.skip("no C++ compiler is at hand")
    compare(base, method)


def compare(base: models.Base, method: str) -> None:
    found = []
    for loops in (False, True):
        torch.manual_seed(3)
        if method == "full":
            model = models.load_float(base.path, dtype="float32")
        else:
            model = student(base.path, quantization="none", rank=4, alpha=8, dropout=0.0, seed=0, lean=False).float()
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        if loops:
            layers = inner_of(model).config.num_hidden_layers
            assert fused.fuse(inner_of(model)) == 3 * layers + 1  # two norms and a gate each, and the last norm
            assert inner_of(model).potstill_rotary is not None
        found.append([scored(model, Batch.of(units(count, 0))) for count in (3, 9)])
    for (scores, hits, gradients), (mine, my_hits, my_gradients) in zip(*found, strict=True):
        torch.testing.assert_close(mine, scores, atol=1e-4, rtol=1e-4)
        assert my_hits == hits
        assert my_gradients.keys() == gradients.keys()
        for name, each in gradients.items():
            torch.testing.assert_close(
                my_gradients[name], each, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_the_scores_are_those_of_the_cross_entropy_and_the_likeliest_tokens_are_counted() -> None:
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets = torch.tensor([*range(6), int(logits[6].argmax())])
    batch = SimpleNamespace(targets=targets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "_compiled", as_written)
        mine, first = fused.target_scores(logits, targets)
        (to_mine,) = torch.autograd.grad(mine.square().sum(), logits)
    wanted = target_log_probs(logits, batch, slice(None))  # type: ignore[arg-type]
    (to_wanted,) = torch.autograd.grad(wanted.square().sum(), logits)
    torch.testing.assert_close(mine, wanted)
    torch.testing.assert_close(to_mine, to_wanted, atol=1e-5, rtol=1e-4)
    assert first.tolist() == (logits.argmax(-1) == targets).tolist()
    assert first[6]


def test_outside_of_a_step_transformers_turns_queries_as_before(
    base: models.Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama import modeling_llama

    monkeypatch.setattr(fused, "_compiled", as_written)
    model = models.load_float(base.path, dtype="float32")
    fused.fuse(model)
    theirs = modeling_llama.apply_rotary_pos_emb
    within = rows_apart(model, (3,))
    within.__enter__()
    assert modeling_llama.apply_rotary_pos_emb is not theirs
    within.__exit__(None, None, None)
    assert modeling_llama.apply_rotary_pos_emb is theirs


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "phi3", "gpt2"])
def test_other_families_give_the_same_scores_whatever_of_them_is_fused(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Phi 3 turns a part of each head, GPT-2 has neither rotary embeddings, nor gate, nor RMSNorm."""
    monkeypatch.setattr(fused, "_compiled", as_written)
    batch = Batch.of(units(9, 0))
    model = other(family, tmp_path)
    wanted = scored(model, batch)
    model.zero_grad(set_to_none=True)
    assert (fused.fuse(model) > 0) is (family != "gpt2")
    found = scored(model, batch)
    torch.testing.assert_close(found[0], wanted[0], atol=1e-4, rtol=1e-4)
    for name, each in wanted[2].items():
        torch.testing.assert_close(found[2][name], each, atol=1e-3, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def other(family: str, folder: Path) -> Any:
    """A tiny model in float32."""
    import transformers

    if family in ("qwen3", "gemma3"):
        return models.load_float(tiny_family(family, folder / family).path, dtype="float32")
    torch.manual_seed(0)
    if family == "gpt2":
        config: Any = transformers.GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=2, n_positions=512)
        config._attn_implementation = "eager"
        return transformers.GPT2LMHeadModel(config).eval()
    config = transformers.Phi3Config(
        vocab_size=512, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, eos_token_id=2, bos_token_id=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    )  # fmt: skip
    return transformers.Phi3ForCausalLM(config).float()


@pytest.mark.parametrize(
    ("asked", "tokens", "able", "wanted"),
    [
        ("auto", fused.WORTH_TOKENS, True, True),
        ("auto", fused.WORTH_TOKENS, False, False),
        ("auto", fused.WORTH_TOKENS - 1, True, False),
        (True, 10, True, True),
        (True, 10, False, False),
        (False, 10**9, True, False),
    ],
)
def test_loops_are_compiled_where_asked_for_or_where_the_training_is_long(
    asked: Any, tokens: int, able: bool, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "can_compile", lambda: able)
    rows: Any = SimpleNamespace(tokens=tokens)
    assert forecast.fused_here(settings_with(compile=asked, epochs=1), rows) is wanted


def test_a_machine_that_cannot_compile_says_why_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(function: Any) -> Any:
        raise RuntimeError("InvalidCxxCompiler: no g++\nand a long story")

    monkeypatch.setattr(fused, "_compiled", broken)
    fused.can_compile.cache_clear()
    try:
        assert fused.can_compile() is False
    finally:
        fused.can_compile.cache_clear()
    assert "InvalidCxxCompiler: no g++)" in capsys.readouterr().err


RUN = """
import sys
from pathlib import Path
import torch
torch._dynamo.config.fail_on_recompile_limit_hit = True
from potstill import models
from tests.stages import test_training as t
from training.optimizer import MasterAdamW
dataset, out, most = Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
base = models.resolve_base(sys.argv[1], out.parent)
steps, step = [0], MasterAdamW.step
def cut_off(optimizer, rate, limit):
    steps[0] += 1
    if steps[0] == most:
        sys.exit(7)
    return step(optimizer, rate, limit)
MasterAdamW.step = cut_off
t.trained(base, dataset, out, compile=True, checkpoint_steps=3, learning_rate=1e-3)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("family", "changes"), [("llama", {}), ("qwen3", {"hidden_size": 1024})])
def test_a_run_with_compiled_loops_goes_on_in_another_process_with_the_same_bits(
    family: str, changes: dict[str, int], tmp_path: Path
) -> None:
    """It begins with a step where the whole run began with an evaluation: what is compiled must not depend on it."""
    if not fused.can_compile():
        pytest.skip("no C++ compiler is at hand")
    base = tiny_family(family, tmp_path / "base", **changes)
    train, held = [example(at) for at in range(90)], [example(at) for at in range(300, 315)]
    dataset = dataset_folder(tmp_path / "dataset", train, held)

    def run(name: str, most: int) -> int:
        words = [sys.executable, "-c", RUN, str(base.path), str(dataset), str(tmp_path / name), str(most)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode in (0, 7), done.stderr[-3000:]
        return done.returncode

    assert run("whole", -1) == 0
    assert run("cut", 11) == 7
    assert run("cut", -1) == 0
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "cut")) > 11

"""What is for a CUDA device, as far as a processor can tell: what is passed on, refused, and left the same."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill import models
from potstill.errors import PotstillError
from tests.stages.datasets import dataset_folder
from tests.stages.processes_child import units
from tests.stages.test_training import example, settings_with, trained
from tests.stages.tiny_llama import tiny_base
from training import kernels
from training.batch import Batch, token_scores
from training.optimizer import MasterAdamW
from training.repeatable import FIXED_ORDER, repeatable


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> models.Base:
    return tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def by_cumulated_lengths(
    module: Any, query: Any, key: Any, value: Any, mask: Any, *, cu_seq_lens_q: Any, max_length_q: int, scaling: float,
    **_: Any,
) -> tuple[Any, None]:  # fmt: skip
    """Attention as FlashAttention's kernel for different lengths is asked for it, in plain torch."""
    assert cu_seq_lens_q.dtype == torch.int32
    ends = cu_seq_lens_q.tolist()
    assert max_length_q == max(b - a for a, b in itertools.pairwise(ends))
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], is_causal=True, scale=scaling, enable_gqa=True
        )
        for a, b in itertools.pairwise(ends)
    ]
    return torch.cat(parts, 2).transpose(1, 2), None


def test_a_kernel_for_different_lengths_is_given_the_rows_and_gives_the_same_scores(base: models.Base) -> None:
    from transformers import AttentionInterface

    AttentionInterface.register("by_cumulated_lengths", by_cumulated_lengths)
    model = models.load_float(base.path, dtype="float32")
    batch = Batch.of(units(9, 0))
    wanted, _ = token_scores(model, batch)
    model.potstill_rows = "by_cumulated_lengths"
    found, _ = token_scores(model, batch)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_compiled_layers_give_the_same_scores_at_any_length(base: models.Base) -> None:
    model = models.load_float(base.path, dtype="float32")
    batches = [Batch.of(units(count, 0)) for count in (3, 9)]
    wanted = [token_scores(model, batch)[0] for batch in batches]
    assert kernels.compile_layers(model, backend="eager") == 2
    for batch, each in zip(batches, wanted, strict=True):
        torch.testing.assert_close(token_scores(model, batch)[0], each, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("use", "package"), [(kernels.use_flash, "flash-attn"), (kernels.use_liger, "liger-kernel")])
def test_what_is_not_installed_is_refused_by_name(use: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "find_spec", lambda _: None)
    with pytest.raises(PotstillError, match=f"package {package}; install it"):
        use(object())


def test_on_a_processor_they_are_said_to_be_unused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    kernels.put_in(settings_with(attention="flash_attention_2", kernels="liger"), object())
    assert "not used on a processor" in capsys.readouterr().err
    kernels.put_in(settings_with(), object())
    assert capsys.readouterr().err == ""


def test_a_fixed_order_of_sums_lasts_as_long_as_the_run_that_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FIXED_ORDER:
        monkeypatch.delenv(name, raising=False)
    with repeatable(False):
        assert not torch.are_deterministic_algorithms_enabled()
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ

    def stopped() -> None:
        with repeatable(True):
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_fixed_order_that_comes_too_late_for_cublas_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 512)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with pytest.raises(PotstillError, match="CUBLAS_WORKSPACE_CONFIG=:4096:8 in its environment"), repeatable(True):
        pass
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with repeatable(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_the_whole_of_training_runs_in_that_order(
    base: models.Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every operation of a step, an evaluation and a scored answer has one (on a processor: torch raises alike)."""
    dataset = dataset_folder(
        tmp_path / "dataset", [example(at) for at in range(60)], [example(at) for at in (300, 301)]
    )
    seen = set[bool]()
    step = MasterAdamW.step

    def looked(self: MasterAdamW, *args: Any) -> float:
        seen.add(torch.are_deterministic_algorithms_enabled())
        return step(self, *args)

    monkeypatch.setattr(MasterAdamW, "step", looked)
    for asked in (True, False):
        trained(base, dataset, tmp_path / str(asked), deterministic=asked, epochs=2)
        assert seen == {asked}
        seen.clear()


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_the_8_bit_optimiser_comes_back_from_its_state(tmp_path: Path) -> None:
    from training import checkpoints

    start = torch.randn(64, 128)
    pushes = [torch.randn(64, 128) for _ in range(6)]

    def run(weight: Any, optimizer: MasterAdamW, steps: range) -> None:
        for at in steps:
            weight.grad = pushes[at].clone()
            optimizer.gather()
            optimizer.step(1e-3, 1e9)

    whole = torch.nn.Parameter(start.clone())
    run(whole, MasterAdamW([whole], lr=1e-3, paged_8bit=True), range(6))
    first = torch.nn.Parameter(start.clone())
    stopped = MasterAdamW([first], lr=1e-3, paged_8bit=True)
    run(first, stopped, range(3))
    path = checkpoints.write_checkpoint(tmp_path, "c", stopped.state(), {})
    again = torch.nn.Parameter(torch.zeros_like(start))
    resumed = MasterAdamW([again], lr=1e-3, paged_8bit=True)
    resumed.load_state(checkpoints.read_checkpoint(path)[0])
    run(again, resumed, range(3, 6))
    assert torch.equal(again, whole)
    plain = torch.nn.Parameter(start.clone())
    run(plain, MasterAdamW([plain], lr=1e-3), range(6))
    assert (whole - plain).abs().max() < 0.3 * (plain - start).abs().max()


def test_the_8_bit_optimiser_goes_on_in_paged_memory() -> None:
    """Marked buffers stand for CUDA's managed memory: moments that are no such buffer would fill the card."""
    weight = torch.nn.Parameter(torch.randn(64, 128))
    optimizer = MasterAdamW([weight], lr=1e-3, paged_8bit=True)
    made = []

    def paged(p: Any, dtype: Any) -> Any:
        made.append(torch.zeros_like(p, dtype=dtype))
        made[-1].is_paged = True
        return made[-1]

    optimizer.inner.get_state_buffer = paged
    kept = {
        "master": torch.randn(64 * 128), "step": torch.tensor(7),
        "state1": torch.randint(0, 256, (64 * 128,), dtype=torch.uint8), "absmax1": torch.rand(32),
        "state2": torch.randint(0, 256, (64 * 128,), dtype=torch.uint8), "absmax2": torch.rand(32),
        "qmap1": torch.rand(256), "qmap2": torch.rand(256),
    }  # fmt: skip
    optimizer.load_state(kept)
    moments = optimizer.inner.state[optimizer.master]
    assert [id(moments[name]) for name in ("state1", "state2")] == [id(each) for each in made]
    assert moments["step"] == 7
    for name, each in optimizer.state().items():
        assert torch.equal(each, kept[name]), name

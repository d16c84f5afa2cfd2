"""How far one file's predictions lie from another's: nothing for equal files, more the coarser, and what torch says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export import measure
from potstill import models
from potstill.engine_logits import RowDivergence, compare_files, divergence
from potstill.errors import EngineFailure
from tests.stages.tiny_llama import gguf_of, tiny_base


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> models.Base:
    """Rows of 256 and 512, which K-quants can cut."""
    folder = tmp_path_factory.mktemp("wide") / "base"
    return tiny_base(folder, hidden_size=256, intermediate_size=512, initializer_range=0.08)


@pytest.fixture(scope="module")
def files(wide: models.Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {each: gguf_of(wide, folder / f"{each}.gguf", each) for each in ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")}


def texts(lengths: tuple[int, ...] = (5, 40, 300)) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 400, (length,), generator=generator).tolist() for length in lengths]


def test_equal_files_differ_by_nothing_and_coarser_ones_by_more(files: dict[str, Path]) -> None:
    rows = texts()
    mean = {}
    for name, file in files.items():
        found = compare_files(files["f16"], file, rows, threads=1)
        assert [len(each.kl) for each in found] == [len(row) for row in rows]
        mean[name] = float(np.concatenate([each.kl for each in found]).mean())
    assert mean["f16"] == 0.0
    assert 0 < mean["q8_0"] < mean["q6_k"] < mean["q5_k_m"] < mean["q4_k_m"]


def test_the_figures_are_those_of_torch_on_the_dequantised_weights(
    wide: models.Base, files: dict[str, Path], tmp_path: Path
) -> None:
    rows = texts((60,))
    reference, coarse = (logits_of(dequantised(wide, files[each]))(rows[0]) for each in ("f16", "q4_k_m"))
    wanted, _ = divergence(reference, coarse)
    (found,) = compare_files(files["f16"], files["q4_k_m"], rows, threads=1)
    assert found.kl.mean() == pytest.approx(wanted.mean(), rel=0.1)
    assert np.corrcoef(found.kl, wanted)[0, 1] > 0.95


def dequantised(base: models.Base, file: Path) -> Any:
    """The base with the file's weights, in float32: its own matrices back in transformers' order of rows."""
    from gguf import GGUFReader, quants

    from export.write import read_config
    from potstill.gguf_layout import layout, rope_row_order

    model = models.load_float(base.path, dtype="float32")
    held = {each.name: each for each in GGUFReader(file).tensors}
    state = model.state_dict()
    for tensor in layout(read_config(base.path)):
        values = np.array(quants.dequantize(held[tensor.name].data, held[tensor.name].tensor_type))
        if tensor.heads:
            values[rope_row_order(len(values), tensor.heads)] = values.copy()
        state[tensor.source].copy_(torch.from_numpy(values))
    return model


def logits_of(model: Any) -> Any:
    def run(tokens: list[int]) -> Any:
        with torch.inference_mode():
            return model(torch.tensor([tokens])).logits[0].numpy()

    return run


def test_a_file_that_is_none_is_named_with_the_engines_words(files: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(files["q8_0"].read_bytes()[:5000])
    with pytest.raises(EngineFailure, match=r"could not compare broken.gguf with f16.gguf"):
        compare_files(files["f16"], broken, texts((5,)), threads=1)


def row(kl: list[float], same: list[bool]) -> RowDivergence:
    return RowDivergence(np.array(kl), np.array(same))


def test_answers_figures_are_of_the_positions_that_predict_the_answer() -> None:
    """Prompt of three tokens, answer of two: positions 2 and 3 predict it, position 4 is after its end."""
    text = measure.HeldOut([1, 2, 3], [4, 5], "c")
    figures = measure.divergence_figures([row([9.0, 9.0, 0.5, 1.5, 9.0], [True, True, False, True, False])], [text])
    assert (figures["answer"]["tokens"], figures["answer"]["kl_mean"], figures["answer"]["same_top"]) == (2, 1.0, 0.5)
    assert (figures["text"]["tokens"], figures["text"]["kl_mean"]) == (4, 5.0)


def test_intervals_resample_conversations_not_tokens() -> None:
    """Forty conversations whose tokens all agree: a thousand tokens tell no more than forty."""
    rng = np.random.default_rng(0)
    levels = rng.gamma(1.0, size=40)
    few = [row([level] * 3, [True] * 3) for level in levels]
    many = [row([level] * 51, [True] * 51) for level in levels]
    short = [measure.HeldOut([1], [2, 3], f"c{at}") for at in range(40)]
    long = [measure.HeldOut([1], [2] * 50, f"c{at}") for at in range(40)]
    narrow, wide = (measure.divergence_figures(*each)["answer"] for each in ((many, long), (few, short)))
    assert narrow["kl_mean_high"] - narrow["kl_mean_low"] == pytest.approx(
        wide["kl_mean_high"] - wide["kl_mean_low"], rel=1e-6
    )
    assert wide["kl_mean_low"] < wide["kl_mean"] < wide["kl_mean_high"]


def test_equal_files_have_a_divergence_of_exactly_nothing() -> None:
    text = measure.HeldOut([1], [2, 3], "c")
    figures = measure.divergence_figures([row([0.0] * 3, [True] * 3)] * 2, [text] * 2)["answer"]
    assert (figures["kl_mean"], figures["kl_mean_low"], figures["kl_mean_high"], figures["kl_p99"]) == (0, 0, 0, 0)


def test_speed_says_how_it_was_measured(files: dict[str, Path]) -> None:
    found = measure.speed(files["q8_0"], [measure.HeldOut([5, 6, 7], [8, 9], "c")], repeats=1)
    assert min(found["prompt_tokens_per_s"], found["decode_tokens_per_s"]) > 0
    assert (found["prompt_tokens"], found["decoded_tokens"], found["repeats"]) == (128, 32, 1)

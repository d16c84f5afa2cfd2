"""Folders in the compressed-tensors layout, which vLLM and transformers read: 4-bit weights, or 8-bit floats.

w4a16  `pack-quantized`: integers of 4 bits, symmetric, a bf16 scale for every `group` weights of a row
fp8    `float-quantized`: E4M3 with a bf16 scale a row; activations are quantised a token while running

How the 4-bit values are found is in folder_rounding. Embeddings and the output matrix stay bf16: they are read row by
row, and errors there are said at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.errors import PotstillError
from potstill.records import Json

from .folder import HEAD, write_folder
from .folder_activations import second_moments
from .folder_rounding import compensated, group_scales, stored

if TYPE_CHECKING:
    import torch

    from .formats import Source

GROUPS = (128, 64, 32)  # what vLLM's 4-bit kernels take, the largest first: fewer scales to read


@dataclass(frozen=True, slots=True)
class Plan:
    """Which weights are quantised, in groups of what length, and why the others are not (reason by tensor name)."""

    quantised: frozenset[str]
    group: int | None
    left: Json

    def ignored(self) -> list[str]:
        """Modules of the kind that is quantised which are not: what a loader must be told."""
        return sorted(name.removesuffix(".weight") for name in self.left if self.left[name] != NO_MATRIX)


ROUNDING_ROWS = 128  # training rows that are run through the student before it is rounded
NO_MATRIX = "not a linear layer's matrix"
OUTPUT = "the output matrix: its errors are said at once"


def write_w4a16(source: Source, out: Path) -> Json:
    """4-bit weights; raises PotstillError when no linear layer's rows can be parted into groups."""
    plan = plan_groups(source.weights, linear_weights(source.config), GROUPS)
    most = max(ROUNDING_ROWS, source.importance_rows)
    moments = second_moments(source, most)
    importance = {name: each.diagonal() for name, each in moments.items()}
    scheme = _scheme("W4A16", plan.group)

    def encode(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor] | None:
        if name not in plan.quantised:
            return None
        assert plan.group is not None
        scale = group_scales(weight, plan.group, importance.get(name))
        if name in moments:
            weight = compensated(weight, scale, plan.group, moments[name])
        return _compress("pack-quantized", name, weight, scale, scheme)

    config = quantization_config("pack-quantized", scheme, plan)
    written = write_folder(source, out, encode, config)
    rows = min(most, len(source.rows)) if moments else 0
    return {"quantisation": "w4a16", "group": plan.group, "rounding_rows": rows, **_said(plan), **written}


def write_fp8(source: Source, out: Path) -> Json:
    """8-bit floats with a scale a row; activations are quantised while running, so nothing has to be calibrated."""
    plan = plan_groups(source.weights, linear_weights(source.config), None)
    scheme = _scheme("FP8_DYNAMIC", None)

    def encode(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor] | None:
        if name not in plan.quantised:
            return None
        return _compress("float-quantized", name, weight, row_scales(weight), scheme)

    written = write_folder(source, out, encode, quantization_config("float-quantized", scheme, plan))
    return {"quantisation": "fp8", **_said(plan), **written}


def _said(plan: Plan) -> Json:
    return {"quantised": len(plan.quantised), "unquantised": dict(sorted(plan.left.items()))}


def linear_weights(config: Json) -> frozenset[str]:
    """Names of the matrices of linear layers, from the architecture alone (nothing is loaded)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {key: value for key, value in config.items() if key not in ("model_type", "quantization_config")}
    untyped: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = untyped.from_config(AutoConfig.for_model(config["model_type"], **values))
    return frozenset(f"{name}.weight" for name, each in model.named_modules() if isinstance(each, torch.nn.Linear))


def plan_groups(weights: Mapping[str, torch.Tensor], linear: frozenset[str], groups: Sequence[int] | None) -> Plan:
    """Which weights to quantise. One group length for all, since loaders join q, k and v into one matrix.

    The longest of `groups` that divides every row is taken; a matrix whose rows the shortest does not divide stays
    bf16. `groups` None means a scale a row. Raises PotstillError when nothing would be quantised.
    """
    widths: dict[str, int] = {}
    left: Json = {}
    for name in weights:
        if name == HEAD:
            left[name] = OUTPUT
        elif name not in linear:
            left[name] = NO_MATRIX
        else:
            widths[name] = weights[name].shape[1]
    if groups is not None:
        odd = {name: width for name, width in widths.items() if width % min(groups)}
        left |= {name: f"rows of {width} do not divide by {min(groups)}" for name, width in odd.items()}
        widths = {name: width for name, width in widths.items() if name not in odd}
    if not widths:
        raise PotstillError(
            "export: found no linear layer that could be quantised (none known to this architecture, or rows that "
            f"{min(groups or (1,))} does not divide); export safetensors-bf16 instead"
        )
    group = None if groups is None else next(g for g in groups if not any(w % g for w in widths.values()))
    return Plan(frozenset(widths), group, left)


def row_scales(weight: torch.Tensor) -> torch.Tensor:
    """The scale of every row, (rows, 1) in bf16, by which its largest value becomes the largest of E4M3."""
    import torch

    most = torch.finfo(torch.float8_e4m3fn).max
    return stored(weight.float().abs().amax(dim=1, keepdim=True) / most)


def _scheme(preset: str, group: int | None) -> Any:
    """The preset of compressed-tensors for linear layers, in groups of this length."""
    from compressed_tensors.quantization import preset_name_to_scheme

    scheme = preset_name_to_scheme(preset, ["Linear"])
    if group is not None:
        scheme.weights.group_size = group
    return scheme


def _compress(
    layout: str, name: str, weight: torch.Tensor, scale: torch.Tensor, scheme: Any
) -> dict[str, torch.Tensor]:
    """The tensors that stand for one matrix in this layout, by their full names."""
    from compressed_tensors.compressors import BaseCompressor

    parts = BaseCompressor.get_value_from_registry(layout).compress(
        {"weight": weight.float(), "weight_scale": scale.float()}, scheme
    )
    module = name.removesuffix(".weight")
    parts["weight_scale"] = scale
    return {f"{module}.{part}": each for part, each in parts.items()}


def quantization_config(layout: str, scheme: Any, plan: Plan) -> Json:
    """What config.json says of it, as compressed-tensors writes it."""
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        format=layout,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=sorted({*plan.ignored(), HEAD.removesuffix(".weight")}),
    )
    said: Json = config.model_dump(mode="json", exclude_none=True)
    return said

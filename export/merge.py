"""The weights to export: a base folder's tensors, with a LoRA adapter folded in, one tensor at a time.

W' = W + scale * B A in float32, where scale is alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA
(Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732). DoRA (Liu et al. 2024, arXiv:2402.09353)
then gives every output's row its learnt length: m * W' / |W'|. Both classes are mappings that read a tensor when it
is asked for, so that merging needs the memory of one tensor, not of a model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.errors import DamagedInput, PotstillError
from potstill.records import Json
from potstill.safe_names import safe_relative
from potstill.trained import find_trained

if TYPE_CHECKING:
    import torch

ADAPTER_PREFIX = "base_model.model."
# Each of these changes what an adapter means; a plain LoRA has none. Values that mean "off" are None, False, [], {}.
OTHER_THAN_LORA = (
    "lora_bias", "fan_in_fan_out", "modules_to_save", "layer_replication", "target_parameters",
    "trainable_token_indices", "use_qalora", "alora_invocation_tokens", "arrow_config",
)  # fmt: skip
PLAIN_INITIALISATIONS = (True, False, "gaussian", "orthogonal")


class FolderWeights(Mapping[str, "torch.Tensor"]):
    """The tensors of a transformers folder (one model.safetensors, or shards with their index), read when asked for."""

    def __init__(self, folder: Path) -> None:
        self._files = _tensor_files(folder)

    def __getitem__(self, name: str) -> torch.Tensor:
        from safetensors import safe_open

        with safe_open(self._files[name], framework="pt") as stream:
            tensor: torch.Tensor = stream.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


@dataclass(frozen=True, slots=True)
class Delta:
    """What LoRA adds to one matrix: scale * up @ down, with `down` of shape (r, in) and `up` of shape (out, r).

    `magnitude` (out,), with DoRA, is the length that each row of the sum is brought to.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    magnitude: torch.Tensor | None = None


class MergedWeights(Mapping[str, "torch.Tensor"]):
    """A base's tensors with every adapted matrix in float32, B A added; the others as they are."""

    def __init__(self, base: Mapping[str, torch.Tensor], deltas: Mapping[str, Delta]) -> None:
        strange = sorted(set(deltas) - set(base))
        if strange:
            raise DamagedInput(
                f"the adapter changes {', '.join(strange[:3])}{' ...' if len(strange) > 3 else ''}, which the base "
                "does not hold (tied embeddings count as none); export with the base that the adapter was trained on"
            )
        self._base, self._deltas = base, deltas

    def __getitem__(self, name: str) -> torch.Tensor:
        weight, delta = self._base[name], self._deltas.get(name)
        if delta is None:
            return weight
        if weight.shape != (delta.up.shape[0], delta.down.shape[1]):
            raise DamagedInput(
                f"{name}: the base has shape {tuple(weight.shape)}, the adapter was trained on "
                f"{(delta.up.shape[0], delta.down.shape[1])}; export with the base that the adapter was trained on"
            )
        merged = weight.float() + delta.scale * (delta.up.float() @ delta.down.float())
        if delta.magnitude is not None:
            merged *= (delta.magnitude.float() / merged.norm(dim=1))[:, None]
        return merged

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


def read_adapter(folder: Path) -> dict[str, Delta]:
    """What a PEFT adapter folder adds, by the name of the base's tensor.

    Raises PotstillError for an adapter that is not LoRA, rsLoRA or DoRA on linear layers, DamagedInput for one that
    lacks a part.
    """
    from safetensors.torch import load_file

    config: Json = json.loads((folder / "adapter_config.json").read_text())
    _refuse_other_kinds(config)
    tensors = load_file(folder / "adapter_model.safetensors")
    deltas = {}
    for key in sorted(name for name in tensors if name.endswith(".lora_A.weight")):
        module = key.removeprefix(ADAPTER_PREFIX).removesuffix(".lora_A.weight")
        up = tensors.pop(key.replace(".lora_A.", ".lora_B."), None)
        if up is None:
            raise DamagedInput(f"{folder}: {module} has lora_A and no lora_B; train again")
        down = tensors.pop(key)
        magnitude = tensors.pop(key.replace(".lora_A.weight", ".lora_magnitude_vector"), None)
        if (magnitude is not None) != bool(config.get("use_dora")):
            raise DamagedInput(f"{folder}: use_dora and the magnitudes of {module} disagree; train again")
        deltas[f"{module}.weight"] = Delta(down, up, lora_scale(config, module, rank=down.shape[0]), magnitude)
    if tensors or not deltas:
        found = f"also holds {sorted(tensors)[0]}" if tensors else "holds no LoRA matrices"
        raise PotstillError(f"export: {folder} {found}; only LoRA and DoRA on linear layers can be merged")
    return deltas


def student_weights(folder: Path, base: Path) -> Mapping[str, torch.Tensor]:
    """The weights that training left in `folder`: the base with its adapter merged, or a model of its own."""
    found = find_trained(folder, base)
    weights = FolderWeights(found.model)
    return weights if found.adapter is None else MergedWeights(weights, read_adapter(found.adapter))


def lora_scale(config: Json, module: str, rank: int) -> float:
    """The factor of one module's update; per-module alphas are patterns matched at the end of its name, as in PEFT."""
    alpha = config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _refuse_other_kinds(config: Json) -> None:
    faults = [f"{key}={config[key]!r}" for key in OTHER_THAN_LORA if config.get(key)]
    if config.get("peft_type") != "LORA":
        faults.append(f"peft_type={config.get('peft_type')!r}")
    if config.get("bias", "none") != "none":
        faults.append(f"bias={config['bias']!r}")
    if config.get("init_lora_weights", True) not in PLAIN_INITIALISATIONS:
        faults.append(f"init_lora_weights={config['init_lora_weights']!r}, which changes the base too")
    if faults:
        raise PotstillError(f"export: the adapter has {', '.join(faults)}; only LoRA and DoRA can be merged here")


def _tensor_files(folder: Path) -> dict[str, Path]:
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files: dict[str, str] = json.loads(index.read_text())["weight_map"]
        return {name: folder / safe_relative(file, index.name) for name, file in files.items()}
    file = folder / "model.safetensors"
    if not file.is_file():
        raise DamagedInput(f"{folder}: no model.safetensors; expected a transformers folder of float weights")
    with safe_open(file, framework="pt") as stream:
        return dict.fromkeys(stream.keys(), file)

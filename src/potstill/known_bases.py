"""Facts of bases on the hub that recipes here name, so that `check` can say what they need before they are here.

Each is what the model's own config.json on the hub says (sizes, positions, window) and the licence of its card.
Gemma 3 from 4B up comes with a vision tower (SigLIP), which is loaded with it although text alone is trained.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from potstill.model_shape import ModelShape


@dataclass(frozen=True, slots=True)
class KnownBase:
    """A base by its hub id: its shape and the hub's name of its licence."""

    id: str
    shape: ModelShape
    licence: str


def _qwen3(hidden: int, intermediate: int, layers: int, heads: int, tied: bool) -> ModelShape:
    return ModelShape("qwen3", 151_936, hidden, intermediate, layers, heads, 8, 128, tied, 40_960)


def _llama3(hidden: int, intermediate: int, layers: int, heads: int, head_dim: int, tied: bool) -> ModelShape:
    return ModelShape("llama", 128_256, hidden, intermediate, layers, heads, 8, head_dim, tied, 131_072)


QWEN3_4B = _qwen3(2560, 9728, 36, 32, True)
LLAMA_1B = _llama3(2048, 8192, 16, 32, 64, True)
LLAMA_3B = _llama3(3072, 8192, 28, 24, 128, True)
LLAMA_8B = _llama3(4096, 14_336, 32, 32, 128, False)
GEMMA_270M = ModelShape("gemma3", 262_144, 640, 2048, 18, 4, 1, 256, True, 32_768, 512)
GEMMA_1B = ModelShape("gemma3", 262_144, 1152, 6912, 26, 4, 1, 256, True, 32_768, 512)
GEMMA_4B = ModelShape("gemma3", 262_208, 2560, 10_240, 34, 8, 4, 256, True, 131_072, 1024, other_parameters=419_816_304)

_ALL = [
    KnownBase("Qwen/Qwen3-0.6B", _qwen3(1024, 3072, 28, 16, True), "apache-2.0"),
    KnownBase("Qwen/Qwen3-1.7B", _qwen3(2048, 6144, 28, 16, True), "apache-2.0"),
    KnownBase("Qwen/Qwen3-4B", QWEN3_4B, "apache-2.0"),
    KnownBase("Qwen/Qwen3-4B-Instruct-2507", replace(QWEN3_4B, max_positions=262_144), "apache-2.0"),
    KnownBase("Qwen/Qwen3-8B", _qwen3(4096, 12_288, 36, 32, False), "apache-2.0"),
    KnownBase("meta-llama/Llama-3.2-1B", LLAMA_1B, "llama3.2"),
    KnownBase("meta-llama/Llama-3.2-1B-Instruct", LLAMA_1B, "llama3.2"),
    KnownBase("meta-llama/Llama-3.2-3B", LLAMA_3B, "llama3.2"),
    KnownBase("meta-llama/Llama-3.2-3B-Instruct", LLAMA_3B, "llama3.2"),
    KnownBase("meta-llama/Llama-3.1-8B", LLAMA_8B, "llama3.1"),
    KnownBase("meta-llama/Llama-3.1-8B-Instruct", LLAMA_8B, "llama3.1"),
    KnownBase("google/gemma-3-270m", GEMMA_270M, "gemma"),
    KnownBase("google/gemma-3-270m-it", GEMMA_270M, "gemma"),
    KnownBase("google/gemma-3-1b-pt", GEMMA_1B, "gemma"),
    KnownBase("google/gemma-3-1b-it", GEMMA_1B, "gemma"),
    KnownBase("google/gemma-3-4b-pt", GEMMA_4B, "gemma"),
    KnownBase("google/gemma-3-4b-it", GEMMA_4B, "gemma"),
]
KNOWN: dict[str, KnownBase] = {each.id: each for each in _ALL}

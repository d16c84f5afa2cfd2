"""From an artifact folder to an engine that has proven itself: intact files, the same template, the same tokens.

A model served with another template than it was trained with still answers, only worse; so nothing is bound until the
contract has been held against the engine itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from potstill.canaries import Canary, read_canaries
from potstill.contract import Contract, first_difference, golden_differences
from potstill.engine import Engine
from potstill.errors import EngineFailure, ManifestMismatch, ParityMismatch, RecipeError
from potstill.manifest import Manifest, read_manifest
from potstill.prompt import PromptRule
from potstill.records import Json
from potstill.safe_names import inside
from potstill.serving.authenticate import Keys
from potstill.serving.backends import Address, Backend
from potstill.serving.checks import Peer, ask_canaries, check_peer
from potstill.serving.engine_settings import AddressSettings, EngineSettings, LlamaCppSettings, VllmSettings
from potstill.serving.supervise import SupervisedEngine
from potstill.serving.vllm import VllmServer
from potstill.signing import TrustSettings, refuse_untrusted
from potstill.tasks import Task

FindVersion = Callable[[str, str], Path]
_WARM_UP_TIMEOUT_S = 120.0
_LLAMA_CPP = LlamaCppSettings()


@dataclass(frozen=True, slots=True)
class Served:
    """What is served: the verified folder, the file chosen from it, and what it was trained to keep to."""

    folder: Path
    digest: str
    format: str
    model: Path
    contract: Contract
    task: Task
    rule: PromptRule
    canaries: tuple[Canary, ...] = ()


def resolve(address: str, find_version: FindVersion | None = None) -> Path:
    """The artifact folder of a path or of `models:/NAME@ALIAS` (looked up by `find_version(name, alias)`)."""
    if not address.startswith("models:/"):
        return Path(address)
    name, _, alias = address.removeprefix("models:/").partition("@")
    if not name or not alias:
        raise RecipeError([f"{address}: expected models:/NAME@ALIAS, as models:/banking-intents@champion"])
    if find_version is None:
        raise RecipeError([f"{address}: no registry to look it up in; give the artifact folder"])
    return find_version(name, alias)


def load_artifact(
    folder: Path, format: str | None = None, trust: TrustSettings | None = None, engine: EngineSettings = _LLAMA_CPP
) -> Served:
    """Read and verify the folder; raises ManifestMismatch (naming the file) or ParityMismatch (no contract).

    The format is one that `engine` can load. With `trust`, raises Untrusted unless that key signed exactly these files.
    """
    refuse_untrusted(folder, trust)
    manifest = read_manifest(folder, "artifact", verify=True)
    chosen, file = _choose(folder, manifest, format) if engine.kind == "llama_cpp" else _choose_folder(manifest, format)
    contract = Contract.read(folder)
    task, rule = contract.make_task(), contract.make_prompt_rule()
    canaries = read_canaries(folder, chosen)
    return Served(folder, manifest.digest, chosen, inside(folder, file), contract, task, rule, canaries)


def _choose(folder: Path, manifest: Manifest, wanted: str | None) -> tuple[str, str]:
    """The format asked for, else the one with the smallest file, with its file name; llama.cpp's formats alone."""
    formats: dict[str, Json] = manifest.facts.get("formats") or {}
    for_others = {name: each for name, each in formats.items() if each.get("engine", "llama_cpp") != "llama_cpp"}
    files = {
        name: str(each["file"])
        for name, each in formats.items()
        if name not in for_others and each.get("file") in manifest.files
    }
    if wanted in for_others or (for_others and not files):
        raise _for_vllm(folder, wanted or min(for_others), for_others, files)
    if not files:
        raise ManifestMismatch(f"{folder}: its manifest names no exported file; export the adapter again")
    if wanted is None:
        wanted = min(files, key=lambda name: int(manifest.files[files[name]]["size_bytes"]))
    if wanted not in files:
        has = ", ".join(sorted(files))
        raise RecipeError([f"serve.format: found {wanted!r}, this artifact has {has}; choose one, or export it"])
    return wanted, files[wanted]


def _choose_folder(manifest: Manifest, wanted: str | None) -> tuple[str, str]:
    """As `_choose` for an engine that loads folders."""
    formats: dict[str, Json] = manifest.facts.get("formats") or {}
    sizes = {
        name: sum(int(at["size_bytes"]) for file, at in manifest.files.items() if file.startswith(f"{each['file']}/"))
        for name, each in formats.items()
        if each.get("engine", "llama_cpp") != "llama_cpp"
    }
    found = {name: size for name, size in sizes.items() if size}
    if wanted is None and found:
        wanted = min(found, key=lambda name: found[name])
    if wanted not in found:
        has = ", ".join(sorted(found)) or "none"
        asked = f"found {wanted!r}" if wanted else "none is named"
        raise RecipeError(
            [f"serve.format: {asked}; of the folders that vLLM loads this artifact has {has}; export safetensors-bf16"]
        )
    return wanted, str(formats[wanted]["file"])


def _for_vllm(folder: Path, wanted: str, formats: dict[str, Json], files: dict[str, str]) -> RecipeError:
    """What to do with a folder that llama.cpp cannot load."""
    choice = f"choose {', '.join(sorted(files))}" if files else "export a gguf format too"
    return RecipeError(
        [
            f"serve.format: {wanted} is a folder for vLLM, and this server runs llama.cpp; start it with "
            f"`vllm serve {folder / str(formats[wanted]['file'])}` or set serve.engine.kind=vllm, or {choice}"
        ]
    )


def start_backend(served: Served, settings: EngineSettings, *, slots: int, threads: int | None) -> Backend:
    """What answers for this artifact, warm and checked; raises EngineFailure, ParityMismatch or RecipeError."""
    if isinstance(settings, VllmSettings):
        engine, hung = settings, settings.hung_after_s
        start = lambda: start_vllm(served, engine)  # noqa: E731
        return SupervisedEngine(start, dialect="vllm", probe="/health", hung_after_s=hung)
    if isinstance(settings, AddressSettings):
        return find_address(served, settings)
    return SupervisedEngine(
        lambda: start_engine(served, slots=slots, threads=threads), hung_after_s=settings.hung_after_s
    )


def start_vllm(served: Served, settings: VllmSettings) -> VllmServer:
    """A warm vLLM that agrees with the contract; leaves none behind where it does not."""
    server = VllmServer.start(served.model, served.contract.window, settings)
    try:
        check_peer(Peer.of_vllm(server.url), served.contract, served.canaries)
    except BaseException:
        server.stop()
        raise
    return server


def find_address(served: Served, settings: AddressSettings) -> Address:
    """The address, found to answer as the artifact's contract says."""
    peer = Peer.at(settings)
    name = check_peer(peer, served.contract, served.canaries)
    try:
        return Address(peer.url, name, peer.headers)
    except ValueError as fault:
        raise RecipeError([f"serve.engine.url: {fault}"]) from fault


def start_engine(served: Served, *, slots: int, threads: int | None) -> Engine:
    """A warm engine that agrees with the contract; raises EngineFailure or ParityMismatch, and leaves none behind."""
    engine = Engine.start(served.model, parallel=slots, context=served.contract.window, threads=threads)
    try:
        check_parity(engine, served.contract)
        warm_up(engine, served.contract)
        ask_canaries(Peer(engine.url, "llama_cpp"), served.contract, served.canaries)
    except BaseException:
        engine.stop()
        raise
    return engine


def check_parity(engine: Engine, contract: Contract) -> None:
    """Hold template, rendered golden prompts and their token ids against the engine's own; raises ParityMismatch."""
    if not contract.golden:
        raise ParityMismatch("the contract holds no golden prompts: nothing shows that the tokens agree; export again")
    faults = []
    template = str(_get(engine, "/props").get("chat_template") or "")
    if template != contract.chat_template:
        faults.append(f"chat template: {first_difference(contract.chat_template, template)}")
    texts = [engine.apply_template(each.messages, each.tools) for each in contract.golden]
    for at, (golden, text) in enumerate(zip(contract.golden, texts, strict=True)):
        if text != golden.text:
            faults.append(f"golden prompt {at}: text: {first_difference(golden.text, text)}")
    faults += golden_differences(contract, [engine.tokenize(text) for text in texts])
    if faults:
        raise ParityMismatch(
            f"{engine.model}: the engine does not see what the model was trained on: {'; '.join(faults[:5])}; "
            "export the adapter again"
        )


def warm_up(engine: Engine, contract: Contract) -> None:
    """One token for the first golden prompt by the way that requests go; its prompt must count as many tokens."""
    golden = contract.golden[0]
    body: Json = {"messages": golden.messages, "max_tokens": 1, "temperature": 0}
    body |= {"tools": golden.tools} if golden.tools else {}
    try:
        reply = httpx.post(engine.url + "/v1/chat/completions", json=body, timeout=_WARM_UP_TIMEOUT_S)
        found = reply.json()["usage"]["prompt_tokens"]
    except (httpx.HTTPError, ValueError, KeyError) as fault:
        raise EngineFailure(f"engine for {engine.model} did not answer a first question: {fault!r}") from fault
    if found != len(golden.token_ids):
        raise ParityMismatch(
            f"{engine.model}: a request for golden prompt 0 counts {found} tokens, expected {len(golden.token_ids)}: "
            "the engine adds or drops a token of its own; export the adapter again"
        )


def _get(engine: Engine, path: str) -> Json:
    try:
        found: Json = httpx.get(engine.url + path, timeout=30).raise_for_status().json()
    except (httpx.HTTPError, ValueError) as fault:
        raise EngineFailure(f"engine for {engine.model} did not answer {path}: {fault!r}") from fault
    return found


def refuse_open_door(host: str, keys: Keys) -> None:
    """Raises RecipeError for an address that others can reach when no key is asked for."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False  # a name may resolve to anything
    if not loopback and not keys.names:
        raise RecipeError(
            [
                f"serve.host: {host!r} can be reached from outside and no key is asked for; "
                "make one (potstill keys add, or serve.keys), or use 127.0.0.1"
            ]
        )

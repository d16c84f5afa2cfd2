"""What a GGUF costs and what it lost: tokens a second, and how far its predictions lie from the 16-bit file's.

Both by the engine that will serve the file. The reference is the 16-bit GGUF of the same weights, read by the same
engine, so that what is measured is the quantisation alone; it is written for the purpose and removed again when the
recipe asks for none. KL(reference || file) is in nats a token, its mean with an interval that resamples conversations
(tokens of one conversation resemble each other), on held-out rows: never training's, never the sealed test's.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill import chat
from potstill.cores import usable_cores
from potstill.engine import Engine
from potstill.engine_logits import RowDivergence, compare_files
from potstill.errors import EngineFailure
from potstill.intervals import Resampling, estimate
from potstill.manifest import write_atomically
from potstill.progress import say, track
from potstill.records import Example, Json
from potstill.tasks.base import Metric

from .formats import Source
from .importance import within_tokens
from .kept import update_kept
from .verify import VERIFICATION

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

REFERENCE = "gguf-f16"
MOST_TOKENS = 8192  # both files read all of them: minutes for eight billion weights on a CPU
PROMPT_TOKENS, DECODED_TOKENS, REPEATS = 128, 32, 3


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A row in tokens: its prompt, its answer with the token that ends it, and the conversation it belongs to."""

    prompt: list[int]
    answer: list[int]
    conversation: str

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.answer


def held_out(tokenizer: Any, rows: Sequence[Example], window: int) -> list[HeldOut]:
    """Rows as training would have seen them, those that fit into the window, of MOST_TOKENS together."""
    found = []
    for row in rows:
        prompt, answer = chat.prompt_and_completion(tokenizer, row.messages, row.tools, row.answer)
        found.append(HeldOut(prompt, answer, row.conversation))
    fitting = [each for each in found if len(each.tokens) <= window] or found[:1]
    return within_tokens(fitting, [len(each.tokens) for each in fitting], MOST_TOKENS)


def measure_files(files: Mapping[str, Path], source: Source, rows: Sequence[Example], out: Path) -> dict[str, Json]:
    """`speed`, `update_kept` and `divergence` of every file."""
    texts = held_out(chat.load_tokenizer(source.tokenizer), rows, source.contract.window)
    found: dict[str, Json] = {}
    with _reference(files, source, out) as reference:
        for name, file in track(files.items(), "measuring files", len(files)):
            kept = update_kept(file, source)
            found[name] = {"speed": speed(file, texts), "update_kept": kept, "divergence": {"reference": REFERENCE}}
            if file != reference:
                figures = divergence_figures(compare_files(reference, file, [each.tokens for each in texts]), texts)
                found[name]["divergence"] |= figures
            say(f"{name}: {_in_words(found[name])}")
    return found


def add_to_verification(verification: Mapping[str, Json], measured: Mapping[str, Json], out: Path) -> Json:
    """The verification of each format with what was measured, also written to verification.json."""
    whole: Json = json.loads((out / VERIFICATION).read_text())
    for name, entry in measured.items():
        whole[name] = {**whole.get(name, {}), **entry}
    write_atomically(out / VERIFICATION, json.dumps(whole, indent=1, ensure_ascii=False).encode())
    return {name: {**entry, **measured.get(name, {})} for name, entry in verification.items()}


@contextmanager
def _reference(files: Mapping[str, Path], source: Source, out: Path) -> Iterator[Path]:
    """The 16-bit file: the artifact's own, or one that is gone afterwards."""
    from .write import write_gguf_file

    if REFERENCE in files:
        yield files[REFERENCE]
        return
    if not files:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix=".reference-", dir=out) as folder:
        path = Path(folder) / "reference-f16.gguf"
        write_gguf_file(source, path, "f16")
        yield path


def divergence_figures(found: Sequence[RowDivergence], texts: Sequence[HeldOut]) -> Json:
    """The figures over the answers' tokens (`answer`: what a service asks for) and over all of the text (`text`)."""
    spans = {
        "answer": [slice(len(each.prompt) - 1, len(each.tokens) - 1) for each in texts],
        "text": [slice(0, len(each.tokens) - 1) for each in texts],
    }
    conversations = [each.conversation for each in texts]
    return {
        part: _figures([row.kl[at] for row, at in zip(found, where, strict=True)],
                       [row.same_top[at] for row, at in zip(found, where, strict=True)], conversations)
        for part, where in spans.items()
    }  # fmt: skip


def _figures(kl: list[NDArray[np.float64]], same: list[NDArray[np.bool_]], conversations: list[str]) -> Json:
    import numpy as np

    sums = [
        {"kl": float(nats.sum()), "same": float(equal.sum()), "tokens": float(len(nats))}
        for nats, equal in zip(kl, same, strict=True)
    ]
    every = np.concatenate(kl)
    figures: Json = {"rows": len(kl), "tokens": len(every)}
    for name, part in (("kl_mean", "kl"), ("same_top", "same")):
        made = estimate(Metric(name, {part: 1.0}, {"tokens": 1.0}), sums, conversations, Resampling())
        if made is not None:
            # a rate's interval for equal rows (Wilson) says nothing of nats
            low, high = (made.value,) * 2 if part == "kl" and made.method == "wilson" else (made.low, made.high)
            figures |= {name: made.value, f"{name}_low": low, f"{name}_high": high}
    return figures | {"kl_p99": float(np.quantile(every, 0.99)), "kl_max": float(every.max())}


def speed(file: Path, texts: Sequence[HeldOut], repeats: int = REPEATS) -> Json:
    """Tokens a second of one stream, reading a prompt and writing: medians over `repeats`, with least and most."""
    import httpx

    pool = [token for each in texts for token in each.tokens]
    prompt = (pool * (PROMPT_TOKENS // len(pool) + 1))[:PROMPT_TOKENS]
    body = {"prompt": prompt, "n_predict": DECODED_TOKENS, "ignore_eos": True, "cache_prompt": False, "temperature": 0}
    threads = usable_cores()
    read, written = [], []
    with Engine.start(file, parallel=1, context=PROMPT_TOKENS + DECODED_TOKENS + 1, threads=threads) as engine:
        for _ in range(repeats):
            answer = httpx.post(f"{engine.url}/completion", json=body, timeout=600)
            if answer.status_code != 200:
                raise EngineFailure(f"{file.name}: engine answered {answer.status_code}: {answer.text[:300]}")
            timings = answer.json()["timings"]
            read.append(float(timings["prompt_per_second"]))
            written.append(float(timings["predicted_per_second"]))
    return {
        "prompt_tokens_per_s": statistics.median(read), "prompt_range": [min(read), max(read)],
        "decode_tokens_per_s": statistics.median(written), "decode_range": [min(written), max(written)],
        "prompt_tokens": PROMPT_TOKENS, "decoded_tokens": DECODED_TOKENS, "repeats": repeats, "threads": threads,
    }  # fmt: skip


def _in_words(entry: Json) -> str:
    speeds, answer = entry["speed"], entry["divergence"].get("answer")
    words = f"{speeds['prompt_tokens_per_s']:.0f} tokens/s read, {speeds['decode_tokens_per_s']:.0f} written"
    if entry["update_kept"] is not None:
        words += f", {entry['update_kept']:.0%} of what training changed is kept"
    if answer is None:
        return f"{words}; the 16-bit file that others are compared with"
    return (
        f"{words}; KL to 16 bits {answer['kl_mean']:.2g} nats a token [{answer['kl_mean_low']:.2g}, "
        f"{answer['kl_mean_high']:.2g}], same likeliest token {answer['same_top']:.1%}"
    )

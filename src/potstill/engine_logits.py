"""How far a GGUF's next-token distributions lie from another's, computed by the engine that serves them.

llama.cpp's server gives out the likeliest few tokens of what it writes, never the whole vocabulary over a given text.
Its library does: the one inside xllamacpp is called here through its C interface (llama.h), in a child process, so
that a fault there is not the caller's. Both files are read with the same library, the same threads and the same
batches, so that equal files differ by exactly nothing.

    python -m potstill.engine_logits REFERENCE MODEL ROWS.json OUT.npz --threads N
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.cores import usable_cores
from potstill.errors import EngineFailure

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BATCH_TOKENS = 256  # bounds the logits in memory: 256 rows of 262,144 are 268 MB
FEWEST_CONTEXT = 64
LOG_TAIL = 1500
LOG_ERROR = 4  # ggml_log_level


@dataclass(frozen=True, slots=True)
class RowDivergence:
    """One text, position by position: KL(reference || model) in nats, and whether both hold the same token likeliest.

    Position t is the distribution of the token after the first t + 1.
    """

    kl: NDArray[np.float64]
    same_top: NDArray[np.bool_]


def compare_files(
    reference: Path, model: Path, rows: Sequence[Sequence[int]], *, threads: int | None = None
) -> list[RowDivergence]:
    """Both files over the same token ids; raises EngineFailure, with the end of the log, when the engine fails."""
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="potstill-logits-") as name:
        folder = Path(name)
        (folder / "rows.json").write_text(json.dumps([list(row) for row in rows]))
        out = folder / "out.npz"
        command = [sys.executable, "-m", "potstill.engine_logits", str(reference), str(model)]
        command += [str(folder / "rows.json"), str(out), "--threads", str(threads or usable_cores())]
        root = str(Path(__file__).resolve().parents[1])
        paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
        with (folder / "log").open("wb") as log:
            code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment).returncode
        if code != 0 or not out.is_file():
            tail = (folder / "log").read_bytes()[-LOG_TAIL:].decode(errors="replace").strip()
            raise EngineFailure(
                f"engine could not compare {model.name} with {reference.name} (exit code {code}); the end of its log: "
                f"{tail or 'nothing'}"
            )
        with np.load(out) as found:
            lengths = [len(row) for row in rows]
            ends = np.cumsum(lengths)
            return [
                RowDivergence(found["kl"][end - length : end], found["same_top"][end - length : end])
                for end, length in zip(ends, lengths, strict=True)
            ]


class _Batch(ctypes.Structure):
    """`struct llama_batch`."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


class _Params(ctypes.Structure):
    """Room for a struct of parameters that is passed by value and whose later fields differ between versions.

    The library fills it with its defaults and reads back as many bytes as it knows; what is beyond is never looked at.
    """

    _fields_ = [("words", ctypes.c_uint64 * 64)]


def _keep_errors(level: int, text: bytes, _: Any) -> None:
    """Errors alone to standard error: by itself the library writes some hundred lines a model."""
    if level == LOG_ERROR:
        print(text.decode(errors="replace"), end="", file=sys.stderr)


_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_LOG = _LogCallback(_keep_errors)  # held here: the library calls it as long as the process lives


def _library() -> Any:
    """llama.cpp's C interface from the installed xllamacpp."""
    spec = importlib.util.find_spec("xllamacpp")
    folder = Path(next(iter(spec.submodule_search_locations or []))) if spec else None
    found = sorted(folder.glob("xllamacpp*.so")) if folder else []
    if not found:
        raise EngineFailure("the engine's library was not found; install the extra `serve` (xllamacpp)")
    library = ctypes.CDLL(str(found[0]))
    pointer = ctypes.c_void_p
    for name, result, takes in (
        ("llama_log_set", None, [_LogCallback, pointer]),
        ("llama_backend_init", None, []),
        ("llama_model_default_params", _Params, []),
        ("llama_context_default_params", _Params, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, _Params]),
        ("llama_init_from_model", pointer, [pointer, _Params]),
        ("llama_set_n_threads", None, [pointer, ctypes.c_int32, ctypes.c_int32]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", ctypes.c_int32, [pointer]),
        ("llama_get_memory", pointer, [pointer]),
        ("llama_memory_clear", None, [pointer, ctypes.c_bool]),
        ("llama_batch_init", _Batch, [ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]),
        ("llama_decode", ctypes.c_int32, [pointer, _Batch]),
        ("llama_get_logits", ctypes.POINTER(ctypes.c_float), [pointer]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, takes
    library.llama_log_set(_LOG, None)
    library.llama_backend_init()
    return library


class _Reader:
    """One model with a context of its own; `logits` gives a text's rows of logits, some hundred positions at a time."""

    def __init__(self, library: Any, file: Path, context: int, threads: int) -> None:
        self._library = library
        self._model = library.llama_model_load_from_file(str(file).encode(), library.llama_model_default_params())
        if not self._model:
            raise EngineFailure(f"{file}: llama.cpp refused the model")
        self.vocabulary = int(library.llama_vocab_n_tokens(library.llama_model_get_vocab(self._model)))
        params = library.llama_context_default_params()
        sizes = ctypes.cast(ctypes.pointer(params), ctypes.POINTER(ctypes.c_uint32))
        if sizes[0] != 512 or sizes[1] < 512:  # n_ctx, n_batch: llama.cpp's defaults ever since
            raise EngineFailure(
                f"llama.cpp's parameters begin with {sizes[0]}, {sizes[1]}, expected 512 and 2048; this version of "
                "xllamacpp lays them out otherwise: install the one in constraints.txt"
            )
        sizes[0], sizes[1], sizes[2] = context, BATCH_TOKENS, BATCH_TOKENS  # n_ctx, n_batch, n_ubatch
        self._context = library.llama_init_from_model(self._model, params)
        if not self._context:
            raise EngineFailure(f"{file}: llama.cpp made no context of {context} tokens")
        library.llama_set_n_threads(self._context, threads, threads)
        self._batch = library.llama_batch_init(BATCH_TOKENS, 0, 1)

    def logits(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """(positions, vocabulary) for each stretch of the text; valid until the next is asked for."""
        import numpy as np

        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
        for start in range(0, len(tokens), BATCH_TOKENS):
            part = tokens[start : start + BATCH_TOKENS]
            batch = self._batch
            batch.n_tokens = len(part)
            for at, token in enumerate(part):
                batch.token[at], batch.pos[at], batch.logits[at] = token, start + at, 1
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
            code = self._library.llama_decode(self._context, batch)
            if code != 0:
                raise EngineFailure(f"llama.cpp's decoding ended with {code} at token {start}")
            values = self._library.llama_get_logits(self._context)
            yield np.ctypeslib.as_array(values, shape=(len(part), self.vocabulary))


def divergence(
    reference: NDArray[np.float32], model: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """KL(reference || model) in nats, and whether the likeliest token is the same, row by row of logits."""
    import numpy as np

    kl = np.empty(len(reference))
    for at, (wanted, got) in enumerate(zip(reference, model, strict=True)):
        left, right = _log_softmax(wanted), _log_softmax(got)
        kl[at] = max(0.0, float(np.sum(np.exp(left) * (left - right))))
    return kl, reference.argmax(axis=1) == model.argmax(axis=1)


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    import numpy as np

    shifted = logits.astype(np.float64)
    shifted -= shifted.max()
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Write `kl` and `same_top`, all rows after one another; 0 when done."""
    import numpy as np

    parser = argparse.ArgumentParser(prog="potstill.engine_logits", description=__doc__)
    for name in ("reference", "model", "rows", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--threads", type=int, default=usable_cores())
    options = parser.parse_args(argv)
    rows: list[list[int]] = json.loads(options.rows.read_text())
    library = _library()
    context = max(FEWEST_CONTEXT, *(len(row) for row in rows))
    first, second = (_Reader(library, file, context, options.threads) for file in (options.reference, options.model))
    if first.vocabulary != second.vocabulary:
        raise EngineFailure(f"{options.model}: {second.vocabulary} tokens, the reference has {first.vocabulary}")
    parts = [
        divergence(left, right)
        for row in rows
        for left, right in zip(first.logits(row), second.logits(row), strict=True)
    ]
    np.savez(
        options.out,
        kl=np.concatenate([kl for kl, _ in parts]),
        same_top=np.concatenate([same for _, same in parts]),
    )
    return 0


if __name__ == "__main__":
    sys.stdout.flush()
    code = main()
    os._exit(code)  # llama.cpp's contexts are freed with the process

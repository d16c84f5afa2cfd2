"""The process that holds the engine: `python -m potstill.engine_child --model F --port N ...`.

Loads a GGUF with llama.cpp (xllamacpp), serves it on loopback, writes its address as one line to standard
output, and lives until its standard input closes, its parent is gone, or SIGTERM arrives. It stands in a process
of its own so that a crash of the engine, or its replacement, is not the caller's.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import Any

from potstill.cores import usable_cores

GGUF_MAGIC = b"GGUF"


def common_params(options: argparse.Namespace) -> Any:
    """llama.cpp's parameters for these options; context is tokens a slot."""
    from xllamacpp import CommonParams

    params = CommonParams()
    params.model.path = options.model
    params.hostnames = ["127.0.0.1"]
    params.port = options.port
    params.n_parallel = options.parallel
    params.n_ctx = options.context * options.parallel
    params.kv_unified = False
    # The fitting pass may shrink the context silently; a caller who asked for N tokens must get N or a failure.
    params.fit_params = False
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads
    params.use_jinja = True
    params.cont_batching = True
    params.cache_prompt = True
    # Sliding-window models (Gemma) forget the shared prefix without this, and every request pays for it again.
    params.swa_full = True
    # Evicted slots are recomputed: the default keeps up to 8 GiB of them in memory.
    params.cache_ram_mib = 0
    params.endpoint_metrics = True
    params.endpoint_props = False
    params.endpoint_slots = True
    params.ui = False
    params.cors_origins = ""
    params.offline = True
    params.warmup = True
    params.verbosity = options.verbosity
    return params


def wait_for_the_end(parent: int) -> None:
    """Return when standard input closes or `parent` is no longer the parent.

    Both, since a sibling forked later may hold our input's other end open. PR_SET_PDEATHSIG would be quicker, but
    fires when the *thread* that started us ends, and a server starts engines from short-lived threads.
    """
    while os.getppid() == parent:
        ready, _, _ = select.select([0], [], [], 0.5)
        if ready and not os.read(0, 4096):
            return


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="potstill.engine_child", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--parallel", type=int, default=4, help="slots: requests decoded together")
    parser.add_argument("--context", type=int, default=2048, help="tokens a slot")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--verbosity", type=int, default=1, help="1: errors, 2: warnings, 3: all of llama.cpp")
    parser.add_argument("--parent", type=int, default=os.getppid(), help="end when this is no longer the parent")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop; 0 after an ordered end, 4 for a file that is no GGUF, 1 when llama.cpp refuses."""
    options = _options(argv)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # Ctrl-C in a terminal reaches the whole group; the parent decides when we end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    address = os.dup(1)
    os.dup2(2, 1)  # whatever llama.cpp prints goes to the log, so that the address line stands alone
    try:
        with open(options.model, "rb") as stream:
            magic = stream.read(4)
    except OSError as fault:
        print(f"{options.model}: cannot be read ({fault.strerror}); give a GGUF file", file=sys.stderr, flush=True)
        return 4
    if magic != GGUF_MAGIC:
        print(f"{options.model}: starts with {magic!r}, expected {GGUF_MAGIC!r}; give a GGUF file", file=sys.stderr)
        return 4
    from xllamacpp import Server

    try:
        server = Server(common_params(options))
    except Exception as fault:  # llama.cpp's refusals arrive as bare RuntimeErrors
        print(f"{options.model}: llama.cpp refused the model: {fault}", file=sys.stderr, flush=True)
        return 1
    os.write(address, (str(server.listening_address) + "\n").encode())
    os.close(address)
    wait_for_the_end(options.parent)
    # The destructor waits for requests in flight; whoever asked for them is gone.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())

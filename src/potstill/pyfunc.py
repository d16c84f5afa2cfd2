"""The student inside another process: an artifact folder that answers as `potstill serve` does, without a server.

    student = LocalStudent(Path("work/quickstart/artifact-KEY"))
    student.answer([{"messages": [{"role": "user", "content": "where is my parcel"}]}])

The same checks at start, the same engine in a child process, the server's own steps in the server's order
(serving/order.py), leaving out what belongs to a door: keys, limits, meters, capture. What MLflow's pyfunc makes of it
stands in tracking_pyfunc_model.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import weakref
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from potstill.errors import ManifestMismatch, PotstillError
from potstill.records import Json
from potstill.serving.call import Call
from potstill.serving.constrain import Constrain
from potstill.serving.engine_step import ask_stream
from potstill.serving.errors import RequestRefused
from potstill.serving.fleet import Deployment
from potstill.serving.http import Http
from potstill.serving.input_settings import InputSettings
from potstill.serving.prompt_step import StripInstructions
from potstill.serving.settings import ServeSettings
from potstill.serving.start import load_artifact, start_engine
from potstill.serving.steps import Plan, Step
from potstill.serving.supervise import LOOK_EVERY_S, SupervisedEngine
from potstill.serving.validate_input import check_body
from potstill.serving.validate_output import ValidateOutput

T = TypeVar("T")
ONE_CHOICE = InputSettings(max_choices=1)  # an Answer holds one
MODEL = "student"  # what a request names; there is one model, so nothing depends on it


class CheckBody(Step):
    """What `ValidateInput` does once it has read a body."""

    async def before(self, call: Call) -> None:
        check_body(call, ONE_CHOICE)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. `message` is the assistant message that the server would send, `text` its canonical text.

    `reason` says why `valid` is false. A request that could not be answered has an `error` and neither of them.
    """

    text: str | None = None
    message: Json | None = None
    valid: bool = False
    reason: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None


class LocalStudent:
    """An artifact folder with its engine. The engine ends with `close`, with this object, and with the process.

    Raises RecipeError (no file for this engine), ManifestMismatch or ParityMismatch (damaged, or another contract) or
    EngineFailure before anything is answered. `digest`, where given, is the artifact that must be found. Safe to call
    from several threads; not to be carried into a forked process.
    """

    def __init__(self, artifact: Path, settings: ServeSettings | None = None, *, digest: str | None = None) -> None:
        self.settings = settings or ServeSettings()
        self.served = load_artifact(artifact, self.settings.format)
        if digest is not None and self.served.digest != digest:
            raise ManifestMismatch(
                f"{artifact}: found artifact {self.served.digest[:12]}, expected {digest[:12]}; these are not the "
                "files that were registered: register again, and do not use this one"
            )
        served, threads, slots = self.served, self.settings.threads, self.settings.slots
        self._engine = SupervisedEngine(lambda: start_engine(served, slots=slots, threads=threads))
        self._deployment = Deployment(MODEL, served, self._engine)
        self._plan = Plan.of([CheckBody(), StripInstructions(), Constrain(self.settings.constrain), ValidateOutput()])
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=_run, args=(self._loop, self._engine), name="potstill-student", daemon=True)
        thread.start()
        self._end = weakref.finalize(self, _end, self._engine, self._loop, thread)

    @property
    def artifact(self) -> str:
        """The short digest by which the server's answers name the artifact."""
        return self.served.digest[:12]

    @property
    def engine_pid(self) -> int:
        return self._engine.pid

    def close(self) -> None:
        """End the engine; safe to call twice."""
        self._end()

    def answer(self, requests: Sequence[Json]) -> list[Answer]:
        """The answers in the order of the requests, each the body of a chat completion, `model` left out.

        A request that is refused, or that fails, gives an Answer with `error`; the others are not touched by it.
        """
        return self._wait(self._answer_all(requests))

    def stream(self, request: Json) -> Iterator[str | Answer]:
        """Pieces of the text as they are written, then the whole Answer, which is what counts."""
        pieces: queue.Queue[str | Answer] = queue.Queue()
        self._submit(self._stream(request, pieces))
        while True:
            try:
                piece = pieces.get(timeout=1.0)
            except queue.Empty:
                if self._end.alive:
                    continue
                piece = Answer(error="the student was closed in the middle of the answer")
            yield piece
            if isinstance(piece, Answer):
                return

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        found: T = self._submit(work).result()
        return found

    def _submit(self, work: Coroutine[Any, Any, T]) -> Any:
        if os.getpid() != self._process or not self._end.alive:
            work.close()
            here = "closed" if os.getpid() == self._process else "loaded in another process, of which this is a fork"
            raise PotstillError(f"the student was {here}; load the model where it is used")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _answer_all(self, requests: Sequence[Json]) -> list[Answer]:
        free = asyncio.Semaphore(self.settings.slots)  # a request's time runs from when it can be worked on

        async def one(request: Json) -> Answer:
            async with free:
                return await self._answer(request)

        return list(await asyncio.gather(*(one(each) for each in requests)))

    async def _answer(self, request: Json) -> Answer:
        call = self._call(request)
        try:
            async with aclosing(self._chunks(call)) as chunks:
                async for _ in chunks:
                    pass
        except RequestRefused as refused:
            return Answer(error=refused.message)
        return self._said(call)

    async def _stream(self, request: Json, pieces: queue.Queue[str | Answer]) -> None:
        call, whole = self._call(request), Answer(error="the stream broke off")
        try:
            calls = self.served.task.kind == "tool_calls"  # a call means nothing before its end
            async with aclosing(self._chunks(call)) as chunks:
                async for chunk in chunks:
                    piece = (chunk["choices"][0].get("delta") or {}).get("content")
                    if piece and not calls:
                        pieces.put(piece)
            whole = self._said(call)
        except RequestRefused as refused:
            whole = Answer(error=refused.message)
        finally:
            pieces.put(whole)

    def _call(self, request: Json) -> Call:
        nobody = Http({}, None, None)  # no step of our plan looks at the exchange itself
        return Call(nobody, self._plan, body={**request, "model": MODEL}, deployment=self._deployment)

    async def _chunks(self, call: Call) -> AsyncGenerator[Json, None]:
        """The way of a request as in serving/answer.py: in through the steps, the engine's chunks, out again."""
        for before in call.plan.before:
            await before(call)
        await self._ready(call)
        async with aclosing(ask_stream(call, self._engine, self.settings.request_timeout_s)) as chunks:
            async for chunk in chunks:
                yield chunk
        for after in call.plan.after:
            await after(call)

    async def _ready(self, call: Call) -> None:
        """Wait for an engine that is being replaced: nobody but us could try again."""
        while not self._engine.ready and call.seconds < self.settings.request_timeout_s:
            await asyncio.sleep(LOOK_EVERY_S)

    def _said(self, call: Call) -> Answer:
        choice, usage = call.response["choices"][0], call.response.get("usage") or {}
        assert call.parsed is not None
        return Answer(
            text=self.served.task.text_of(choice["message"]),
            message=choice["message"],
            valid=call.parsed.valid,
            reason=call.parsed.reason,
            finish_reason=choice.get("finish_reason"),
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
        )


def _run(loop: asyncio.AbstractEventLoop, engine: SupervisedEngine) -> None:
    """The thread that answers: an event loop, and in it the watch that replaces a dead engine."""
    asyncio.set_event_loop(loop)
    watching = loop.create_task(engine.watch())
    try:
        loop.run_forever()
    finally:
        watching.cancel()
        loop.run_until_complete(asyncio.gather(watching, return_exceptions=True))
        loop.close()


def _end(engine: SupervisedEngine, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    if threading.current_thread() is not thread:  # the last reference may be dropped by a coroutine of ours
        thread.join(timeout=5.0)
    engine.stop()

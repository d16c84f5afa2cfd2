"""Checkpoints that are whole or not there, and that say so by hash.

A checkpoint is a folder, written beside its place, synced, and renamed into it; its manifest, with the sha256 of every
file, is the last file written. Two are kept, and the best weights apart: a checkpoint that a disk has damaged is
refused by its hash, and the one before is taken. A write that fails leaves what was there before as it was. Best
weights are on the disk before the checkpoint that names them.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError
from potstill.manifest import sha256_file
from potstill.progress import say
from potstill.records import Json

MANIFEST = "manifest.json"
STATE, TENSORS = "state.json", "tensors.safetensors"
KEPT = 2


def write_checkpoint(folder: Path, name: str, tensors: Mapping[str, Any], state: Json) -> Path:
    """Write `folder/name`; raises OSError, with nothing changed, when the disk refuses."""
    from safetensors.torch import save

    final, building, aside = folder / name, folder / f".{name}.building", folder / f".{name}.aside"
    shutil.rmtree(building, ignore_errors=True)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        flat = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        files = {TENSORS: save(flat), STATE: json.dumps(state).encode()}
        sums = {each: hashlib.sha256(data).hexdigest() for each, data in files.items()}  # of what was meant
        for each, data in (files | {MANIFEST: json.dumps(sums).encode()}).items():
            write_durably(building / each, data)
        sync_folder(building)
        if final.exists():
            os.rename(final, aside)
        os.rename(building, final)
        sync_folder(folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        if aside.exists() and not final.exists():
            os.rename(aside, final)
        raise
    shutil.rmtree(aside, ignore_errors=True)
    return final


def write_durably(path: Path, data: bytes) -> None:
    """All the bytes, on the disk, or an OSError."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        left = memoryview(data)
        while left:
            written = os.write(handle, left)
            if written == 0:
                raise OSError(errno.EIO, "the disk takes no bytes and says no reason", str(path))
            left = left[written:]
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """The names in a folder, on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_checkpoint(path: Path) -> tuple[dict[str, Any], Json]:
    """Tensors and state of a checkpoint; raises ValueError saying what is wrong with it."""
    from safetensors.torch import load

    try:
        sums = json.loads((path / MANIFEST).read_text())
        for name in (TENSORS, STATE):
            if (found := sha256_file(path / name)) != sums[name]:
                raise ValueError(f"{name}: sha256 {found[:12]}…, expected {sums[name][:12]}…")
        return load((path / TENSORS).read_bytes()), json.loads((path / STATE).read_text())
    except (OSError, KeyError, TypeError, ValueError) as fault:
        raise ValueError(f"{type(fault).__name__}: {fault}" if not isinstance(fault, ValueError) else str(fault)) from (
            fault
        )


def newest(folder: Path, run: Mapping[str, str]) -> tuple[Path, dict[str, Any], Json] | None:
    """The newest checkpoint of this run that is as it was written, or None.

    `run` is what must stand in its state: what makes a run this one and no other. What is refused is said and set
    aside, so that no later start, after the log has been cut, finds it readable again and jumps ahead.
    """
    _clear_half_made(folder)
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            tensors, state = read_checkpoint(path)
            then = state.get("run", {})
            if others := sorted(name for name in run.keys() | then.keys() if run.get(name) != then.get(name)):
                raise ValueError(f"it is of another run: {', '.join(others)} differ")
            return path, tensors, state
        except ValueError as fault:
            away = folder / f"refused-{path.name}"
            say(f"checkpoint {path.name} is refused ({fault}) and set aside as {away.name}; taking the one before")
            shutil.rmtree(away, ignore_errors=True)
            os.rename(path, away)
    return None


def _clear_half_made(folder: Path) -> None:
    """Remove what a killed process was writing, and put back what it was about to replace."""
    for path in [*folder.glob(".*.building"), *folder.glob("best/.*.building")]:
        shutil.rmtree(path, ignore_errors=True)
    for path in [*folder.glob(".*.aside"), *folder.glob("best/.*.aside")]:
        final = path.with_name(path.name[1:].removesuffix(".aside"))
        if final.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.rename(path, final)


def save_step(folder: Path, step: int, tensors: Mapping[str, Any], state: Json) -> None:
    """Write the checkpoint of a step and drop what is older than the one before; raises OSError as `write_checkpoint`.

    Best weights that no kept checkpoint remembers are dropped too: one that is resumed from must find its own.
    """
    write_checkpoint(folder, step_name(step), tensors, state)
    for old in sorted(folder.glob("step-*"), reverse=True)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    drop_unneeded_best(folder)


def drop_unneeded_best(folder: Path) -> None:
    """Drop best weights that no kept checkpoint remembers; nothing while one of these cannot be read."""
    remembered = set()
    for path in folder.glob("step-*"):
        try:
            remembered.add(step_name(json.loads((path / STATE).read_text())["progressed"]["best_step"]))
        except (OSError, ValueError, KeyError, TypeError):
            return
    for path in (folder / "best").glob("step-*"):
        if path.name not in remembered:
            shutil.rmtree(path, ignore_errors=True)


class Best:
    """The best weights so far: on the disk, and in memory while the disk refuses them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "best"
        self._unkept: tuple[int, dict[str, Any]] | None = None

    def keep(self, step: int, weights: Mapping[str, Any]) -> None:
        """Take up the weights of a step, and write them; a full disk is said and costs memory."""
        self._unkept = (step, dict(weights))
        try:
            self.settle()
        except OSError as fault:
            self._unkept = (step, {name: value.detach().clone() for name, value in weights.items()})
            say(f"the best weights so far, of step {step}, are not on the disk: {fault}; they are held in memory")

    def settle(self) -> None:
        """Write what the disk has refused before; raises OSError when it refuses again."""
        if self._unkept is not None:
            step, weights = self._unkept
            write_checkpoint(self.folder, step_name(step), weights, {"step": step})
            self._unkept = None

    def read(self, step: int) -> dict[str, Any]:
        """The weights of a step; raises ValueError saying what is wrong with them."""
        if self._unkept is not None and self._unkept[0] == step:
            return self._unkept[1]
        return read_checkpoint(self.folder / step_name(step))[0]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time trains in a folder on this machine; a second one is refused with a PotstillError."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            raise PotstillError(f"another process trains in {folder}; wait for it or stop it") from fault
        except OSError:
            pass  # a file system without locks
        yield


def discard(folder: Path) -> None:
    """Remove all checkpoints at once: a kill in between leaves all of them or none in their place."""
    away = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(away, ignore_errors=True)
    if folder.exists():
        os.rename(folder, away)
        shutil.rmtree(away, ignore_errors=True)


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def random_states() -> Json:
    """Every random state that training draws from, as JSON."""
    import torch

    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{at}": each for at, each in enumerate(torch.cuda.get_rng_state_all())}
    return {name: base64.b64encode(bytes(each.tolist())).decode() for name, each in states.items()}


def restore_random_states(states: Json) -> None:
    """The inverse of `random_states`; states of devices that are not there are left out."""
    import torch

    for name, text in states.items():
        state = torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8)
        if name == "torch":
            torch.set_rng_state(state)
        elif torch.cuda.is_available() and int(name.partition(":")[2]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(name.partition(":")[2]))

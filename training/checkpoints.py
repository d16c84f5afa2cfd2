"""Checkpoints that are whole or not there, and that say so by hash.

A checkpoint is a folder, written beside its place, synced, and renamed into it; its manifest, with the sha256 of every
file, is the last file written. Two are kept, and the best weights apart: a checkpoint that a disk has damaged is
refused by its hash, and the one before is taken. A write that fails leaves what was there before as it was.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.manifest import sha256_file
from potstill.progress import say
from potstill.records import Json

MANIFEST = "manifest.json"
STATE, TENSORS = "state.json", "tensors.safetensors"
KEPT = 2


def write_checkpoint(folder: Path, name: str, tensors: Mapping[str, Any], state: Json) -> Path:
    """Write `folder/name`; raises OSError, with nothing changed, when the disk refuses."""
    from safetensors.torch import save

    final, building = folder / name, folder / f".{name}.building"
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        flat = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        write_durably(building / TENSORS, save(flat))
        write_durably(building / STATE, json.dumps(state).encode())
        sums = {each: sha256_file(building / each) for each in (TENSORS, STATE)}
        write_durably(building / MANIFEST, json.dumps(sums).encode())
        _sync(building)
        if final.exists():
            shutil.rmtree(final)  # of the same step, and refused: else it would have been resumed from
        os.rename(building, final)
        _sync(folder)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return final


def write_durably(path: Path, data: bytes) -> None:
    """All the bytes, on the disk, or an OSError."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(handle, left) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync(folder: Path) -> None:
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


def newest(folder: Path) -> tuple[Path, dict[str, Any], Json] | None:
    """The newest checkpoint that is as it was written, or None; what is refused is said and left out."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            return path, *read_checkpoint(path)
        except ValueError as fault:
            say(f"checkpoint {path.name} is refused ({fault}); taking the one before")
    return None


def save_step(folder: Path, step: int, tensors: Mapping[str, Any], state: Json) -> bool:
    """Write the checkpoint of a step and drop what is older than the one before; False when the disk refuses.

    A full disk costs the checkpoint, not the run: training goes on, and the next one may succeed.
    """
    try:
        write_checkpoint(folder, step_name(step), tensors, state)
    except OSError as fault:
        say(f"no checkpoint at step {step}: {fault}; training goes on, the one before is kept")
        return False
    for old in sorted(folder.glob("step-*"), reverse=True)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return True


def drop_unneeded_best(folder: Path) -> None:
    """Drop best weights that no kept checkpoint remembers (one that is resumed from must find its own)."""
    remembered = set()
    for path in folder.glob("step-*"):
        try:
            remembered.add(step_name(json.loads((path / STATE).read_text())["progressed"]["best_step"]))
        except (OSError, ValueError, KeyError):
            return  # a damaged one: which it needs is not known
    for path in (folder / "best").glob("step-*"):
        if path.name not in remembered:
            shutil.rmtree(path, ignore_errors=True)


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

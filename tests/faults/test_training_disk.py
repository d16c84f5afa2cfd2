"""Every operation of every checkpoint of a run, each refused in one run and ended at in another: no bit changes."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from tests.stages.toy_training import OPERATIONS, Fault, FaultyDisk, Killed, Outcome, toy_run
from training import checkpoints

pytestmark = pytest.mark.faults
FAULTS: dict[str, tuple[Fault, ...]] = {
    "write": ("refuse", "kill", "kill-half"),
    "fsync": ("refuse", "kill"),
    "rename": ("refuse", "kill"),
}


def run_on(disk: FaultyDisk) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "os", disk)
        return toy_run(disk.folder)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_of_every_checkpoint_may_fail_or_be_the_last(operation: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    undisturbed = FaultyDisk(tmp_path / "undisturbed")
    expected = run_on(undisturbed)
    assert undisturbed.counts[operation] > 10
    assert {fault for faults in FAULTS.values() for fault in faults} | {"short"} == set(get_args(Fault))
    for at in range(1, undisturbed.counts[operation] + 1):
        for fault in FAULTS[operation]:
            disk = FaultyDisk(tmp_path / f"{fault}-{at}", operation, at, fault)
            if fault == "refuse":
                assert run_on(disk) == expected, f"{operation} {at} refused"
                continue
            with pytest.raises(Killed):
                run_on(disk)
            assert toy_run(disk.snapshot) == expected, f"{operation} {at}, {fault}"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_disk_that_stays_full_from_any_moment_on_costs_no_bit(operation: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    undisturbed = FaultyDisk(tmp_path / "undisturbed")
    expected = run_on(undisturbed)
    for at in range(1, undisturbed.counts[operation] + 1, 3):
        assert run_on(FaultyDisk(tmp_path / f"full-{at}", operation, at, "refuse", lasting=10_000)) == expected


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "manifest.json"])
def test_every_byte_of_a_checkpoint_matters(file: str, tmp_path: Path) -> None:
    """One bit flipped at every byte (every 97th of the tensors): always refused."""
    torch.set_num_threads(1)
    toy_run(tmp_path / "run")
    folder = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
    whole = (folder / file).read_bytes()
    for at in range(0, len(whole), 97 if file == "tensors.safetensors" else 1):
        (folder / file).write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=r"\S"):
            checkpoints.read_checkpoint(folder)
    (folder / file).write_bytes(whole)
    checkpoints.read_checkpoint(folder)

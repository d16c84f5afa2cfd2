"""Checkpoints: whatever a disk does and whenever a run ends, what is learnt stays the same to the bit."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from potstill.errors import PotstillError
from tests.stages.toy_training import OPERATIONS, FaultyDisk, Killed, Outcome, stopped_at, toy_run
from training import checkpoints, watch

FILES = ("tensors.safetensors", "state.json", "manifest.json")


@dataclass(frozen=True)
class Undisturbed:
    outcome: Outcome
    counts: dict[str, int]  # operations of its checkpoints
    folder: Path  # as it stands at the end


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        disk = FaultyDisk(folder)
        patch.setattr(checkpoints, "os", disk)
        outcome = toy_run(folder)
    return Undisturbed(outcome, disk.counts, folder)


def run_with(disk: FaultyDisk, **changes: Any) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "os", disk)
        return toy_run(disk.folder, **changes)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    for module in (checkpoints, watch, __import__("training.loop", fromlist=["loop"])):
        monkeypatch.setattr(module, "say", lines.append)
    return lines


def test_the_undisturbed_run_tests_what_it_should(undisturbed: Undisturbed) -> None:
    """Several epochs, several evaluations, the best neither first nor last, and operations to fail at."""
    assert len(undisturbed.outcome.steps) >= 8
    assert len(undisturbed.outcome.evaluations) >= 4
    assert 0 < undisturbed.outcome.best_step < len(undisturbed.outcome.steps)
    assert min(undisturbed.counts.values()) >= 10


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_disk_that_refuses_costs_a_checkpoint_and_nothing_else(
    undisturbed: Undisturbed, tmp_path: Path, data: Any
) -> None:
    """At any write, fsync or rename, for one operation or many: the run goes on, and ends with the same bits."""
    operation = data.draw(st.sampled_from(OPERATIONS))
    at = data.draw(st.integers(1, undisturbed.counts[operation]))
    lasting = data.draw(st.sampled_from([0, 0, 1, 7, 1000]))
    folder = fresh(tmp_path)
    assert run_with(FaultyDisk(folder, operation, at, "refuse", lasting)) == undisturbed.outcome


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_run_that_ends_at_any_operation_goes_on_with_the_same_bits(
    undisturbed: Undisturbed, tmp_path: Path, data: Any
) -> None:
    """Ended twice, the second time wherever the first left it: same rows, losses, evaluations, weights."""
    folder = fresh(tmp_path)
    for _ in range(2):
        operation = data.draw(st.sampled_from(OPERATIONS))
        fault = data.draw(st.sampled_from(["kill", "kill-half"] if operation == "write" else ["kill"]))
        disk = FaultyDisk(folder, operation, data.draw(st.integers(1, undisturbed.counts[operation])), fault)
        try:
            run_with(disk)
        except Killed:
            folder = disk.snapshot
    assert toy_run(folder) == undisturbed.outcome


def test_a_disk_that_takes_a_part_of_each_write_is_asked_again(undisturbed: Undisturbed, tmp_path: Path) -> None:
    disk = FaultyDisk(tmp_path / "run", fault="short")
    assert run_with(disk) == undisturbed.outcome
    assert disk.counts["write"] > 3 * undisturbed.counts["write"]


def test_a_disk_that_takes_nothing_is_an_error_and_no_endless_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "write", lambda handle, data: 0)
    with pytest.raises(OSError, match="takes no bytes"):
        checkpoints.write_durably(tmp_path / "file", b"data")


@pytest.mark.parametrize("limit", [0, 400, 4000])
def test_a_truly_full_disk_that_is_freed_again_loses_nothing(
    undisturbed: Undisturbed, tmp_path: Path, said: list[str], limit: int
) -> None:
    """The kernel refuses what is longer than `limit` bytes, log included, from the first evaluation to the third."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(evaluation: int) -> None:
        full = evaluation < 3
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit if full else before[0], before[1]))

    try:
        outcome = toy_run(tmp_path / "run", at_score=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert outcome == undisturbed.outcome
    assert any("no checkpoint at step" in line for line in said)
    assert any("held in memory" in line for line in said)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / sorted(os.listdir(tmp_path / "run" / "checkpoints"))[-1])
    assert toy_run(tmp_path / "run") == undisturbed.outcome


def fresh(tmp_path: Path) -> Path:
    """A folder of its own for each example of a property."""
    return tmp_path / f"run-{len(list(tmp_path.iterdir()))}"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    file=st.sampled_from(FILES),
    damage=st.sampled_from(["cut", "flip", "gone", "empty"]),
    where=st.floats(0, 1, exclude_max=True),
    left=st.sampled_from([5, 6, 7]),
)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_taken(
    halves: dict[int, Path], undisturbed: Undisturbed, tmp_path: Path, file: str, damage: str, where: float, left: int
) -> None:
    folder = fresh(tmp_path)
    shutil.copytree(halves[left], folder)
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    damaged(newest / file, damage, where)
    with pytest.raises(ValueError, match=r"\S"):
        checkpoints.read_checkpoint(newest)
    assert toy_run(folder) == undisturbed.outcome
    assert (folder / "checkpoints" / f"refused-{newest.name}").is_dir()


def damaged(path: Path, damage: str, where: float) -> None:
    data = bytearray(path.read_bytes())
    at = int(where * len(data))
    if damage == "gone":
        path.unlink()
        return
    if damage == "flip":
        data[at] ^= 1 << random.Random(where).randrange(8)
    path.write_bytes(b"" if damage == "empty" else data[:at] if damage == "cut" else data)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return {step: stopped_at(tmp_path_factory.mktemp("half") / "run", step) for step in (5, 6, 7)}


def test_a_newer_checkpoint_that_was_refused_is_never_jumped_to_later(
    halves: dict[int, Path], undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unreadable once (a disk that was away), readable again: by then the log has been cut behind it."""
    folder = tmp_path / "run"
    shutil.copytree(halves[6], folder)
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    hidden = newest / "manifest.json"
    data = hidden.read_bytes()
    hidden.unlink()
    disk = FaultyDisk(folder, "write", 1, "kill")
    with pytest.raises(Killed):
        run_with(disk)
    folder = disk.snapshot
    (folder / "checkpoints" / f"refused-{newest.name}" / "manifest.json").write_bytes(data)
    assert toy_run(folder) == undisturbed.outcome


def test_all_checkpoints_damaged_means_to_begin_anew(
    halves: dict[int, Path], undisturbed: Undisturbed, tmp_path: Path, said: list[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(halves[6], folder)
    for path in (folder / "checkpoints").glob("step-*"):
        damaged(path / "tensors.safetensors", "flip", 0.5)
    assert toy_run(folder) == undisturbed.outcome
    assert sum("is refused (tensors.safetensors: sha256" in line for line in said) == 2


def test_half_made_folders_are_cleared_away(halves: dict[int, Path], undisturbed: Undisturbed, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(halves[6], folder)
    for parent in (folder / "checkpoints", folder / "checkpoints" / "best"):
        for name in (".step-00000099.building", ".step-00000007.building", ".step-00000006.aside"):
            (parent / name).mkdir()
            (parent / name / "tensors.safetensors").write_bytes(b"half")
    assert toy_run(folder) == undisturbed.outcome
    assert list(folder.rglob(".step-*")) == []


def test_damaged_best_weights_are_said_and_the_last_are_kept(
    undisturbed: Undisturbed, tmp_path: Path, said: list[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(undisturbed.folder, folder)
    best = folder / "checkpoints" / "best" / checkpoints.step_name(undisturbed.outcome.best_step)
    damaged(best / "tensors.safetensors", "flip", 0.3)
    outcome = toy_run(folder)
    assert outcome.steps == undisturbed.outcome.steps
    assert outcome.best_step == len(outcome.steps)
    assert any(f"best weights, of step {undisturbed.outcome.best_step}, are refused" in line for line in said)


def test_every_kept_checkpoint_finds_the_best_weights_that_it_remembers(tmp_path: Path) -> None:
    """Looked at before every evaluation, so through the whole life of the folder."""
    folder, looked = tmp_path / "run", []

    def look(evaluation: int) -> None:
        for path in (folder / "checkpoints").glob("step-*"):
            _, state = checkpoints.read_checkpoint(path)
            if state["progressed"]["best_loss"] is None:  # nothing was judged yet but the untrained base
                assert state["progressed"]["evaluated"] <= 0
                continue
            name = checkpoints.step_name(state["progressed"]["best_step"])
            checkpoints.read_checkpoint(folder / "checkpoints" / "best" / name)
            looked.append(name)

    toy_run(folder, at_score=look)
    assert len(set(looked)) >= 2
    assert len(list((folder / "checkpoints" / "best").glob("step-*"))) <= 2
    assert len(list((folder / "checkpoints").glob("step-*"))) == 2


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"units": 23}, "rows and their order"),
        ({"seed": 4}, "rows and their order"),
        ({"learning_rate": 0.01}, r"train\.learning_rate"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_name_and_training_begins_anew(
    halves: dict[int, Path], tmp_path: Path, said: list[str], changes: dict[str, Any], named: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(halves[6], folder)
    found = toy_run(folder, **changes)
    assert any(f"of another run: {named}".replace("\\", "") in line for line in said)
    assert found == toy_run(tmp_path / "alone", **changes)


def test_how_often_checkpoints_are_made_may_change_on_the_way(
    halves: dict[int, Path], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(halves[6], folder)
    assert toy_run(folder, checkpoint_steps=None, checkpoint_minutes=3.0) == undisturbed.outcome


def test_a_second_process_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with checkpoints.locked(tmp_path / "checkpoints"), pytest.raises(PotstillError, match="another process trains in"):
        toy_run(tmp_path)
    toy_run(tmp_path)


@pytest.mark.parametrize("cut", [1, 40, -1])
def test_a_log_line_cut_in_half_is_dropped_and_made_again(
    halves: dict[int, Path], undisturbed: Undisturbed, tmp_path: Path, cut: int
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(halves[6], folder)
    with (folder / "trainer_log.jsonl").open("a") as stream:
        line = json.dumps({"step": 7, "loss": 1.0, "grad_norm": 1.0, "learning_rate": 1.0, "rows": "x"}) + "\n"
        stream.write(line[:cut])
    assert toy_run(folder) == undisturbed.outcome


def test_no_checkpoint_knows_of_steps_that_the_log_has_lost(
    undisturbed: Undisturbed, tmp_path: Path, said: list[str]
) -> None:
    """A disk that takes checkpoints and no log line, and a run that ends then: the lines must not be missed later."""

    class Behind(watch.Watch):
        def _write(self, *, durably: bool = False) -> None:
            if len(self.losses) >= 3:
                raise OSError("no space for the log")
            super()._write(durably=durably)

    def end(evaluation: int) -> None:
        if evaluation == 4:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.stages.toy_training.Watch", Behind)
        with pytest.raises(Killed):
            toy_run(tmp_path / "run", at_score=end)
    assert any("no checkpoint at step" in line and "no space for the log" in line for line in said)
    assert toy_run(tmp_path / "run") == undisturbed.outcome


def test_a_run_that_ends_while_it_cuts_its_log_keeps_the_log(
    halves: dict[int, Path], undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(halves[6], folder)
    with (folder / "trainer_log.jsonl").open("a") as stream:
        stream.write('{"step": 7, "lo')

    def killed(*_: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("potstill.manifest.os.replace", killed)
        with pytest.raises(Killed):
            toy_run(folder)
    assert toy_run(folder) == undisturbed.outcome


def test_a_clock_that_goes_backwards_changes_nothing(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10**9, 0, -1000))
    monkeypatch.setattr("training.watch.time.time", lambda: float(next(clock)))
    folder = stopped_at(tmp_path / "run", 6)
    for at, path in enumerate(sorted((folder / "checkpoints").glob("step-*"))):
        os.utime(path, (1e9 - at, 1e9 - at))
    assert toy_run(folder) == undisturbed.outcome


def test_discarded_checkpoints_go_all_at_once(tmp_path: Path) -> None:
    """A kill while they are removed must not leave a checkpoint without its best weights."""
    toy_run(tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *a, **b: None)  # what a kill right after the rename would leave
        checkpoints.discard(folder)
    assert not folder.exists()
    toy_run(tmp_path / "run")
    checkpoints.discard(folder)
    assert sorted(each.name for each in (tmp_path / "run").iterdir()) == ["trainer_log.jsonl"]

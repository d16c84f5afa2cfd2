"""Promises of the measured matrix product: it is what a device does again and again, at a size that fills it."""

from __future__ import annotations

import itertools

import pytest

from training import speed


def test_the_first_product_which_makes_its_kernel_is_never_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    began = [0.0, 0.1, 10.1]  # the end is set, the first product begins, and has taken ten seconds
    later = itertools.count(10.1, 0.25)  # a quarter of a second each
    clock = itertools.chain(began, later)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    assert speed.matrix_product_flops(size=8, seconds=0.3) == pytest.approx(2 * 8**3 / 0.25)


def test_a_gpu_is_measured_on_products_that_outlast_their_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    clock = itertools.count(0.0, 0.25)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    found = speed.matrix_product_flops("meta")  # a device that computes nothing stands for the GPU
    assert found >= 4 * 2 * 4096**3 / 0.25
    assert len(waited) > speed.LEAST_PRODUCTS  # the clock is read when the device is done

"""Schedules against PyTorch's and the authors' formulas over whole runs; SGD is compared in test_step.py."""

import math

import numpy as np
import pytest

from moco_jax import optim


def rates(schedule, epochs, steps, drops=(), first_epoch=0, peak=0.03):
    rate = optim.learning_rate(peak, schedule, epochs, steps, drops, first_epoch)
    return [float(rate(np.int32(s))) for s in range(epochs * steps)]


def test_steps_schedule_equals_pytorch(float64):
    torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install '.[torch]'")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.03)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [120, 160], 0.1)
    expected = []
    for _ in range(200):
        expected += [optimizer.param_groups[0]["lr"]] * 2
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(rates("steps", 200, 2, (120, 160)), expected, rtol=1e-12)


def test_cosine_per_step_equals_pytorch(float64):
    torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install '.[torch]'")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4 * 7)
    expected = []
    for _ in range(4 * 7):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(rates("cosine_per_step", 4, 7), expected, rtol=1e-9)


@pytest.mark.parametrize("first_epoch", [0, 1])
def test_cosine_schedule_equals_the_formula_of_the_authors(float64, first_epoch):
    expected = [
        0.06 * 0.5 * (1 + math.cos(math.pi * epoch / 200))
        for epoch in range(first_epoch, 200 + first_epoch)
        for _ in range(3)
    ]
    ours = rates("cosine", 200, 3, first_epoch=first_epoch, peak=0.06)
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-17)
    if first_epoch:
        assert round(ours[0], 6) == 0.059996
        assert ours[-1] < 1e-15

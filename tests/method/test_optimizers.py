"""Schedules against PyTorch's and the authors' formulas over whole runs; optimizers' rules alone.

Whole steps of SGD, LARS and AdamW are compared with PyTorch in test_step.py and test_step_v3.py.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.method import optimizers


def rates(schedule, epochs, steps, drops=(), first_epoch=0, peak=0.03):
    rate = optimizers.learning_rate(
        peak,
        schedule=schedule,
        epochs=epochs,
        steps_per_epoch=steps,
        drops=drops,
        first_epoch=first_epoch,
    )
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


def test_warm_up_and_cosine_equal_the_formula_of_v3s_authors(float64):
    epochs, steps, warm, peak = 30, 7, 4, 2.4
    expected = []
    for step in range(epochs * steps):
        epoch = step // steps + step % steps / steps
        if epoch < warm:
            expected.append(peak * epoch / warm)
        else:
            turn = math.pi * (epoch - warm) / (epochs - warm)
            expected.append(peak * 0.5 * (1 + math.cos(turn)))
    rate = optimizers.learning_rate(
        peak, schedule="cosine_per_step", epochs=epochs, steps_per_epoch=steps, warmup_epochs=warm
    )
    ours = [float(rate(np.int32(s))) for s in range(epochs * steps)]
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-15)


def test_ema_momentum_equals_the_formula_of_v3s_authors(float64):
    epochs, steps, base = 30, 7, 0.99
    expected = [
        1 - 0.5 * (1 + math.cos(math.pi * (s / steps) / epochs)) * (1 - base)
        for s in range(epochs * steps)
    ]
    momentum = optimizers.ema_momentum(base, "cosine", epochs * steps)
    ours = [float(momentum(np.int32(s))) for s in range(epochs * steps)]
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    assert optimizers.ema_momentum(base, "constant", 210)(np.int32(9)) == base


def test_schedules_keep_their_place_in_float32_after_millions_of_steps():
    rate = optimizers.learning_rate(
        1.0, schedule="steps", epochs=4000, steps_per_epoch=5004, drops=[3000]
    )
    assert float(rate(np.int32(3000 * 5004 - 1))) == 1
    assert abs(float(rate(np.int32(3000 * 5004))) - 0.1) < 1e-7


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_frozen_parameters_have_no_update_no_decay_and_no_state(name):
    params = {"a": jnp.full((5, 3), 2.0), "b": jnp.full((5, 4), 2.0), "c": jnp.ones(2)}
    grads = {name: jnp.ones_like(p) for name, p in params.items()}
    optimizer = optimizers.create(
        name, 0.9, 0.1, frozen=lambda p: {"a": True, "b": False, "c": False}
    )
    state = optimizer.init(params)
    assert (5, 3) not in {np.shape(leaf) for leaf in jax.tree.leaves(state)}
    updates, _ = optimizer.update(grads, state, params)
    free, _ = optimizers.create(name, 0.9, 0.1).update(
        grads, optimizers.create(name, 0.9, 0.1).init(params), params
    )
    assert not updates["a"].any()
    np.testing.assert_allclose(updates["b"], free["b"])
    np.testing.assert_allclose(updates["c"], free["c"])


def test_lars_leaves_vectors_to_plain_momentum():
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.ones(2)}
    grads = {"kernel": jnp.full((2, 2), 0.5), "bias": jnp.full(2, 0.25)}
    optimizer = optimizers.lars(0.9, 0.1)
    state = optimizer.init(params)
    for expected in (1.0, 1.9):
        updates, state = optimizer.update(grads, state, params)
        # |w| = 6, |g + 0.1 w| = 1.6: each entry is 0.8 * 0.001 * 6 / 1.6
        np.testing.assert_allclose(updates["kernel"], expected * 0.003, rtol=1e-6)
        np.testing.assert_allclose(updates["bias"], expected * 0.25, rtol=1e-6)

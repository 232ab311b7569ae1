"""Every method computes the same on one device and on eight, with the batch in parts and whole."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from moco_jax import encoders
from moco_jax.config import default_config
from moco_jax.encoders.norm import BatchNorm
from moco_jax.method import step
from moco_jax.parallel import mesh
from moco_jax.training import assembly

B, SIDE, EXAMPLES = 32, 16, 70
COMMON = dict(
    arch="tiny",
    dim=8,
    head="mlp",
    image_size=SIDE,
    batch_size=B,
    bn_groups=8,
    shuffle_groups=2,
    queue_size=75,
    temperature=0.2,
    optimizer="sgd",
    lr=0.1,
    epochs=2,
    weight_decay=1e-3,
    compute_dtype="float64",
)
# Of a bank so large that hardly any image's own entry is among its negatives: whether that one is
# nearer than itself, as the positive, is a matter of rounding.
BANK = dict(key_encoder="none", dictionary="memory_bank", bank_negatives=48, examples=7001)
METHODS = {
    "queue": {},
    "queue, symmetric": dict(symmetric=True),
    "queue, empty and masked": dict(queue_start="empty", mask_same_example=True),
    "queue, permutation": dict(shuffle="permutation"),
    "end-to-end": dict(key_encoder="query", dictionary="batch"),
    "memory bank": BANK,
    "memory bank, NCE": BANK | dict(loss="nce", lr=1e-3),
    "v3, LARS": dict(
        dictionary="batch",
        symmetric=True,
        times_2t=True,
        head="v3_resnet",
        predictor="v3_resnet",
        head_width=16,
        bn_groups=1,
        shuffle="none",
        optimizer="lars",
        warmup_epochs=1,
        momentum_schedule="cosine",
        lr=5.0,
    ),
    "v3, AdamW": dict(
        dictionary="batch",
        symmetric=True,
        times_2t=True,
        head="v3_vit",
        predictor="v3_vit",
        head_width=16,
        optimizer="adamw",
        lr=1e-3,
    ),
}


class Tiny(nn.Module):
    """A backbone that compiles in an instant: one convolution, one BatchNorm, pooling."""

    bn_groups: int
    dtype: Any
    reduce: str

    @nn.compact
    def __call__(self, x, train=False):
        convolution = dict(use_bias=False, dtype=self.dtype, param_dtype=self.dtype)
        x = nn.Conv(8, (3, 3), (2, 2), **convolution)(x)
        x = BatchNorm(self.bn_groups, dtype=self.dtype)(x, train)
        return nn.relu(x).mean((1, 2))


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(encoders.BACKBONES, "tiny", functools.partial(Tiny))


@functools.cache
def run(devices, steps=3, examples=EXAMPLES, **changes):
    """Metrics of each step, and the last state."""
    config = default_config()
    config.update(COMMON | changes)
    program = assembly.program(config, mesh.create_mesh(jax.devices()[:devices]), examples)
    state, found = program.initial(), []
    rng = np.random.default_rng(0)
    for _ in range(steps):
        views = [rng.integers(0, 256, (B, SIDE, SIDE, 3), dtype=np.uint8) for _ in range(2)]
        index = rng.choice(EXAMPLES, B, replace=False).astype(np.int32)
        batch = step.Batch(*mesh.to_devices(program.mesh, (*views, index)))
        state, metrics, _ = program.train_step(state, batch)
        found.append(jax.device_get(metrics))
    return found, jax.device_get(state)


def same(one, other, rtol):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", METHODS)
def test_one_device_and_eight_compute_the_same(float64, name):
    one, eight = (run(devices, **METHODS[name]) for devices in (1, 8))
    same(one, eight, 1e-9)
    losses = [float(m["loss"]) for m in one[0]]
    assert len(set(losses)) == 3
    assert all(m["finite"] for m in one[0])


@pytest.mark.parametrize(
    ("name", "devices"), [("queue", 8), ("end-to-end", 1), ("v3, AdamW", 8), ("v3, AdamW", 1)]
)
def test_a_batch_in_parts_is_the_undivided_step(float64, name, devices):
    # On each device a part has at least one whole group.
    changes = METHODS[name] | dict(bn_groups=8 if name == "end-to-end" else 16)
    same(run(devices, **changes), run(devices, **changes, accumulate=2), 1e-7)


def test_parts_hold_less_memory():
    def temporary(accumulate):
        config = default_config()
        changes = dict(compute_dtype="float32", image_size=32, batch_size=128, bn_groups=8)
        config.update(COMMON | changes | dict(accumulate=accumulate))
        program = assembly.program(config, mesh.create_mesh(jax.devices()[:1]), EXAMPLES)
        return program.compile_step().memory_analysis().temp_size_in_bytes

    assert temporary(8) < 0.5 * temporary(1)


def test_the_loss_of_keys_that_all_look_alike_is_the_chance_level():
    """All images equal: every key of the batch is as near; of v3 that is 4 T log B."""
    config = default_config()
    config.update(COMMON | METHODS["v3, AdamW"] | dict(compute_dtype="float32", lr=1e-9))
    program = assembly.program(config, mesh.create_mesh(jax.devices()[:1]), EXAMPLES)
    image = np.full((B, SIDE, SIDE, 3), 100, np.uint8)
    batch = step.Batch(*mesh.to_devices(program.mesh, (image, image, np.arange(B, dtype=np.int32))))
    metrics = program.train_step(program.initial(), batch)[1]
    np.testing.assert_allclose(metrics["loss"], 4 * 0.2 * np.log(B), rtol=1e-4)
    assert jnp.isfinite(metrics["loss"])

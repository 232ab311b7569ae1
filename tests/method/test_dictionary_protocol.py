"""Every dictionary keeps the protocol, and a new one needs nothing else of the package."""

import dataclasses
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.base.errors import UserError
from moco_jax.config import default_config
from moco_jax.method import state, step
from moco_jax.method.choice import KEY_ENCODERS, LOSSES, Method
from moco_jax.method.configured import method_of, queue_life
from moco_jax.method.dictionary import DICTIONARIES, Dictionary, Negatives, Sizes
from moco_jax.method.dictionary.protocol import random_unit_vectors
from moco_jax.parallel import mesh
from moco_jax.training import assembly, checks
from tests.method.test_methods import COMMON, EXAMPLES, SIDE, B, tiny  # noqa: F401  a fixture

SIZES = Sizes(negatives=64, batch_size=B, examples=EXAMPLES, dim=8)


@flax.struct.dataclass
class Pool(Dictionary):
    """Keys that stay where they are put: new ones take the places of a random half of a batch."""

    key_encoders: ClassVar[tuple[str, ...]] = ("momentum",)

    keys: jax.Array
    rng: jax.Array

    @classmethod
    def of_run(cls, rng, sizes):
        place, values = jax.random.split(rng)
        shape = sizes.negatives, sizes.dim
        return cls(random_unit_vectors(values, shape, sizes.dtype), jax.random.key_data(place))

    def negatives(self, real_only=False, *, rng=None, number=0):
        return Negatives(self.keys[None], jnp.full((1, len(self.keys)), -1, jnp.int32))

    def renew(self, index, made, accept=True):
        rng = jax.random.fold_in(jax.random.wrap_key_data(self.rng), index[0])
        places = jax.random.choice(rng, len(self.keys), (len(index),), replace=False)
        keys = jnp.where(accept, made[-1], self.keys[places])
        return dataclasses.replace(self, keys=self.keys.at[places].set(keys))

    @classmethod
    def describe(cls, negatives):
        return f"pool of {negatives} keys"


@pytest.mark.parametrize("name", DICTIONARIES)
def test_every_dictionary_keeps_the_protocol(name):
    kind, all_devices = DICTIONARIES[name], mesh.create_mesh()
    assert set(kind.key_encoders) <= set(KEY_ENCODERS)
    assert set(kind.losses) <= set(LOSSES)
    assert kind.size_setting in default_config()
    assert kind.describe(64)
    kept = kind.of_run(jax.random.key(0), SIZES)
    assert (kept is not None) == kind.persists
    if kept is None:
        assert kind.compared(64, B) == B
        return
    layout = kept.shardings(all_devices)
    assert jax.tree.structure(layout) == jax.tree.structure(kept)
    jax.device_put(kept, layout)
    negatives = kept.negatives(rng=jax.random.key(1), number=64)
    assert negatives.keys.shape[-1] == SIZES.dim
    assert negatives.keys[..., 0].size >= kind.compared(64, B) - 1 == 64
    other = kept.for_batch_size(2 * B)
    assert other.negatives(rng=jax.random.key(1), number=64).keys.shape[-1] == SIZES.dim
    kind.require(64, len(all_devices.devices))


def test_a_class_without_a_duty_is_refused_when_it_is_made():
    @flax.struct.dataclass
    class Nothing(Dictionary):
        keys: jax.Array

    with pytest.raises(TypeError, match="abstract"):
        Nothing(jnp.zeros(3))


def test_the_age_of_keys_is_the_classes_to_say():
    config = default_config()
    config.update(dict(queue_size=75, batch_size=32))
    assert queue_life(config) == 3
    config.symmetric = True
    assert queue_life(config) == 2
    config.dictionary = "batch"
    assert queue_life(config) == 0


def test_an_unknown_dictionary_is_refused_by_name():
    with pytest.raises(UserError, match="use one of queue, batch, memory_bank"):
        Method(dictionary="heap").chance_level(4)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_dictionary_from_nothing_makes_a_run(monkeypatch, devices):
    monkeypatch.setitem(DICTIONARIES, "pool", Pool)
    config = default_config()
    config.update(COMMON | dict(dictionary="pool", queue_size=64, compute_dtype="float32"))
    method_of(config).check()
    checks.check_batch(config, devices)
    program = assembly.program(config, mesh.create_mesh(jax.devices()[:devices]), EXAMPLES)
    now, rng = program.initial(), np.random.default_rng(0)
    first = jax.device_get(now.dictionary.keys)
    for _ in range(2):
        views = [rng.integers(0, 256, (B, SIDE, SIDE, 3), dtype=np.uint8) for _ in range(2)]
        index = rng.choice(EXAMPLES, B, replace=False).astype(np.int32)
        batch = step.Batch(*mesh.to_devices(program.mesh, (*views, index)))
        now, metrics, _ = program.train_step(now, batch)
        assert metrics["finite"]
    moved = (jax.device_get(now.dictionary.keys) != first).any(1)
    assert B <= moved.sum() <= 2 * B
    assert state.for_batch_size(now, 2 * B).dictionary.keys.shape == (64, 8)

"""Different seeds have different random keys, also with 64-bit numbers; small seeds have JAX's."""

import jax
import pytest

from moco_jax.base import random_keys

SMALL = [0, 1, 17, 2**31, 2**32 - 1]
LARGE = [2**32, 2**32 + 1, 2**40, 2**62, 2**63 - 1, *(n * 2**33 + 17 for n in range(1, 20))]


def words(seed):
    return tuple(jax.random.key_data(random_keys.of_seed(seed)).tolist())


def test_different_seeds_differ():
    assert len({words(seed) for seed in SMALL + LARGE}) == len(SMALL) + len(LARGE)


@pytest.mark.parametrize("seed", SMALL)
def test_small_seeds_are_jaxs(seed):
    assert words(seed) == tuple(jax.random.key_data(jax.random.key(seed)).tolist())


def test_with_64_bit_numbers_they_are_the_same():
    plain = [words(seed) for seed in SMALL + LARGE]
    with jax.enable_x64(True):
        assert [words(seed) for seed in SMALL + LARGE] == plain

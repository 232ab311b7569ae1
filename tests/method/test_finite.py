"""What is not finite is neither applied nor saved, and never counts as right."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from moco_jax.base.errors import UserError
from moco_jax.encoders import Encoder
from moco_jax.method import info_nce, nce, optimizers, state, step
from moco_jax.method.choice import Method
from moco_jax.method.dictionary import MemoryBank, Queue
from moco_jax.training import checkpoint
from tests import states
from tests.method.test_mechanisms import CASES, DIM, MEAN, SIDE, STD, TAU, B, Flat, K, Linear, N

# Rates of steps, in turn; only the first step is applied. All but infinity and NaN are numbers of
# float32, so that it is the weights that overflow.
RATES = (0.4, np.inf, -np.inf, 3e38, -3e38, 1e25, np.nan, 1e30)
COUNTERS = {"step", "schedule_step", "examples_seen", "skipped_steps"}


def begin(method, optimizer, seed=0):
    """A state of a linear encoder, and its step, jitted, whose rates are `RATES`."""
    encoder = Encoder(Flat(), Linear())

    def make_dictionary(rng):
        if method.dictionary == "queue":
            return Queue.create(rng, K, B, DIM)
        return MemoryBank.create(rng, N, DIM) if method.dictionary == "memory_bank" else None

    momentum_encoder = method.key_encoder == "momentum"
    first = state.initial_state(
        seed, encoder, optimizer, SIDE, make_dictionary, momentum_encoder=momentum_encoder
    )
    rates = jnp.asarray(RATES, jnp.float32)
    made = step.make_train_step(
        encoder, optimizer, lambda s: rates[s], lambda s: 0.9, method, mean=MEAN, std=STD
    )
    return first, jax.jit(made)


def batch(seed):
    rng = np.random.default_rng(seed)
    views = [rng.integers(0, 256, (B, SIDE, SIDE, 3), dtype=np.uint8) for _ in range(2)]
    return step.Batch(*views, rng.choice(N, B, replace=False).astype(np.int32))


def method_of(name):
    fields = dict(negatives=K, temperature=TAU, bn_groups=1, shuffle="none")
    return Method(**(vars(CASES[name]) | fields))


def changed(before, after):
    one, other = (
        states.flatten({f.name: getattr(s, f.name) for f in dataclasses.fields(s)})
        for s in (before, after)
    )
    return {name for name in one if not np.array_equal(one[name], other[name])}


def is_finite(found):
    return all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(found)))


def refuses(train_step, before, drawn):
    """Assert that the step is not applied, and nothing but the counters moves."""
    after, metrics = train_step(before, drawn)
    assert not metrics["finite"]
    assert {name.split(".")[0] for name in changed(before, after)} == COUNTERS
    assert int(after.skipped_steps) == int(before.skipped_steps) + 1
    return after


@pytest.mark.parametrize("name", ["queue", "end-to-end", "memory bank, NCE"])
def test_a_rate_that_makes_weights_overflow_is_not_applied(name):
    """Twenty-one members: three methods, seven rates."""
    found, train_step = begin(method_of(name), optimizers.sgd(0.9, 1e-4))
    found, metrics = train_step(found, batch(0))
    assert metrics["finite"]
    for number in range(1, len(RATES)):
        found = refuses(train_step, found, batch(number))
    assert is_finite(found)


HUGE = {
    "sgd, decay": optimizers.sgd(0.9, 3e38),
    "adamw, decay": optimizers.adamw(3e38),
    "a scale": optax.chain(optax.scale(3e38), optax.trace(0.9)),
    # The update is finite, what the optimizer remembers is not.
    "memory alone": optax.GradientTransformation(
        lambda p: {"seen": jnp.zeros(())}, lambda g, s, p: (g, {"seen": s["seen"] + jnp.inf})
    ),
}


@pytest.mark.parametrize("name", HUGE)
def test_an_optimizer_that_overflows_is_not_applied(name):
    found, train_step = begin(method_of("queue"), HUGE[name])
    applied, skipped = 0, 0
    for number in range(3):
        # Each step has the rate of the first: it is the optimizer that overflows, at once or by
        # what it remembers.
        before = dataclasses.replace(found, schedule_step=jnp.zeros((), jnp.int32))
        after, metrics = train_step(before, batch(number))
        assert is_finite(after)
        applied, skipped = applied + int(metrics["finite"]), skipped + int(~metrics["finite"])
        found = after
    assert skipped >= 1, applied


def test_an_entry_of_the_bank_that_its_feature_cancels_out_is_not_taken_in():
    bank = MemoryBank.create(jax.random.key(0), N, DIM)
    index = jnp.arange(3, dtype=jnp.int32)
    features = jnp.concatenate([bank.keys[:2], -bank.keys[2:3]])
    moved = bank.moved(index, features, 0.5)
    assert np.isnan(moved[2]).all()
    assert not state.all_finite(moved)
    assert state.all_finite((moved[:2], index, {}))


def test_a_state_that_is_not_finite_is_refused_and_the_last_good_one_is_named(tmp_path):
    """Every array of the state in turn, one number of it."""
    found, _ = begin(method_of("queue"), optimizers.sgd(0.9, 0.0))
    saving = checkpoint.Checkpoints(epath.Path(tmp_path), 2)
    leaves, tree = jax.tree.flatten(found)
    spoilt = [n for n, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert len(spoilt) >= 4
    with pytest.raises(UserError, match="There is no checkpoint yet"):
        saving.save(1, spoil(tree, leaves, spoilt[0], jnp.nan), {"batch_size": B}, {})
    for number in (2, 4):
        saving.save(number, found, {"batch_size": B}, {})
    for n in spoilt:
        for value in (jnp.nan, jnp.inf, -jnp.inf):
            with pytest.raises(UserError, match=r"step 6: .* not finite .* Checkpoint 4 is good"):
                saving.save(6, spoil(tree, leaves, n, value), {"batch_size": B}, {"knn": 0.9})
    saving.close()
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"2", "4"}


def spoil(tree, leaves, number, value):
    """The state with one number of one array replaced."""
    bad = jnp.ravel(leaves[number]).at[-1].set(value).reshape(leaves[number].shape)
    return jax.tree.unflatten(tree, [*leaves[:number], bad, *leaves[number + 1 :]])


@jax.jit
def both(query, key, negatives):
    """The metrics of both losses."""
    found = info_nce.info_nce(query, key, negatives, TAU)[1]
    return found, nce.nce(query, key, negatives, TAU, jnp.zeros(()), N)[2]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("negatives", [1, 3, 700])
@pytest.mark.parametrize("where", ["query", "key", "negatives", "all"])
def test_what_is_nan_or_tied_is_no_hit(value, negatives, where):
    """Thirty-six members; a single one of the rows is spoilt, or all."""
    rng = np.random.default_rng(negatives)
    q, k = (rng.normal(size=(B, DIM)).astype(np.float32) for _ in range(2))
    n = rng.normal(size=(1, negatives, DIM)).astype(np.float32)
    if where in ("query", "all"):
        q[:] = value
    if where in ("key", "all"):
        k[:] = value
    if where in ("negatives", "all"):
        n[:] = np.nan
    unit = [info_nce.normalize(jnp.asarray(x)) for x in (q, k, n)]
    metrics, other = both(*unit)
    assert float(metrics["top1"]) == float(other["top1"]) == 0
    if where != "negatives":  # of three negatives, five places hold them all
        assert float(metrics["top5"]) == float(other["top5"]) == 0


def test_keys_that_are_all_the_same_are_no_hits():
    same = info_nce.normalize(jnp.ones((B, DIM)))
    found = both(same, same, jnp.broadcast_to(same[:1], (1, 7, DIM)))
    assert [float(metrics["top5"]) for metrics in found] == [0, 0]

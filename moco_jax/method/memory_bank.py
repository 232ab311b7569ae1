"""Memory bank: no encoder makes keys; an image's key is its entry in a bank of all images.

Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination (arXiv
1805.01978); the second mechanism that MoCo is compared with (arXiv 1911.05722, figure 2b).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from moco_jax.method import info_nce
from moco_jax.method.batch import Batch, Metrics
from moco_jax.method.dictionary import MemoryBank, Negatives
from moco_jax.method.nce import nce
from moco_jax.method.state import TrainState
from moco_jax.method.step_setup import StepSetup
from moco_jax.method.update import apply_if_finite, optimize
from moco_jax.parallel import mesh as mesh_lib


def memory_bank(setup: StepSetup, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """Take one step with a memory bank (InstDisc, sections 3.1 and 3.2; MoCo v1, figure 2b).

        q, v = f(x_i), bank[i]
        noise = entries of the bank, drawn at random
        loss = CrossEntropy([q.v, q.noise] / tau, 0)      # or NCE, as first published
        f = SGD(f, gradient of loss)
        bank[i] = normalize(0.5 v + 0.5 q)

    The first view of each image is its query; the second is not used.
    """
    f, rng, method = setup.encoding, setup.random_key(state), setup.method
    bank: MemoryBank = state.dictionary
    x, _ = setup.views_of(batch)
    entries = jax.lax.stop_gradient(bank.entries(batch.index))

    def loss_fn(params: Any) -> tuple[jax.Array, tuple[Any, Metrics, jax.Array, jax.Array]]:
        (query,), stats, features = f.queries(params, state.batch_stats, x)
        noise = bank.negatives(rng=rng, number=method.negatives)
        if method.loss == "nce":
            own_noise = mesh_lib.replicate(batch.index, setup.mesh)[:, None] == noise.index
            term, constant = _nce(setup, bank, query, entries, noise, own_noise)
        else:
            term = setup.contrast(query, entries, noise, setup.own_example(batch.index))
            constant = bank.constant
        loss, metrics = setup.total([term])
        metrics |= {"features": features}
        return loss, (stats, metrics, jax.lax.stop_gradient(query), constant)

    (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    stats, metrics, query, constant = aux
    update = optimize(setup, state, grads)
    moved = bank.moved(batch.index, query, method.bank_momentum)
    finite = update.is_finite(loss, stats, (moved, constant))
    kept = jnp.where(finite, constant, bank.constant)
    new = dataclasses.replace(
        state,
        params=update.params,
        batch_stats=stats,
        opt_state=update.opt_state,
        dictionary=dataclasses.replace(bank, constant=kept).renew(batch.index, moved, finite),
    )
    metrics |= update.metrics(loss, finite)
    return apply_if_finite(state, new, batch, finite), metrics


def _nce(
    setup: StepSetup,
    bank: MemoryBank,
    query: jax.Array,
    key: jax.Array,
    noise: Negatives,
    own_noise: jax.Array,
) -> tuple[tuple[jax.Array, Metrics], jax.Array]:
    """Return loss and metrics of the bank's first loss, and its normalising constant Z."""
    loss, constant, metrics = nce(
        query,
        key,
        noise.keys,
        setup.method.temperature,
        bank.constant,
        bank.size,
        setup.mesh,
        own_noise,
    )
    return (loss, {**metrics, "spread": info_nce.spread(query)}), constant

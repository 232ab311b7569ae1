"""End-to-end: the query encoder makes the keys too, and the gradient runs through both.

The first mechanism that MoCo is compared with: He et al. (arXiv 1911.05722), figure 2a and section
3.1. The dictionary is the batch, so that its size is bound to what memory holds.
"""

import dataclasses
from typing import Any

import jax

from moco_jax.method.batch import Batch, Metrics
from moco_jax.method.state import TrainState
from moco_jax.method.step_setup import StepSetup
from moco_jax.method.update import apply_if_finite, optimize


def end_to_end(setup: StepSetup, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """Take one step end-to-end (MoCo v1, figure 2a).

        q, k = f(x_q), f(x_k)                             # k under shuffled BN, with gradient
        loss = CrossEntropy(q k^T / tau, range(N))
        f = SGD(f, gradient of loss)

    With `symmetric` each view is query and key, and the two losses add.
    """
    f, rng = setup.encoding, setup.random_key(state)
    x_q, x_k = setup.views_of(batch)

    def loss_fn(params: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
        queries, stats, features = f.queries(params, state.batch_stats, x_q)
        keys, stats = f.keys(params, stats, x_k, rng, last_first=True)
        pairs = zip(queries, keys, strict=True)
        loss, metrics = setup.total([setup.contrast_in_batch(q, k, batch.index) for q, k in pairs])
        return loss, (stats, metrics | {"features": features})

    (loss, (stats, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    update = optimize(setup, state, grads)
    finite = update.is_finite(loss, stats)
    new = dataclasses.replace(
        state, params=update.params, batch_stats=stats, opt_state=update.opt_state
    )
    metrics |= update.metrics(loss, finite)
    return apply_if_finite(state, new, batch, finite), metrics

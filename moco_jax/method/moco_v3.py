"""MoCo v3: a momentum encoder makes the keys, and the other keys of the batch are the negatives.

Chen, Xie and He, An Empirical Study of Training Self-Supervised Vision Transformers (arXiv
2104.02057).
"""

import dataclasses
from typing import Any

import jax

from moco_jax.method import optimizers
from moco_jax.method.batch import Batch, Metrics
from moco_jax.method.state import TrainState, key_part
from moco_jax.method.step_setup import StepSetup
from moco_jax.method.update import apply_if_finite, optimize


def moco_v3(setup: StepSetup, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """Take one step of MoCo v3 (Algorithm 1).

        q1, q2 = f_q(x1), f_q(x2)                         # with the predictor
        k1, k2 = f_k(x1), f_k(x2)                         # without it
        loss = ctr(q1, k2) + ctr(q2, k1)
        f_q = optimizer(f_q, gradient of loss)
        f_k = m f_k + (1 - m) f_q

        ctr(q, k) = 2 tau CrossEntropy(q k^T / tau, range(N))

    Without `symmetric` the first term is all; without `times_2t` the factor is left out.
    """
    f, rng = setup.encoding, setup.random_key(state)
    x_q, x_k = setup.views_of(batch)  # [x1, x2], [x2, x1]

    # Before the queries, outside of what is differentiated. f_k arrives averaged for this step.
    keys, key_stats = f.keys(state.key_params, state.key_batch_stats, x_k, rng, last_first=True)
    keys = [jax.lax.stop_gradient(key) for key in keys]

    def loss_fn(params: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
        queries, stats, features = f.queries(params, state.batch_stats, x_q)
        pairs = zip(queries, keys, strict=True)
        loss, metrics = setup.total([setup.contrast_in_batch(q, k, batch.index) for q, k in pairs])
        return loss, (stats, metrics | {"features": features})

    (loss, (stats, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    update = optimize(setup, state, grads)
    finite = update.is_finite(loss, (stats, key_stats), keys)
    m = setup.momentum(state.schedule_step + 1)  # of the next step, which these f_k are for
    new = dataclasses.replace(
        state,
        params=update.params,
        batch_stats=stats,
        opt_state=update.opt_state,
        key_params=optimizers.moving_average(state.key_params, key_part(update.params), m),
        key_batch_stats=key_stats,
    )
    metrics |= update.metrics(loss, finite, momentum=m)
    return apply_if_finite(state, new, batch, finite), metrics

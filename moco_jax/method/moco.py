"""MoCo v1 and v2: a momentum encoder makes the keys, and a queue keeps them for later steps.

He et al., Momentum Contrast for Unsupervised Visual Representation Learning (arXiv 1911.05722);
Chen et al., Improved Baselines with Momentum Contrastive Learning (arXiv 2003.04297).
"""

import dataclasses
from typing import Any

import jax

from moco_jax.method import optimizers
from moco_jax.method.batch import Batch, Metrics
from moco_jax.method.state import TrainState, key_part
from moco_jax.method.step_setup import StepSetup
from moco_jax.method.update import apply_if_finite, optimize


def moco(setup: StepSetup, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """Take one step of MoCo (v1, Algorithm 1).

        q, k = f_q(x_q), f_k(x_k).detach()                # k under shuffled BN, section 3.3
        loss = CrossEntropy([q.k, q.queue] / tau, 0)
        f_q = SGD(f_q, gradient of loss)
        f_k = m f_k + (1 - m) f_q
        enqueue(queue, k), dequeue(queue)

    With `symmetric` (the CIFAR-10 demo) each view is query and key, and the two losses add.
    """
    f, queue, rng = setup.encoding, state.dictionary, setup.random_key(state)
    x_q, x_k = setup.views_of(batch)
    only_real, number = setup.method.queue_start == "empty", setup.method.negatives

    # Before the queries, outside of what is differentiated. f_k arrives averaged for this step.
    keys, key_stats = f.keys(state.key_params, state.key_batch_stats, x_k, rng)
    keys = [jax.lax.stop_gradient(key) for key in keys]

    def loss_fn(params: Any) -> tuple[jax.Array, tuple[Any, Metrics]]:
        queries, stats, features = f.queries(params, state.batch_stats, x_q)
        terms = []
        for q, k in zip(queries, keys, strict=True):
            negatives = queue.negatives(only_real, rng=rng, number=number)
            terms.append(setup.contrast(q, k, negatives, setup.own_example(batch.index)))
        loss, metrics = setup.total(terms)
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
        dictionary=queue.renew(batch.index, keys[::-1], finite),  # in the order of views
    )
    metrics |= update.metrics(loss, finite, momentum=m)
    return apply_if_finite(state, new, batch, finite), metrics

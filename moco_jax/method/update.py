"""The end of every method's step: the optimizer, and a new state that is kept only if finite."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from moco_jax.method.batch import Batch, Metrics
from moco_jax.method.state import TrainState, add_examples, all_finite
from moco_jax.method.step_setup import StepSetup


class Update(NamedTuple):
    """What the optimizer makes of a gradient.

    Attributes:
        params, opt_state: new ones of the query encoder.
        grad_norm: L2 norm of the whole gradient.
        rate: the learning rate.
    """

    params: Any
    opt_state: Any
    grad_norm: jax.Array
    rate: jax.Array

    def is_finite(self, loss: jax.Array, stats: Any, entering: Any = ()) -> jax.Array:
        """Say whether loss, gradient, update, `stats` and `entering` keys are all finite.

        `stats` and `entering` are trees: BatchNorm statistics, and what the dictionary takes in.

        The whole update counts or none of it, so it is looked at before any of it is written. On a
        TPU v5e that reads parameters, gradient and the optimizer's memory once more and keeps the
        new memory until then, 0.45 GB for a ResNet-50 (docs/tpu.md). The momentum encoder needs no
        reading: where the norm of the parameters is finite none is above 2e19, and an average of
        such numbers (0 <= m <= 1) cannot overflow.
        """
        finite = jnp.isfinite(loss) & jnp.isfinite(self.grad_norm)
        finite &= jnp.isfinite(optax.global_norm(self.params))
        return finite & all_finite((stats, self.opt_state, entering))

    def metrics(
        self, loss: jax.Array, finite: jax.Array, momentum: jax.Array | float | None = None
    ) -> Metrics:
        """Collect the scalars that every step reports; `momentum`: m, if there is such a thing."""
        found = {"loss": loss, "grad_norm": self.grad_norm, "lr": self.rate, "finite": finite}
        if momentum is not None:
            found["momentum"] = jnp.asarray(momentum, self.rate.dtype)
        return found


def optimize(setup: StepSetup, state: TrainState, grads: Any) -> Update:
    """Take the optimizer's step: parameters minus the learning rate times its update."""
    grad_norm = optax.global_norm(grads)
    rate = jnp.asarray(setup.learning_rate(state.schedule_step))
    updates, opt_state = setup.optimizer.update(grads, state.opt_state, state.params)
    params = jax.tree.map(lambda p, u: p - rate.astype(p.dtype) * u, state.params, updates)
    return Update(params, opt_state, grad_norm, rate)


def apply_if_finite(
    old: TrainState, new: TrainState, batch: Batch, finite: jax.Array
) -> TrainState:
    """Return `new` with the counters after `batch`; of what is not `finite` only the counters move.

    The dictionary of `new` is taken as it is: it was told `finite` when it took the keys in, which
    spares a copy of the whole.
    """

    def chosen(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

    return TrainState(
        step=old.step + 1,
        schedule_step=old.schedule_step + 1,
        examples_seen=add_examples(old.examples_seen, batch.index.shape[0]),
        skipped_steps=old.skipped_steps + (~finite).astype(jnp.int32),
        params=chosen(new.params, old.params),
        batch_stats=chosen(new.batch_stats, old.batch_stats),
        key_params=chosen(new.key_params, old.key_params),
        key_batch_stats=chosen(new.key_batch_stats, old.key_batch_stats),
        opt_state=chosen(new.opt_state, old.opt_state),
        dictionary=new.dictionary,
    )

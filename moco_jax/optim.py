"""Optimizers, and the learning rate as a function of the step.

The optimizers here end before the learning rate: the step multiplies by it, so that a rate is a pure function
of the step and never a count hidden in the optimizer's state.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax


def sgd(momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """SGD as PyTorch writes it: decay joins the gradient of every parameter, then `b = momentum b + g`.

    The returned update is `b`; a step subtracts the learning rate times it (MoCo v1, section 3.3).
    """
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.trace(decay=momentum))


def learning_rate(
    peak: float,
    schedule: str,
    epochs: int,
    steps_per_epoch: int,
    drops: Sequence[int],
    first_epoch: int,
) -> Callable[[jax.Array], jax.Array]:
    """The rate of a step.

    Args:
        peak: the rate at the start.
        schedule: `steps` (times 0.1 at each epoch in `drops`) or `cosine` (half a period to 0), both constant
            within an epoch as in the authors' v1 and v2 code; or `cosine_per_step`, which falls at every step,
            for runs of few epochs.
        epochs: length of the run.
        steps_per_epoch: steps in one epoch.
        drops: epochs at which `steps` divides the rate by ten.
        first_epoch: the number of the first epoch, 0 (ImageNet code) or 1 (CIFAR demo).

    Returns:
        A function from the step (int32 scalar) to the rate (a float scalar).
    """

    def rate(step: jax.Array) -> jax.Array:
        if schedule == "cosine_per_step":
            epoch = step.astype(jnp.result_type(float)) / steps_per_epoch + first_epoch
        else:
            epoch = jnp.asarray(step // steps_per_epoch + first_epoch)
        if schedule == "steps":
            passed = jnp.sum(epoch >= jnp.asarray(list(drops)))
            return peak * jnp.power(0.1, passed.astype(jnp.result_type(float)))
        fraction = epoch.astype(jnp.result_type(float)) / epochs
        return peak * 0.5 * (1 + jnp.cos(jnp.pi * fraction))

    return rate


def moving_average(average, new, momentum: float):
    """The momentum encoder's update, `m average + (1 - m) new`, leaf by leaf (MoCo v1, equation 2)."""
    return jax.tree.map(lambda a, n: momentum * a + (1 - momentum) * n, average, new)

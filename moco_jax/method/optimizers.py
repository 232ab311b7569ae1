"""Optimizers, and learning rate and EMA momentum as functions of the step.

The optimizers return updates that are not yet scaled by the learning rate; the training step
scales them. So the rate is a pure function of the step, and the optimizer's state needs no counter
for it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

OPTIMIZERS = ("sgd", "lars", "adamw")
TRUST = 0.001  # of LARS: a layer's update is this part of its weights' norm


def create(
    name: str,
    momentum: float,
    weight_decay: float,
    frozen: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    """Create the optimizer `name`, one of `OPTIMIZERS`.

    Args:
        name: which; `momentum` is that of `sgd` and `lars`.
        momentum: weight of the buffer at a step.
        weight_decay: as the optimizer's own function has it.
        frozen: from parameters to a tree of booleans: those that get no update, no decay and no
            state.
    """
    chosen = {
        "sgd": lambda: sgd(momentum, weight_decay),
        "lars": lambda: lars(momentum, weight_decay),
        "adamw": lambda: adamw(weight_decay),
    }[name]()
    if frozen is None:
        return chosen

    def label(params: Any) -> Any:
        return jax.tree.map(lambda f: "frozen" if f else "trained", frozen(params))

    return optax.partition({"trained": chosen, "frozen": optax.set_to_zero()}, label)


def sgd(momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """Make SGD as PyTorch writes it: `b = momentum b + (g + weight_decay w)` of every parameter.

    The returned update is `b`; a step subtracts the learning rate times it (MoCo v1, section 3.3).
    """
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.trace(decay=momentum))


def lars(momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """Make LARS as MoCo v3's authors write it, with a rate of its own for each layer.

    `b = momentum b + q (g + weight_decay w)` with `q = TRUST |w| / |g + weight_decay w|`.
    Parameters of rank 0 and 1 (biases, BatchNorm) have neither decay nor `q`. The learning rate
    multiplies `b`, where `optax.lars` puts it into the buffer: the two differ wherever the rate
    changes.
    """

    def matrices(params: Any) -> Any:
        return jax.tree.map(lambda p: p.ndim > 1, params)

    return optax.chain(
        optax.masked(optax.add_decayed_weights(weight_decay), matrices),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=TRUST), matrices),
        optax.trace(decay=momentum),
    )


def adamw(weight_decay: float) -> optax.GradientTransformation:
    """Make AdamW as PyTorch writes it, betas 0.9 and 0.999, eps 1e-8.

    Every parameter decays, biases and norms too.
    """
    return optax.chain(
        optax.scale_by_adam(0.9, 0.999, 1e-8), optax.add_decayed_weights(weight_decay)
    )


def values(schedule: Callable[[jax.Array], jax.Array], steps: int) -> np.ndarray:
    """Compute on the host what `schedule` gives at each of the first `steps` steps: `[steps]`."""
    return np.asarray(jax.vmap(schedule)(jnp.arange(steps)))


def learning_rate(
    peak: float,
    *,
    schedule: str,
    epochs: int,
    steps_per_epoch: int,
    drops: Sequence[int] = (),
    first_epoch: int = 0,
    warmup_epochs: float = 0,
) -> Callable[[jax.Array], jax.Array]:
    """Make the learning rate, a function of the step.

    Args:
        peak: the rate at the start, or after the warm-up.
        schedule: `steps` (times 0.1 at each epoch in `drops`) or `cosine` (half a period to 0),
            both constant within an epoch as in the authors' v1 and v2 code; or `cosine_per_step`,
            which falls at every step, as in v3.
        epochs: length of the run.
        steps_per_epoch: steps in one epoch.
        drops: epochs at which `steps` divides the rate by ten.
        first_epoch: the number of the first epoch, 0 (ImageNet code) or 1 (CIFAR demo).
        warmup_epochs: in these the rate rises from 0 to `peak`, at every step; a cosine begins
            after them.

    Returns:
        A function from the step (int32 scalar) to the rate (a float scalar).
    """

    def rate(step: jax.Array) -> jax.Array:
        exact = jnp.result_type(float)
        whole = jnp.asarray(step // steps_per_epoch + first_epoch).astype(exact)
        now = whole + jnp.asarray(step % steps_per_epoch).astype(exact) / steps_per_epoch
        epoch = now if schedule == "cosine_per_step" else whole
        if schedule == "steps":
            passed = jnp.sum(epoch >= jnp.asarray(list(drops)))
            value = peak * jnp.power(0.1, passed.astype(exact))
        else:
            fraction = (epoch - warmup_epochs) / (epochs - warmup_epochs)
            value = peak * 0.5 * (1 + jnp.cos(jnp.pi * fraction))
        if not warmup_epochs:
            return value
        return jnp.where(now < warmup_epochs, peak * now / warmup_epochs, value)

    return rate


def ema_momentum(
    base: float, schedule: str, total_steps: int
) -> Callable[[jax.Array], jax.Array | float]:
    """Make the momentum encoder's m, a function of the step.

    It is `base` throughout where `schedule` is 'constant'. With 'cosine' it goes from `base` at
    step 0 to 1 at `total_steps`, half a period (MoCo v3's code).
    """

    def momentum(step: jax.Array) -> jax.Array | float:
        if schedule == "constant":
            return base
        fraction = jnp.asarray(step).astype(jnp.result_type(float)) / total_steps
        return 1 - 0.5 * (1 + jnp.cos(jnp.pi * fraction)) * (1 - base)

    return momentum


def moving_average(average, new, momentum):
    """Update the momentum encoder, `m average + (1 - m) new`, leaf by leaf (MoCo v1, equation 2).

    Args:
        average: pytree of the momentum encoder's parameters.
        new: the same of the query encoder.
        momentum: m, a number or a scalar array.
    """
    # optax.incremental_update adds the terms in the other order, and where XLA fuses a product with
    # the sum, a quarter of the numbers then differ in their last bit.
    m, rest = momentum, 1 - momentum
    return jax.tree.map(
        lambda a, n: jnp.asarray(m, a.dtype) * a + jnp.asarray(rest, a.dtype) * n, average, new
    )

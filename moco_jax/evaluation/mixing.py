"""Mixup and CutMix of a batch, as DeiT's training has them: each image is blended with another, or holds a piece of it.

An image's partner is the one as far from the batch's end as it is from the start; one draw serves the whole batch.
"""

import jax
import jax.numpy as jnp

CUT_RATHER = 0.5  # probability of a piece instead of a blend where both are asked for


def blend(share: jax.Array, height: int, width: int) -> jax.Array:
    """Mixup (arXiv 1710.09412): everywhere `share` of the image itself; float32 `[height, width]`."""
    return jnp.full((height, width), share, jnp.float32)


def piece(share: jax.Array, row: jax.Array, column: jax.Array, height: int, width: int) -> jax.Array:  # fmt: skip
    """CutMix (arXiv 1905.04899): 0 where the partner stands, 1 elsewhere; float32 `[height, width]`.

    The partner's rectangle is centred on `row` and `column`, has sqrt(1 - `share`) of both sides and is cut off at the edges.
    """
    side = jnp.sqrt(1 - share)

    def covered(center: jax.Array, length: int) -> jax.Array:
        half, place = (length * side).astype(jnp.int32) // 2, jnp.arange(length)
        return (place >= center - half) & (place < center + half)

    inside = covered(row, height)[:, None] & covered(column, width)[None]
    return 1 - inside.astype(jnp.float32)


def draw(rng: jax.Array, height: int, width: int, mixup: float, cutmix: float) -> jax.Array:
    """How much of itself an image keeps, float32 `[height, width]`.

    `mixup`, `cutmix`: alpha of each one's Beta(alpha, alpha) distribution of shares; 0: never.
    """
    rngs = jax.random.split(rng, 5)
    row, column = (
        jax.random.randint(key, (), 0, length)
        for key, length in zip(rngs[:2], (height, width), strict=True)
    )
    blended = jnp.ones((height, width), jnp.float32)
    if mixup:
        blended = blend(jax.random.beta(rngs[2], mixup, mixup), height, width)
    if not cutmix:
        return blended
    cut = piece(jax.random.beta(rngs[3], cutmix, cutmix), row, column, height, width)
    if not mixup:
        return cut
    return jnp.where(jax.random.uniform(rngs[4]) < CUT_RATHER, cut, blended)


def apply(images: jax.Array, targets: jax.Array, own: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Images `[B, H, W, C]` and targets `[B, classes]` mixed with their partners', of which `1 - own` is seen.

    `own`: float32 `[H, W]` as `draw` gives it; its mean is the share of an image's own target (1 - the rectangle's area).
    """
    mask, share = own[None, :, :, None].astype(images.dtype), own.mean().astype(targets.dtype)
    mixed = mask * images + (1 - mask) * images[::-1]
    return mixed, share * targets + (1 - share) * targets[::-1]

"""Mixup and CutMix of a batch, as in DeiT's training.

Each image is blended with another, or holds a piece of it. An image's partner is the one as far
from the batch's end as it is from the start; one draw serves the whole batch.
"""

import jax
import numpy as np

CUT_RATHER = 0.5  # probability of CutMix instead of Mixup where both are asked for


def blend(share: float, height: int, width: int) -> np.ndarray:
    """Return the mask of Mixup (arXiv 1710.09412): `share` in float32 `[height, width]`."""
    return np.full((height, width), share, np.float32)


def piece(share: float, row: int, column: int, height: int, width: int) -> np.ndarray:
    """Return the mask of CutMix (arXiv 1905.04899): 0 where the partner stands, 1 elsewhere.

    It is float32 `[height, width]`. The partner's rectangle is centred on `row` and `column`,
    has sqrt(1 - `share`) of both sides and is cut off at the edges.
    """

    def covered(center: int, length: int) -> np.ndarray:
        extent, place = int(length * np.sqrt(1 - share)), np.arange(length)
        return (place >= center - extent // 2) & (place < center + (extent + 1) // 2)

    inside = covered(row, height)[:, None] & covered(column, width)[None]
    return 1 - inside.astype(np.float32)


def draw(
    rng: np.random.Generator, height: int, width: int, mixup: float, cutmix: float
) -> np.ndarray:
    """Draw how much of itself each pixel keeps, float32 `[height, width]`.

    `mixup`, `cutmix`: alpha of each one's Beta(alpha, alpha) distribution of shares; 0: never.
    """
    if cutmix and not (mixup and rng.random() >= CUT_RATHER):
        row, column = int(rng.integers(height)), int(rng.integers(width))
        return piece(rng.beta(cutmix, cutmix), row, column, height, width)
    return blend(rng.beta(mixup, mixup) if mixup else 1.0, height, width)


def apply(images: jax.Array, targets: jax.Array, own: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mix images `[B, H, W, C]` and targets `[B, classes]` with their partners'.

    `own`: float32 `[H, W]` as `draw` gives it, the share of the image itself; `1 - own` is the
    partner's. Its mean is the share of an image's own target (1 - the rectangle's area).
    """
    mask, share = own[None, :, :, None].astype(images.dtype), own.mean().astype(targets.dtype)
    mixed = mask * images + (1 - mask) * images[::-1]
    return mixed, share * targets + (1 - share) * targets[::-1]

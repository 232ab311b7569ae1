"""Images held in memory, and the embedded digits, which need neither a disk nor a network."""

from collections.abc import Sequence

import numpy as np

from moco_jax.base.errors import UserError
from moco_jax.data.sources import labels
from moco_jax.data.sources.pixels import RGB, Decoding
from moco_jax.data.sources.records import pixels_of

CANVAS = 32
DIGITS_TEST = 360
DIGIT_SIDES = (19, 28)


class ArraySource:
    """Images in memory."""

    def __init__(
        self,
        images: np.ndarray,
        numbers: np.ndarray | None,
        label: str,
        decoding: Decoding = RGB,
        classes: Sequence[str] = (),
    ):
        """Hold `images` uint8 `[N, H, W, C]` with `numbers` int `[N]` of their `classes`.

        A number of -1 is no class; `label` names the set in messages.

        Raises:
            UserError: C is not what `decoding` says, or a number is no class.
        """
        if images.shape[-1] != decoding.channels:
            raise UserError(
                f"channels={decoding.channels} is not what the images of {label} have; "
                f"channels={images.shape[-1]} works"
            )
        self.images, self.label = images, label
        self._numbers = None if numbers is None else labels.checked(numbers, self.name)
        self.decoding, self.classes = decoding, classes
        self.record_spec = pixels_of(images.shape[1:])

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def identity(self) -> list[np.ndarray]:
        """Return the pixels of all images."""
        return [self.images]

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return images, uint8 `[n, H, W, C]`."""
        return self.images[indices]

    def encoded(self, record: bytes) -> bytes:
        """Return the record: it is never asked for, as there is nothing to decode."""
        return record

    def labels(self, indices: np.ndarray) -> np.ndarray | None:
        """Return labels int64 `[n]`, -1 where there is none."""
        return None if self._numbers is None else self._numbers[indices]

    def name(self, index: int) -> str:
        """Return set and number."""
        return f"{self.label} image {index}"

    def names(self, indices: np.ndarray) -> list[str]:
        """Return set and number of each image."""
        return [self.name(index) for index in indices.tolist()]


def digits(split: str, decoding: Decoding = RGB) -> ArraySource:
    """Place scikit-learn's 1,797 handwritten digits at random on 32 x 32 canvases.

    `train`: 1,437 digits at one place and scale each; `test`: the other 360 at four. Split and
    places are fixed.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()
    rng = np.random.default_rng(1797)
    shuffled = rng.permutation(len(data.target))
    chosen = {"train": shuffled[DIGITS_TEST:], "test": np.repeat(shuffled[:DIGITS_TEST], 4)}
    if split not in chosen:
        raise UserError(f"split={split!r} is unknown; dataset='digits' has train and test")
    rng = np.random.default_rng([1797, split == "test"])
    images = np.zeros((len(chosen[split]), CANVAS, CANVAS, 3), np.uint8)
    for canvas, number in zip(images, chosen[split], strict=True):
        side = rng.integers(DIGIT_SIDES[0], DIGIT_SIDES[1] + 1)
        top, left = rng.integers(0, CANVAS - side + 1, 2)
        ink = np.round(data.images[number] * (255 / 16)).astype(np.uint8)
        drawn = Image.fromarray(ink).resize((side, side), Image.Resampling.BILINEAR)
        canvas[top : top + side, left : left + side] = np.asarray(drawn)[..., None]
    numbers = data.target[chosen[split]].astype(np.int32)
    return ArraySource(images, numbers, f"digits {split}", decoding, tuple("0123456789"))

"""The view of evaluations, features and `moco_jax.load`: an image resized, then cropped.

PIL resizes, as it does in torchvision's transforms, and without TensorFlow.
"""

import numpy as np

# Pixels of a resized image; of larger ones only the part that the centre needs is resized.
_LARGEST = 1 << 24


def _resized(
    plane: np.ndarray, lengths: tuple[int, int], box: tuple[int, int, int, int]
) -> np.ndarray:
    """Resize the part `box` of uint8 `plane` `[H, W]` to `lengths`.

    `lengths`: width, height; `box`: left, top, right, bottom.
    """
    from PIL import Image

    image, bilinear = Image.fromarray(np.ascontiguousarray(plane)), Image.Resampling.BILINEAR
    left, top, right, bottom = box
    if lengths[0] * lengths[1] <= _LARGEST:
        return np.asarray(image.resize(lengths, bilinear))[top:bottom, left:right]
    # The numbers are the same, except that the box is rounded to single precision.
    across, down = image.width / lengths[0], image.height / lengths[1]
    source = (left * across, top * down, right * across, bottom * down)
    return np.asarray(image.resize((right - left, bottom - top), bilinear, source))


def view(image: np.ndarray, side: int, size: int) -> np.ndarray:
    """Return the centre uint8 `[size, size, C]` of the resized image uint8 `[H, W, C]`.

    The shorter side is resized to `side`. Equal to torchvision's `Resize` and `CenterCrop` of a
    PIL image.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    lengths = side * width // short, side * height // short
    # Rounded half to even, as torchvision does.
    left, top = (round((length - size) / 2) for length in lengths)
    box = (left, top, left + size, top + size)
    # One channel at a time, so that a large image is never held a second time as a whole.
    planes = [_resized(image[..., n], lengths, box) for n in range(image.shape[-1])]
    return np.stack(planes, -1)

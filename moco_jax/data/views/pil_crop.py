"""The crop of a drawn view, resized by PIL: for views that need no TensorFlow."""

import numpy as np


def crop(image: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    """Resize the pixels in `box` of uint8 `[H, W, C]` to uint8 `[size, size, C]`.

    Rows are resized first and columns then, each rounded to uint8, as in `resize.py`. Less than
    one value in a hundred differs from those by one level: PIL's weights, which have 22 bits,
    round some ties otherwise.

    `box`: int `[4]`, top, left, height and width, within the image.
    """
    from PIL import Image

    top, left, height, width = (int(number) for number in box)
    part = image[top : top + height, left : left + width]
    bilinear = Image.Resampling.BILINEAR

    def resized(pixels: np.ndarray) -> np.ndarray:
        rows = Image.fromarray(np.ascontiguousarray(pixels)).resize((width, size), bilinear)
        return np.asarray(rows.resize((size, size), bilinear))

    if image.shape[-1] == 3:
        return resized(part)
    return np.stack([resized(part[..., n]) for n in range(image.shape[-1])], -1)

"""A small data set of labelled pixels, laid out as PASCAL VOC: coloured shapes on noise.

The shapes have edges that do not count.
"""

import numpy as np
from PIL import Image

CLASSES = ("ground", "red disc", "green box")
COLOURS = {1: (220, 40, 40), 2: (40, 200, 60)}


def scene(rng, height, width):
    """Image uint8 `[H, W, 3]`, label uint8 `[H, W]`: a shape of each class, 255 at their edges."""
    image = rng.integers(60, 160, (height, width, 3), np.uint8)
    label = np.zeros((height, width), np.uint8)
    y, x = np.mgrid[:height, :width]
    for number, colour in COLOURS.items():
        radius = rng.integers(8, 13)
        middle = rng.integers(radius, (height - radius, width - radius))
        away = (abs(y - middle[0]), abs(x - middle[1]))
        far = np.hypot(*away) if number == 1 else np.maximum(*away)
        image[far < radius] = colour + rng.integers(-20, 20, ((far < radius).sum(), 3))
        label[far < radius] = number
        label[(far >= radius) & (far < radius + 1)] = 255
    return image, label


def write_voc(folder, train=12, test=4, seed=0):
    """Write images of many sizes and a `classes.txt`; the folder.

    The lists train and val have `train` and `test` images.
    """
    rng = np.random.default_rng(seed)
    parts = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
    places = [folder / part for part in parts]
    for place in places:
        place.mkdir(parents=True)
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    palette = [c for number in range(256) for c in COLOURS.get(number, (number,) * 3)]
    for split, number in (("train", train), ("val", test)):
        names = [f"{split}_{n}" for n in range(number)]
        (places[2] / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            image, label = scene(rng, *rng.integers(40, 65, 2))
            Image.fromarray(image).save(places[0] / f"{name}.jpg", quality=95)
            picture = Image.fromarray(label, "P")
            picture.putpalette(palette)
            picture.save(places[1] / f"{name}.png")
    return folder

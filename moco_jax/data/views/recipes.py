"""Recipes of views, and the parameters drawn for one view; needs neither TensorFlow nor JAX.

`augment.py` draws the parameters; `image_ops.py` applies them on the host, `device_ops.py` on
the devices. `device_views.py` does both on the devices, from the same numbers.
"""

import dataclasses
import itertools
from typing import Any, NamedTuple

ATTEMPTS = 10  # attempts at a crop that fits
EACH = 2 * ATTEMPTS + 12  # random numbers of one view, without solarization's
# Random numbers of an example: EACH for the query view, EACH for the key view, then one of each
# for solarization. These stand last, so that recipes with and without solarization draw the
# same crops, colours and flips.
UNIFORMS = 2 * EACH + 2
ORDERS = tuple(itertools.permutations(range(4)))  # of colour operations
# Added to a quotient before it is cut to a whole number: ties go up, also where a division is a
# little too small.
HALF = 0.5 + 2**-14


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How views are drawn: the operations, and the ranges of their parameters.

    Attributes:
        image_size: side of a view in pixels.
        stages: the operations in order, of 'crop', 'color', 'grayscale', 'blur', 'solarize',
            'flip'.
        crop_scale: smallest and largest crop as a share of the image's area.
        crop_ratio: narrowest and widest crop, width over height.
        jitter: strengths of brightness, contrast, saturation and hue; one of 0 is left out.
        jitter_probability, grayscale_probability, flip_probability: of each operation.
        blur_probability, solarize_probability: of each operation in the query view, and in the
            key view.
        blur_sigma: least and greatest sigma in pixels.
        evaluation_resize: length of the shorter side before the centre crop; 0: no resize beyond
            the crop's need.
    """

    image_size: int
    stages: tuple[str, ...]
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_probability: float = 1.0
    grayscale_probability: float = 0.2
    blur_probability: tuple[float, float] = (0.5, 0.5)
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_probability: tuple[float, float] = (0.0, 0.0)
    flip_probability: float = 0.5
    evaluation_resize: int = 0


COLOURS = ("color", "grayscale")  # stages that need red, green and blue
RECIPES: dict[str, Recipe] = {
    "v1": Recipe(224, ("crop", "grayscale", "color", "flip"), jitter=(0.4, 0.4, 0.4, 0.4)),
    "v2": Recipe(
        224,
        ("crop", "color", "grayscale", "blur", "flip"),
        jitter=(0.4, 0.4, 0.4, 0.1),
        jitter_probability=0.8,
    ),
    "v3": Recipe(  # BYOL's
        224,
        ("crop", "color", "grayscale", "blur", "solarize", "flip"),
        crop_scale=(0.08, 1.0),  # the authors' default; their ResNet recipes say 0.2
        jitter=(0.4, 0.4, 0.2, 0.1),
        jitter_probability=0.8,
        blur_probability=(1.0, 0.1),
        solarize_probability=(0.0, 0.2),
    ),
    "cifar": Recipe(
        32,
        ("crop", "flip", "color", "grayscale"),
        crop_scale=(0.08, 1.0),
        jitter=(0.4, 0.4, 0.4, 0.1),
        jitter_probability=0.8,
    ),
    "digits": Recipe(32, ("crop",), crop_scale=(0.3, 1.0)),
    "linear": Recipe(224, ("crop", "flip"), crop_scale=(0.08, 1.0)),  # of classifiers
}


def create(name: str, image_size: int, crop_min: float | None = None, channels: int = 3) -> Recipe:
    """Create the recipe `name` at `image_size` pixels; `crop_min` replaces its smallest crop.

    With `channels` other than three its colour operations are left out. ImageNet recipes are
    evaluated on the centre of images resized by 256 / 224 of the view's side.
    """
    if name not in RECIPES:
        raise ValueError(f"augment={name!r} is unknown; use one of {', '.join(RECIPES)}")
    base, resized = RECIPES[name], name in ("v1", "v2", "v3", "linear")
    return dataclasses.replace(
        base,
        image_size=image_size,
        stages=tuple(s for s in base.stages if channels == 3 or s not in COLOURS),
        crop_scale=(crop_min or base.crop_scale[0], base.crop_scale[1]),
        evaluation_resize=round(image_size * 256 / 224) if resized else image_size,
    )


def without_colours(name: str, channels: int) -> str:
    """Say in a sentence that `create` leaves out colour operations; '' where it does not."""
    kept = create(name, 1, channels=channels).stages
    if kept == RECIPES[name].stages:
        return ""
    left = " and ".join(filter(None, (", ".join(kept[:-1]), kept[-1])))
    return (
        f"channels={channels}: the colour operations of augment={name!r} are left out; {left}"
        " remain"
    )


class View(NamedTuple):
    """The drawn parameters of one view, or of a batch of views with a leading axis `[B]`.

    Attributes:
        box: int32 `[4]`, top, left, height and width of the crop.
        color, grayscale, blur, solarize, flip: bool, whether each is applied.
        factors: float32 `[4]`, of brightness, contrast, saturation and hue.
        order: int32 `[4]`, in which these four are applied.
        sigma: float32, of the blur.
    """

    box: Any
    color: Any
    factors: Any
    order: Any
    grayscale: Any
    blur: Any
    sigma: Any
    solarize: Any
    flip: Any


# Dtype and shape of each field of one View, in their order.
FIELDS: tuple[tuple, ...] = (
    ("int32", 4),
    ("bool",),
    ("float32", 4),
    ("int32", 4),
    ("bool",),
    ("bool",),
    ("float32",),
    ("bool",),
    ("bool",),
)

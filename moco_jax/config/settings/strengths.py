"""The settings that replace strengths of the views' recipe, rows of `recipe.py`.

Each has the name of a setting of a stage of views (`data/views/operations/`), and is empty unless
a run wants another strength than its `augment` has: a new operation gets a setting by a row here.
"""

from moco_jax.config.settings.kinds import Range, Setting, optional

HUE = 0.5  # half of the circle, beyond which hues come round again
OWN = "(): the augmentation's own"
BOTH = f"one number, or two: of first and second view; {OWN}"


def _strengths(value: tuple[float, ...]) -> str:
    """Say what is wrong with the four strengths of the jitter; '' where nothing is."""
    if len(value) < 4 or value[3] <= HUE:
        return ""
    return f"turns hues by more than half of the circle; try {(*value[:3], HUE)}"


def _ascending(value: tuple[float, ...]) -> str:
    """Say what is wrong with the order of two numbers; '' where nothing is."""
    return "" if list(value) == sorted(value) else f"must ascend; try {tuple(sorted(value))}"


def _probability(example: float) -> Setting:
    return optional(example, Range(0, 1), (1, 2))


STRENGTHS = {
    "crop_ratio": (
        optional((0.75, 1.5), Range(0.05, 20), (2,), _ascending),
        f"narrowest and widest crop, width over height; {OWN}, 3/4 to 4/3",
    ),
    "jitter": (
        optional(0.5, Range(0, 10), (1, 4), _strengths),
        "strength of the change of colours: one number multiplies the augmentation's four, four "
        f"replace them (brightness, contrast, saturation, hue); {OWN}",
    ),
    "jitter_probability": (_probability(0.8), f"how often colours change; {BOTH}"),
    "grayscale_probability": (_probability(0.2), f"how often colours become gray; {BOTH}"),
    "blur_probability": (_probability(0.5), f"how often views are blurred; {BOTH}"),
    "blur_sigma": (
        optional((0.1, 2.0), Range(0, 16), (2,), _ascending),
        f"weakest and strongest blur, sigma in pixels of the view; {OWN}",
    ),
    "solarize_probability": (
        _probability(0.2),
        f"how often values from 128 on are inverted; {BOTH}",
    ),
    "flip_probability": (_probability(0.5), f"how often left and right are exchanged; {BOTH}"),
    "vertical_flip_probability": (
        _probability(0.5),
        f"how often top and bottom are exchanged, for images without an up; {BOTH}",
    ),
    "rotate_probability": (
        _probability(1.0),
        f"how often views are turned by 0, 90, 180 or 270 degrees, each as often; {BOTH}",
    ),
}

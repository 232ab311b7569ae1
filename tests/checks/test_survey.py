"""Which images are looked at, and what is seen in one."""

import io

import numpy as np
from PIL import Image

from moco_jax.checks import survey


def test_a_sample_is_spread_and_a_full_one_is_everything():
    np.testing.assert_array_equal(survey.spread(7, 9, 0), np.arange(7))
    chosen = survey.spread(1_000_003, 200, 0)
    assert len(set(chosen.tolist())) == 200
    assert np.diff(chosen).min() > 0
    assert np.diff(chosen).max() < 2 * 1_000_003 / 199
    assert (chosen != survey.spread(1_000_003, 200, 1)).any()


def encoded(image, **options):
    out = io.BytesIO()
    image.save(out, **{"format": "PNG"} | options)
    return out.getvalue()


def test_only_pixels_that_are_not_opaque_make_a_picture_transparent():
    opaque = Image.new("RGBA", (3, 3), "red")
    pierced = opaque.copy()
    pierced.putpixel((1, 1), (0, 0, 0, 254))
    palette = Image.new("P", (3, 3))
    assert survey.is_transparent(encoded(pierced))
    assert survey.is_transparent(encoded(pierced, format="WEBP", lossless=True))
    assert survey.is_transparent(encoded(palette, transparency=0))
    assert not survey.is_transparent(encoded(palette, transparency=1))
    assert not survey.is_transparent(encoded(opaque))
    assert not survey.is_transparent(encoded(pierced)[:40])
    assert not survey.is_transparent(encoded(opaque.convert("RGB"), format="JPEG"))

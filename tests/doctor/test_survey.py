"""Which images are looked at, and what is seen in one."""

import io

import numpy as np
from PIL import Image

from moco_jax.base.findings import OK, WARNING
from moco_jax.data.sources.folder import FolderSource
from moco_jax.data.sources.pixels import Decoding
from moco_jax.doctor import images, survey


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


def test_a_background_is_advised_and_then_said_to_be_used(tmp_path):
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(tmp_path / "black.png")
    for background, mark, words, mean in (
        (-1, WARNING, "--config.background=255 puts them on white", 0),
        (255, OK, "have transparent parts, which are blended with background=255", 1),
    ):
        source = FolderSource(str(tmp_path), Decoding(background=background))
        found = survey.survey(source, np.arange(1), 1, lambda done: None)
        (finding,) = images.see_through(found, source.name, background)
        assert finding.severity == mark
        assert words in finding.text
        np.testing.assert_array_equal(found.mean, [mean] * 3)

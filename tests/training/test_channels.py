"""Runs and the doctor on images of other channels than three, from arrays and TIFF.

Views are made on the host and on the device; what does not fit is refused.
"""

import re

import numpy as np
import pytest
from etils import epath

from moco_jax import config as config_lib
from moco_jax.base import figures
from moco_jax.base.errors import UserError
from moco_jax.training import checks, loop
from tests.data.sources.test_pixels import npy, tiff
from tests.doctor.test_doctor import begin, line_with, small
from tests.training.test_loop import losses

pytestmark = pytest.mark.usefixtures("programs_kept")

BANDS, WHITE = 5, 10000


def reflectances(count):
    """`count` images uint16 `[48, 60, 5]`, smooth, below `WHITE` in every band."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, WHITE, (count, 6, 6, BANDS)).astype(np.uint16)
    return coarse.repeat(8, 1).repeat(10, 2)


def folder_of(kind, folder, count=40):
    folder.mkdir()
    for number, image in enumerate(reflectances(count)):
        if kind == "npy":
            content = npy(image)
        else:
            content = tiff(image, photometric="minisblack", planarconfig="contig")
        (folder / f"{number:03}.{kind}").write_bytes(content)
    return folder


def settings(folder, **changes):
    numbers = dict(channels=BANDS, white=float(WHITE), mean=(0.5,) * BANDS, std=(0.25,) * BANDS)
    return small(folder, monitor_every=3, **numbers, **changes)


@pytest.mark.parametrize(("kind", "place"), [("npy", "device"), ("tif", "host")])
def test_a_folder_trains_and_says_that_colours_are_left_out(tmp_path, capsys, kind, place):
    folder = folder_of(kind, tmp_path / "images")
    (folder / "broken.npy").write_bytes(b"\x93NUMPY")
    (folder / "other.npy").write_bytes(npy(np.zeros((9, 9, 4), np.uint8)))
    config = settings(folder, augment_on=place, batch_size=8, queue_size=16, bn_groups=2)
    config.update(eval_batch_size=16, epochs=1, monitor_every=1)
    loop.train(config, str(tmp_path / "run"), set())
    out = capsys.readouterr().out
    assert "the colour operations of augment='v2' are left out; crop, blur and flip remain" in out
    assert "other.npy: channels=5 is asked for, it has 4" in out
    assert "2 damaged images were replaced" in out
    assert np.isfinite(losses(tmp_path / "run")).all()
    assert len(losses(tmp_path / "run")) > 0
    assert (tmp_path / "run/neighbours.png").stat().st_size > 10_000


@pytest.mark.parametrize("kind", ["npy", "tif"])
def test_the_doctor_measures_channels_and_draws_them(tmp_path, kind):
    folder = folder_of(kind, tmp_path / "images")
    (folder / "other.npy").write_bytes(npy(np.zeros((9, 9, 4), np.uint8)))
    examination, out = begin(settings(folder, augment_on="device"), step=1.0)
    examination.settings(16)
    examination.dataset(None)
    examination.images(None)
    examination.views(epath.Path(tmp_path / "views.png"))
    examination.devices()
    text = out.getvalue()
    assert line_with(text, "colour operations of augment='v2' are left out") == "note"
    assert line_with(text, "1 of 41 cannot be decoded") == "warning"
    assert "other.npy: channels=5 is asked for, it has 4" in text
    assert line_with(text, "every ending is that of the content") == "ok"
    assert line_with(text, "the train step compiles") == "ok"
    shares = np.round(reflectances(40) / WHITE * 255) / 255
    for name, expected in (("mean", shares.mean((0, 1, 2))), ("std", shares.std((0, 1, 2)))):
        found = np.fromstring(re.search(rf"{name}=\(([^)]*)\)", text)[1], sep=",")
        np.testing.assert_allclose(found, expected, atol=6e-4)
    assert "nearly black" not in text
    assert (tmp_path / "views.png").stat().st_size > 10_000


def test_the_doctor_asks_for_white_where_images_are_nearly_black(tmp_path):
    folder = folder_of("npy", tmp_path / "images", 20)
    config = settings(folder)
    config.white = 0.0
    examination, out = begin(config)
    examination.dataset(None)
    examination.images(None)
    assert line_with(out.getvalue(), "nearly black") == "note"
    assert "--config.white=VALUE" in out.getvalue()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"channels": 5},
            r"mean=\(0.485, 0.456, 0.406\) has 3 values, and channels=5 .*moco_jax\.doctor",
        ),
        (
            {"channels": 1, "mean": (0.5,)},
            r"std=\(0.229, 0.224, 0.225\) has 3 values, and channels=1 asks for 1",
        ),
        ({"channels": 0}, r"channels=0 must be at least 1 and at most 1024; try 3"),
        ({"white": -1.0}, r"white=-1.0 must be at least 0 and at most 4294967296; try 0.0"),
        (
            {"background": 256},
            r"background=256 must be at least -1 and at most 255 "
            r"\(a gray level: 0 is black, 255 white; -1",
        ),
        ({"background": -2}, "background=-2 must be at least -1 and at most 255 .*a gray level"),
        (
            {"max_pixels": 0},
            "max_pixels=0 must be at least 1 and at most 1099511627776; try 178956970",
        ),
        (
            {"background": 255, "channels": 4, "mean": (0.5,) * 4, "std": (0.2,) * 4},
            "background=255 is for images in gray or colour, and channels=4; background=-1 works",
        ),
        ({"std": (0.2, 0.0, 0.2)}, r"std=\(0.2, 0.0, 0.2\) must be at least 0.0001"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    config = config_lib.default_config()
    config.update(changes)
    with pytest.raises(UserError, match=message):
        checks.check(config, 1)


def test_three_channels_are_shown_in_colour_and_fewer_in_gray():
    image = np.arange(4 * 5 * 5, dtype=np.uint8).reshape(4, 5, 5)
    np.testing.assert_array_equal(figures.shown(image), image[..., :3])
    np.testing.assert_array_equal(figures.shown(image[..., :2]), image[..., 0])

"""Pictures packed smaller or as pixels: PIL's pixels, upright, in order, whoever reads them."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from moco_jax.base.errors import UserError
from moco_jax.data import labelled_views, packing
from moco_jax.data.packing import effect
from moco_jax.data.sources import open_source, pixels
from moco_jax.data.sources.pixels import RGB, Decoding
from moco_jax.data.views import recipes
from moco_jax.doctor import survey
from tests.data.batches import train_batches
from tests.data.pictures import PHOTO, decoded, encoded, write
from tests.data.test_packing import Cut, contents, quiet

SIDE = 48
LARGE = load_sample_images().images[0][:425]  # a quarter of 425 rows is no whole number


def deep():
    """A gray picture of sixteen bits, and what it is in eight."""
    gray = PHOTO[..., 1].astype(np.uint16) * 257 + 3
    return encoded("PNG", pixels=gray), np.repeat(PHOTO[..., 1:2], 3, -1)


def animated():
    frames = [Image.fromarray(PHOTO).quantize(32), Image.fromarray(255 - PHOTO).quantize(32)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def clear():
    """A picture whose left half is transparent."""
    alpha = np.where(np.arange(PHOTO.shape[1]) < 60, 0, 255).astype(np.uint8)
    alpha = np.broadcast_to(alpha, PHOTO.shape[:2])[..., None]
    return encoded("PNG", pixels=np.concatenate([PHOTO, alpha], -1))


FILES = {
    "cat/0.jpg": encoded(quality=95),
    "cat/1.png": deep()[0],
    "cat/2.png": clear(),
    "cat/bad.jpg": b"words",
    "cat/small.jpg": encoded(pixels=PHOTO[:30, :50], quality=95),
    "dog/0.jpg": encoded(mode="L", quality=95),
    "dog/1.jpg": encoded(mode="CMYK", quality=95),
    "dog/2.gif": animated(),
    "dog/large.jpg": encoded(pixels=LARGE, orientation=8, quality=95),
    "dog/small.jpg": encoded(pixels=PHOTO[:30, :50], orientation=6, quality=95),
    "dog/tall.png": encoded("PNG", pixels=PHOTO[:, :49]),
}
SOUND = [name for name in FILES if "bad" not in name]


def expected(name, side):
    """What PIL makes of a file: upright, in eight bits, its shorter side at most `side`."""
    if name == "cat/1.png":
        image = Image.fromarray(deep()[1])
    else:
        image = Image.open(io.BytesIO(FILES[name]))
        image = ImageOps.exif_transpose(image).convert("RGB")
    short = min(image.size)
    if short <= side:
        return np.asarray(image)
    size = [round(length * side / short) for length in image.size]
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def packed(folder, out, format, **settings):
    plan = packing.make_plan(folder, str(out), 2, format, **settings)
    packing.pack(plan, quiet)
    return plan


def images_of(source):
    return [source.encoded(record) for record in source.read(np.arange(len(source)))]


@pytest.mark.parametrize(("format", "settings"), [("tfrecord", {"quality": 96}), ("raw", {})])
def test_pictures_are_pils_in_order_and_a_cut_run_gives_the_same_bytes(tmp_path, format, settings):
    folder, out = write(tmp_path / "images", FILES), tmp_path / "out"
    settings = {"shorter_side": SIDE} | settings
    plan = packed(folder, out, format, **settings)
    assert [os.path.basename(path) for path in packing.damaged_names(plan)] == ["bad.jpg"]
    source = open_source("tfrecord", "", str(out))
    assert source.names(np.arange(len(source))) == SOUND
    assert source.labels(np.arange(len(source))).tolist() == [n.startswith("dog") for n in SOUND]
    way = pixels.PIXELS if format == "raw" else pixels.JPEG
    for name, content, (image, sound) in zip(
        SOUND, images_of(source), decoded(source), strict=True
    ):
        assert sound
        assert pixels.rule(content, RGB).way == way
        np.testing.assert_array_equal(image, pixels.pixels(content, RGB))
        wanted = expected(name, SIDE)
        assert image.shape == wanted.shape, name
        apart = np.abs(image.astype(int) - wanted).mean()
        # Of pixels only the large picture differs, which was shrunk a part of the way in decoding.
        bound = 3 if format == "tfrecord" else 1.5 if "large" in name else 0
        assert apart <= bound, (name, apart)
        if format == "tfrecord":
            assert (content == FILES[name]) == (name == "cat/small.jpg")

    def cut(shard, image):
        if shard == 1:
            raise Cut

    again = packing.make_plan(folder, str(tmp_path / "again"), 2, format, **settings)
    with pytest.raises(Cut):
        packing.pack(again, cut)
    other = "raw" if format == "tfrecord" else "tfrecord"
    for changed, said in (
        ({"shorter_side": 47}, "shorter_side: 48 -> 47"),
        ({"shorter_side": SIDE, "quality": 50}, "quality: 96 -> 50"),
        ({"shorter_side": SIDE, "format": other}, f"format: '{format}' -> '{other}'"),
        ({"shorter_side": SIDE, "decoding": Decoding(background=9)}, "background: -1 -> 9"),
    ):
        if format == "raw" and "quality" in changed:
            continue
        changed = {"format": format} | changed
        with pytest.raises(UserError, match=rf"another packing \(.*{said}") as refused:
            packing.pack(packing.make_plan(folder, str(tmp_path / "again"), 2, **changed), quiet)
        assert "\n" not in str(refused.value)
    packing.pack(again, quiet)
    assert contents(tmp_path / "again") == contents(out)


def test_pixels_are_read_alike_by_all_who_read(tmp_path, monkeypatch):
    monkeypatch.setattr(effect, "VIEWS", "digits")  # a crop alone, which compiles little
    files = {f"{n}.jpg": encoded(pixels=PHOTO[n : n + 30, :50]) for n in range(3)}
    plan = packed(write(tmp_path / "images", files), tmp_path / "out", "raw")
    source, other = open_source("tfrecord", "", str(tmp_path / "out")), plan.source
    recipe, every = recipes.create("digits", 16), np.arange(3)
    for settings in ({}, {"crop_only": True}):
        made, wanted = (next(train_batches(s, recipe, 3, **settings)) for s in (source, other))
        np.testing.assert_array_equal(made["query"], wanted["query"])
        np.testing.assert_array_equal(made["key"], wanted["key"])
    made, wanted = (
        next(labelled_views.evaluation_batches(s, recipe, every[None], 1)) for s in (source, other)
    )
    assert made["ok"].all()
    np.testing.assert_array_equal(made["image"], wanted["image"])
    found, wanted = (survey.survey(s, every, 1, lambda done: None) for s in (source, other))
    assert found.good.all()
    np.testing.assert_array_equal(found.pixels, wanted.pixels)
    # Nothing was shrunk, so that the same parameters give the same views.
    effects = effect.measure(plan, 5)
    assert (effects.images, effects.side, effects.apart) == (3, 30, 0)
    assert effects.bytes == (np.mean([len(f) for f in files.values()]), 30 * 50 * 3 + 128)
    # A cut record, and one of other channels or more pixels than asked for, is no image.
    (whole, *_) = images_of(source)
    for content, decoding in (
        (whole[:-1], RGB),
        (whole, Decoding(channels=1)),
        (whole, Decoding(max_pixels=100)),
    ):
        held = effect.Held(source, every[:1])
        held.decoding, held._records[0] = decoding, packing.example(content, "", None)
        assert [sound for _, sound in decoded(held)] == [False]
        assert survey.survey(held, every[:1], 1, lambda done: None).good.tolist() == [False]


def test_transparent_parts_and_gray_pictures_become_what_was_asked_for(tmp_path):
    folder = write(tmp_path / "images", {"a.png": clear(), "b.jpg": FILES["cat/0.jpg"]})
    packed(folder, tmp_path / "white", "raw", decoding=Decoding(background=255))
    (first, _) = decoded(open_source("tfrecord", "", str(tmp_path / "white")))
    assert (first[0][:, :60] == 255).all()
    np.testing.assert_array_equal(first[0][:, 60:], PHOTO[:, 60:])
    gray = Decoding(channels=1)
    packed(folder, tmp_path / "gray", "tfrecord", decoding=gray, shorter_side=SIDE)
    for image, sound in decoded(open_source("tfrecord", "", str(tmp_path / "gray"), None, gray)):
        assert sound
        assert image.shape == (SIDE, 65, 1)
    assert json.loads((tmp_path / "gray/pack.json").read_text())["quality"] == 90


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shorter_side": 9, "quality": 0}, "quality=0 must be from 1 to 100; try 90"),
        ({"shorter_side": 9, "quality": 101}, "quality=101 must be from 1 to 100; try 90"),
        ({"shorter_side": -1}, "shorter_side=-1 must be at least 0"),
        ({"quality": 80}, "quality=80 is of the JPEGs .* try --shorter_side=256"),
        ({"quality": 80, "format": "raw"}, "quality=80 is .*'raw' keeps pixels; leave it out"),
        (
            {"shorter_side": 9, "decoding": Decoding(channels=5)},
            "shorter_side=9 writes JPEGs, which hold no channels=5; --format=raw does",
        ),
        ({"decoding": Decoding(background=255)}, "background=255 is for images .*written anew"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, settings, message):
    settings = {"format": "tfrecord"} | settings
    with pytest.raises(UserError, match=message):
        packing.make_plan("images", str(tmp_path / "out"), 0, **settings)

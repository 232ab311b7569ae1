r"""Measures how far views are from torchvision's on PIL, by operation and as whole chains.

    python -m benchmarks.views_vs_torchvision --dataset=tfds:imagenet2012 --data_dir=TFDS \
        [--images=100] [--out=OUT]

`--dataset=folder --data_dir=FOLDER` takes any images. For each row the worst picture is kept in
OUT: torchvision's, ours, and their difference thirty-two times. Needs the extra `torch`, and a
checkout (the comparison is the tests').
"""

import functools
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tests.data import torchvision_views as views

# isort: split
import numpy as np
import tensorflow as tf
from absl import app, flags
from PIL import Image
from torchvision.transforms import functional as F

from moco_jax.base.console import table
from moco_jax.data.sources import open_source
from moco_jax.data.sources.tf_decode import RATIOS, decode_image, decode_or_flag
from moco_jax.data.views import augment, device_views, recipes, resize

DATASET = flags.DEFINE_string("dataset", "folder", "'folder', or 'tfds:NAME'.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "The folder, or the TFDS data directory.")
IMAGES = flags.DEFINE_integer("images", 100, "How many images are compared.")
OUT = flags.DEFINE_string("out", "views_vs_torchvision", "Folder for the worst pictures.")
SIDE = 224
# Images of ImageNet's size are shrunk for views of this side, cameras' photographs for 224.
SCALED_SIDE = 64

IMAGENET = (("v1", 0), ("v2", 0), ("v3", 0), ("v3", 1))  # recipes, and which view of them

Pair = tuple[np.ndarray, np.ndarray]


def pictures() -> list[np.ndarray]:
    """Read the images, uint8 `[H, W, 3]` each."""
    with tempfile.TemporaryDirectory() as scratch:
        source = open_source(DATASET.value, "train", DATA_DIR.value, scratch)
        records = source.read(np.arange(min(IMAGES.value, len(source))))
    decoded = (decode_or_flag(source, tf.constant(record)) for record in records)
    return [image.pixels.numpy() for image in decoded if image.ok]


def operation(name: str, images: list[np.ndarray]) -> Iterator[Pair]:
    """Yield ours and torchvision's of every image, with the parameter's values in turn."""
    ours, theirs, values = views.OPERATIONS[name]
    for number, image in enumerate(images):
        value = values[number % len(values)]
        crop = views.cropped(image, (0, 0, *image.shape[:2]), SIDE)
        expected = theirs(Image.fromarray(crop), float(np.float32(value)))
        yield views.on_planes(ours, crop, value), np.asarray(expected)


def crops(images: list[np.ndarray]) -> Iterator[Pair]:
    """Yield the crop and resize of a drawn view."""
    for number, image in enumerate(images):
        box = views.draw(recipes.RECIPES["v2"], image.shape, number).box.numpy().tolist()
        expected = F.resized_crop(Image.fromarray(image), *box, [SIDE, SIDE])
        yield views.cropped(image, box, SIDE), np.asarray(expected)


def scaled(images: list[np.ndarray]) -> Iterator[Pair]:
    """Yield the crop and resize of a drawn view where it is made of JPEGs shrunk in decoding."""
    recipe = recipes.create("v2", SCALED_SIDE)
    for number, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=95)
        content, view = tf.constant(file.getvalue()), views.draw(recipe, image.shape, number)
        shrunk = augment.shrink((view, view), recipe)
        ours, whole = decode_image(content, shrunk=shrunk), decode_image(content)
        expected = F.resized_crop(
            Image.fromarray(whole.numpy()), *view.box.numpy().tolist(), [SCALED_SIDE] * 2
        )
        made = augment.apply_view(resize.pad(ours), view, recipe, True, RATIOS[shrunk.numpy()])
        if shrunk:
            yield made.numpy(), np.asarray(expected)


def chain(name: str, number: int, on: str, images: list[np.ndarray]) -> Iterator[Pair]:
    """Yield whole views with the same drawn parameters, finished on `host` or `device`.

    `number`: query (0) or key view (1).
    """
    import jax

    recipe = recipes.create(name, 32 if name == "cifar" else SIDE)
    finish = jax.jit(device_views.finish, static_argnums=2)
    for seed, image in enumerate(images):
        view, padded = views.draw(recipe, image.shape, seed, number), resize.pad(tf.constant(image))
        made = augment.apply_view(padded, view, recipe, on == "device").numpy()
        if on == "device":
            drawn = recipes.View(*(np.asarray(field)[None] for field in view))
            made = np.asarray(finish(made[None], drawn, recipe))[0]
        yield made, views.with_torchvision(image, view, recipe)


def named(name: str, number: int) -> str:
    """Name a recipe in the tables, with the view where its views differ."""
    return f"{name} view {number + 1}" if name == "v3" else name


def compare(name: str, pairs: Iterator[Pair], within: int, out: Path) -> list[str]:
    """Return a row of the table, and write the worst picture to `out`."""
    worst, share, means = None, 1.0, []
    for ours, theirs in pairs:
        difference = np.abs(ours.astype(np.int32) - theirs)
        means.append(difference.mean())
        share = min(share, (difference <= within).mean())
        if worst is None or means[-1] > worst[0]:
            worst = means[-1], ours, theirs, difference
    assert worst is not None
    shown = [worst[2], worst[1], np.minimum(worst[3] * 32, 255).astype(np.uint8)]
    Image.fromarray(np.concatenate(shown, 1)).save(out / f"{name.replace(' ', '_')}.png")
    return [
        name,
        f"{np.mean(means):.4f}",
        f"{worst[0]:.4f}",
        f"{share:.4%}",
        str(within),
        str(worst[3].max()),
    ]


def statistics(name: str, number: int, images: list[np.ndarray]) -> list[list[str]]:
    """Compare means of views that each pipeline draws for itself, in standard errors."""
    recipe, times = recipes.create(name, SIDE), 4
    transform = views.authors_transform(name, SIDE, number)
    ours, theirs = [], []
    for seed, image in enumerate(images * times):
        view = views.draw(recipe, image.shape, seed, number)
        made = augment.apply_view(resize.pad(tf.constant(image)), view, recipe)
        ours.append(views.statistics(made.numpy()))
        drawn = transform(Image.fromarray(image)).numpy().transpose(1, 2, 0)
        theirs.append(views.statistics(drawn))
    a, b = np.asarray(ours), np.asarray(theirs)
    error = np.sqrt((a.var(0) + b.var(0)) / len(a))
    columns = a.mean(0), b.mean(0), np.abs(a.mean(0) - b.mean(0)) / error
    rows = zip(views.STATISTICS, *columns, strict=True)
    return [
        [f"{named(name, number)}: {what}", f"{x:.2f}", f"{y:.2f}", f"{z:.1f}"]
        for what, x, y, z in rows
    ]


def main(argv: list[str]) -> None:
    """Compare everything and print it."""
    out = Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    images = pictures()
    print(f"{len(images)} images; differences in gray levels of 255")
    cases: dict[str, tuple[Callable[[], Iterator[Pair]], int]] = {
        "crop and resize": (lambda: crops(images), 2),
        f"same with scaled decoding, {SCALED_SIDE} px": (lambda: scaled(images), 2),
    }
    for name in views.OPERATIONS:
        cases[name] = (lambda n=name: operation(n, images)), 4 if name == "hue" else 2
    for name, number in (*IMAGENET, ("cifar", 0)):
        for on in ("host", "device"):
            made = functools.partial(chain, name, number, on, images)
            cases[f"{named(name, number)} on {on}"] = made, 6
    rows = [compare(name, pairs(), within, out) for name, (pairs, within) in cases.items()]
    heads = [
        "",
        "mean",
        "mean, worst image",
        "share within, worst image",
        "within",
        "largest, there",
    ]
    print(table(heads, rows))
    rows = [row for name, number in IMAGENET for row in statistics(name, number, images)]
    print(table(["statistic of whole pipelines", "ours", "torchvision", "standard errors"], rows))


if __name__ == "__main__":
    app.run(main)

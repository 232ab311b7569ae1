r"""Compares pairs of views a second from image files: torchvision's DataLoader and this package.

    python -m benchmarks.input_vs_torchvision --dataset=tfds:imagenet2012 --data_dir=TFDS \
        [--workers=2] [--seconds=20] [--shorter_sides=256,320]

Both read the same files in one run; `--dataset=folder --data_dir=FOLDER` reads a folder of
JPEGs. With `--shorter_sides` the files are packed too, to JPEGs and to pixels of each of these
sizes, and both read the packed images as well: torchvision as files, this package as shards.
torchvision runs the authors' transforms on PIL in as many worker processes as this package has
threads, as its users run it and once more with the setting of memory that this package's commands
have. Also shown: what decoding, cropping and resizing alone would give, which is the most that
this package can reach, and where a host's time goes, operation by operation. Needs the extra
`torch`.
"""

import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import torch  # before TensorFlow: in the other order the process crashes
from PIL import Image, ImageFilter
from torch.utils import data as torch_data
from torchvision import transforms

# isort: split
import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks import machine
from moco_jax.base import allocator
from moco_jax.base.console import size, table
from moco_jax.data import packing, pipeline, running
from moco_jax.data.sources import Source, open_source
from moco_jax.data.sources.folder import FolderSource
from moco_jax.data.sources.tf_decode import decode_image
from moco_jax.data.views import host_pixels, recipes, resize
from moco_jax.data.views.operations import Crop, Flip, Grayscale, blur, jitter
from tests.data.torchvision_views import authors_transform

DATASET = flags.DEFINE_string("dataset", "folder", "'folder', or 'tfds:NAME' of JPEG files.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "The folder, or the TFDS data directory.")
WORKERS = flags.DEFINE_integer("workers", 0, "Processes and threads; 0: as many as cores.")
SECONDS = flags.DEFINE_float("seconds", 20, "Duration of each measurement.")
RECIPES = flags.DEFINE_list("recipes", ["v1", "v2"], "Augmentations that are timed.")
SCALED = flags.DEFINE_bool(
    "scaled_decoding", False, "Time scaled decoding too; for images far larger than 224 px."
)
SHORTER_SIDES = flags.DEFINE_list(
    "shorter_sides", [], "Also time the files packed with these shorter sides."
)
QUALITY = flags.DEFINE_integer("quality", 90, "Quality of the packed JPEGs.")
SIDE, BATCH = 224, 64


class Form(NamedTuple):
    """Images as they are stored: a name, files for torchvision, and a source for this package."""

    name: str
    files: list[str]
    source: Source


class Pairs(torch_data.Dataset):
    """Two views of each file, as the authors' TwoCropsTransform gives them."""

    def __init__(self, files: list[str], name: str):
        self.files, self.transform = files, authors_transform(name, SIDE)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        if self.files[index].endswith(".npy"):
            image = Image.fromarray(np.load(self.files[index]))
        else:
            with open(self.files[index], "rb") as file:
                image = Image.open(file).convert("RGB")
        return [self.transform(image), self.transform(image)]


def keep_memory(worker: int) -> None:
    """Let a worker process keep what it frees, as this package's commands do."""
    allocator.keep_freed_memory()


def with_torchvision(files: list[str], name: str, workers: int, keeps: bool) -> Iterator[int]:
    """Yield sizes of torchvision's batches, without end.

    `keeps`: whether its processes keep the memory that they free, which PyTorch leaves to the user.
    """
    loader = torch_data.DataLoader(
        Pairs(files, name),
        BATCH,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=True,
        multiprocessing_context="spawn",  # this process keeps its memory, and a fork would too
        worker_init_fn=keep_memory if keeps else None,
    )
    while True:
        for query, _ in loader:
            yield len(query)


def with_ours(
    source: Source,
    recipe: recipes.Recipe,
    workers: int,
    crop_only: bool = False,
    scaled: bool = False,
) -> Iterator[int]:
    """Yield sizes of this package's batches, without end."""
    batches = pipeline.train_batches(
        source,
        recipe,
        seed=0,
        batch_size=BATCH,
        rows=np.arange(BATCH),
        examples_seen=0,
        workers=workers,
        damaged=pipeline.DamagedImages(0),
        crop_only=crop_only,
        scaled_decoding=scaled,
    )
    return (len(batch["query"]) for batch in batches)


def decoded(files: list[str], workers: int) -> Iterator[int]:
    """Yield sizes of batches that are only decoded, each image once."""
    images = (
        tf.data.Dataset.from_tensor_slices(files)
        .repeat()
        .map(lambda f: tf.shape(decode_image(tf.io.read_file(f))), num_parallel_calls=workers)
        .batch(BATCH)
        .with_options(running.options(workers))
    )
    return (len(batch) for batch in images.as_numpy_iterator())


def rate(batches: Iterator[int], seconds: float) -> float:
    """Return items a second, after programs have been compiled and buffers filled."""
    for _ in range(20):
        next(batches)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        count += next(batches)
    return count / (time.perf_counter() - began)


def files_of(dataset: str, data_dir: str, scratch: str) -> Path:
    """Return the folder of JPEG files.

    The images of a TFDS dataset are written out, encoded as they are.
    """
    if dataset == "folder":
        return Path(data_dir)
    import tensorflow_datasets as tfds

    images = tfds.load(
        dataset.removeprefix("tfds:"),
        split="train",
        data_dir=data_dir or None,
        decoders={"image": tfds.decode.SkipDecoding()},
        try_gcs=False,
        download=False,
    )
    for number, example in enumerate(images.take(1000).as_numpy_iterator()):
        (Path(scratch) / f"{number:04d}.jpg").write_bytes(example["image"])
    return Path(scratch)


def forms(folder: Path, scratch: Path) -> list[Form]:
    """Return the JPEGs of `folder` as they are, and packed as the flags say."""
    files = [str(f) for f in sorted(folder.rglob("*.jp*g"))]
    found = [Form("original", files, FolderSource(str(folder)))]
    for side in map(int, SHORTER_SIDES.value):
        found.append(packed(folder, scratch, side, "tfrecord"))
        found.append(packed(folder, scratch, side, "raw"))
    return found


def packed(folder: Path, scratch: Path, side: int, format: str) -> Form:
    """Pack `folder` with pictures of this shorter `side`, and write them out as files too."""
    raw = packing.FORMATS[format].raw
    name = f"{side} px, {'pixels' if raw else f'JPEG of {QUALITY.value}'}"
    shards, single = scratch / f"{format}{side}", scratch / f"{format}{side}_files"
    quality = None if raw else QUALITY.value
    plan = packing.make_plan(
        str(folder), str(shards), 0, format, shorter_side=side, quality=quality
    )
    packing.pack(plan, lambda *_: None)
    source = open_source(packing.FORMATS[format].dataset, "", str(shards))
    single.mkdir()
    files = []
    for number in range(len(source)):
        path = single / f"{number:05d}{'.npy' if raw else '.jpg'}"
        path.write_bytes(source.encoded(source.read(np.asarray([number]))[0]))
        files.append(str(path))
    return Form(name, files, source)


Case = tuple[Callable, tuple, Callable | None]  # ours, its arguments, and PIL's without arguments


def operations(content: bytes) -> list[list[str]]:
    """Return milliseconds of each operation on one image, on one thread, beside PIL's."""
    rows = []
    for name, (ours, arguments, pil) in _cases(content).items():
        milliseconds = 1e3 * _seconds(ours, arguments)
        row = [name, f"{milliseconds:.2f}"]
        if pil:
            theirs = 1e3 * machine.median_seconds(pil, 50)
            row += [f"{theirs:.2f}", f"{theirs / milliseconds:.2f}"]
        rows.append(row + [""] * (4 - len(row)))
    return rows


def _compiled(operation: Callable) -> Callable:
    return tf.function(operation, jit_compile=True)


def _seconds(operation: Callable, arguments: tuple, times: int = 200) -> float:
    """Return the mean seconds of one call of `operation`."""
    tensors = [
        tf.constant(a, tf.float32) if isinstance(a, float) else tf.constant(a) for a in arguments
    ]
    # Timed in tf.data and on one thread, as in a run: eager calls would add their own cost.
    results = (
        tf.data.Dataset.range(times + 20)
        .map(
            lambda _: tf.reduce_max(operation(*[tf.identity(x) for x in tensors])),
            num_parallel_calls=1,
        )
        .with_options(running.options(1))
        .as_numpy_iterator()
    )
    for _ in range(20):
        next(results)
    began = time.perf_counter()
    for _ in results:
        pass
    return (time.perf_counter() - began) / times


def _cases(content: bytes) -> dict[str, Case]:
    """Return the operations to time on the image encoded in `content`, by name."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    image = tf.constant(np.asarray(picture))
    height, width = image.shape[:2]
    box = tf.constant([height // 8, width // 8, height * 3 // 4, width * 3 // 4])
    part = (width // 8, height // 8, width // 8 + width * 3 // 4, height // 8 + height * 3 // 4)
    small = tf.constant(
        np.asarray(picture.crop(part).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    )
    theirs = Image.fromarray(small.numpy())
    planes, padded = host_pixels.to_planes(small), resize.pad(image)
    packed = host_pixels.pack(planes)
    f = transforms.functional
    return {
        "decode": (
            decode_image,
            (content,),
            lambda: Image.open(io.BytesIO(content)).convert("RGB"),
        ),
        "crop and resize": (
            lambda x, b: resize.resize(x, b, tf.constant([SIDE, SIDE]), tf.constant([0, 0]), SIDE),
            (padded, box),
            lambda: f.resized_crop(picture, *box.numpy().tolist(), [SIDE, SIDE]),
        ),
        "padding, once for both views": (resize.pad, (image,), None),
        **_colours(packed, theirs),
        "blur": (
            blur.gaussian_on_host,
            (planes, 1.0),
            lambda: theirs.filter(ImageFilter.GaussianBlur(radius=1.0)),
        ),
        "flip": (_compiled(lambda x: Flip().on_host(x, None)), (packed,), lambda: f.hflip(theirs)),
        "packing and unpacking": (
            _compiled(lambda x: host_pixels.unpack(host_pixels.pack(x) ^ 1)),
            (planes,),
            None,
        ),
        "to pixels": (host_pixels.to_pixels, (planes,), None),
    }


def _colours(packed: tf.Tensor, theirs: Image.Image) -> dict[str, Case]:
    """Return the colour operations, on a packed image and the same in PIL."""
    f = transforms.functional
    return {
        "brightness": (
            _compiled(jitter.brightness_on_host),
            (packed, 1.2),
            lambda: f.adjust_brightness(theirs, 1.2),
        ),
        "contrast": (
            _compiled(jitter.contrast_on_host),
            (packed, 1.2),
            lambda: f.adjust_contrast(theirs, 1.2),
        ),
        "saturation": (
            _compiled(jitter.saturation_on_host),
            (packed, 1.2),
            lambda: f.adjust_saturation(theirs, 1.2),
        ),
        "hue": (
            _compiled(jitter.hue_on_host),
            (packed, 0.05),
            lambda: f.adjust_hue(theirs, 0.05),
        ),
        "grayscale": (
            _compiled(lambda x: Grayscale().on_host(x, None)),
            (packed,),
            lambda: f.rgb_to_grayscale(theirs, 3),
        ),
    }


def timed(form: Form, name: str, workers: int, seconds: float) -> Iterator[list[str]]:
    """Yield rows of the table: pairs a second of the recipe `name` from these images."""
    recipe = recipes.create(name, SIDE)
    theirs = rate(with_torchvision(form.files, name, workers, keeps=False), seconds)
    yield [form.name, f"{name}: torchvision", f"{theirs:.0f}", "1.00"]
    kept = rate(with_torchvision(form.files, name, workers, keeps=True), seconds)
    yield [form.name, f"{name}: torchvision, memory kept", f"{kept:.0f}", f"{kept / theirs:.2f}"]
    ways: dict[str, dict[str, bool]] = {
        "augment_on='host'": {},
        "augment_on='device'": {"crop_only": True},
    }
    if SCALED.value:
        ways["host, scaled_decoding"] = {"scaled": True}
    for way, options in ways.items():
        ours = rate(with_ours(form.source, recipe, workers, **options), seconds)
        yield [form.name, f"{name}: {way}", f"{ours:.0f}", f"{ours / theirs:.2f}"]


def alone(form: Form, workers: int, seconds: float) -> Iterator[list[str]]:
    """Yield rows of the table: what these images would give if less were done with them."""
    if not form.files[0].endswith(".npy"):
        read = rate(decoded(form.files, workers), seconds)
        yield [form.name, "decoding alone", f"{read:.0f}", ""]
    crops = rate(with_ours(form.source, recipes.Recipe(SIDE, Crop()), workers), seconds)
    yield [form.name, "one decode, two crops, two resizes", f"{crops:.0f}", ""]


def main(argv: list[str]) -> None:
    """Time everything and print it."""
    workers, seconds = WORKERS.value or os.cpu_count() or 1, SECONDS.value
    allocator.keep_freed_memory()  # as commands do
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        originals = Path(scratch) / "originals"
        originals.mkdir()
        folder = files_of(DATASET.value, DATA_DIR.value, str(originals))
        stored = forms(folder, Path(scratch))
        files = stored[0].files
        print(f"{machine.describe()}; {workers} workers, {len(files)} JPEG files, {SIDE} px")
        for form in stored:
            mean = sum(os.path.getsize(file) for file in form.files) / len(form.files)
            print(f"{form.name}: {size(mean)} an image")
        print(
            table(
                ["operation", "ms", "ms in PIL", "speed over PIL"],
                operations(Path(files[0]).read_bytes()),
            )
        )
        rows = []
        for form in stored:
            rows += alone(form, workers, seconds)
            for name in RECIPES.value:
                rows += timed(form, name, workers, seconds)
        print(table(["images", "views", "pairs/s", "over torchvision"], rows))


if __name__ == "__main__":
    app.run(main)

r"""Compares pairs of views a second from JPEG files: torchvision's DataLoader and this package.

    python -m benchmarks.input_vs_torchvision --dataset=tfds:imagenet2012 --data_dir=TFDS \
        [--workers=2] [--seconds=20]

Both read the same files in one run; `--dataset=folder --data_dir=FOLDER` reads a folder of
JPEGs. torchvision runs the authors' transforms on PIL in as many worker processes as this
package has threads. Also shown: what decoding, cropping and resizing alone would give, which is
the most that this package can reach, and where a host's time goes, operation by operation. Needs
the extra `torch`.
"""

import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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
from moco_jax.base.console import table
from moco_jax.data import pipeline, running
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
SIDE, BATCH = 224, 64


class Pairs(torch_data.Dataset):
    """Two views of each file, as the authors' TwoCropsTransform gives them."""

    def __init__(self, files: list[str], name: str):
        self.files, self.transform = files, authors_transform(name, SIDE)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        with open(self.files[index], "rb") as file:
            image = Image.open(file).convert("RGB")
        return [self.transform(image), self.transform(image)]


def with_torchvision(files: list[str], name: str, workers: int) -> Iterator[int]:
    """Yield sizes of torchvision's batches, without end."""
    loader = torch_data.DataLoader(
        Pairs(files, name),
        BATCH,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=True,
    )
    while True:
        for query, _ in loader:
            yield len(query)


def with_ours(
    folder: Path,
    recipe: recipes.Recipe,
    workers: int,
    crop_only: bool = False,
    scaled: bool = False,
) -> Iterator[int]:
    """Yield sizes of this package's batches, without end."""
    batches = pipeline.train_batches(
        FolderSource(str(folder)),
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


def main(argv: list[str]) -> None:
    """Time everything and print it."""
    workers = WORKERS.value or os.cpu_count() or 1
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = files_of(DATASET.value, DATA_DIR.value, scratch)
        files = [str(f) for f in sorted(folder.rglob("*.jp*g"))]
        print(f"{machine.describe()}; {workers} workers, {len(files)} JPEG files, {SIDE} px")
        print(
            table(
                ["operation", "ms", "ms in PIL", "speed over PIL"],
                operations(Path(files[0]).read_bytes()),
            )
        )
        rows = [["decoding alone", f"{rate(decoded(files, workers), SECONDS.value):.0f}", ""]]
        for name in RECIPES.value:
            theirs = rate(with_torchvision(files, name, workers), SECONDS.value)
            ours = rate(with_ours(folder, recipes.create(name, SIDE), workers), SECONDS.value)
            rows.append([f"{name}: torchvision", f"{theirs:.0f}", "1.00"])
            rows.append([f"{name}: augment_on='host'", f"{ours:.0f}", f"{ours / theirs:.2f}"])
            sent = rate(with_ours(folder, recipes.create(name, SIDE), workers, True), SECONDS.value)
            rows.append([f"{name}: augment_on='device'", f"{sent:.0f}", f"{sent / theirs:.2f}"])
            if SCALED.value:
                fast = rate(
                    with_ours(folder, recipes.create(name, SIDE), workers, scaled=True),
                    SECONDS.value,
                )
                rows.append(
                    [f"{name}: host, scaled_decoding", f"{fast:.0f}", f"{fast / theirs:.2f}"]
                )
        crops = recipes.Recipe(SIDE, Crop())
        alone = rate(with_ours(folder, crops, workers), SECONDS.value)
        rows.append(["one decode, two crops, two resizes", f"{alone:.0f}", ""])
        print(table(["views", "pairs/s", "over torchvision"], rows))


if __name__ == "__main__":
    app.run(main)

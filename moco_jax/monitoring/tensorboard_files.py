"""Settings, pictures and an embedding of a run in the forms that TensorBoard reads."""

import io
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from moco_jax.base import files, packages
from moco_jax.base.figures import shown
from moco_jax.base.text import printable

FOLDER = "tensorboard"
SIDE = 32  # pixels of a point's picture
FILES = ("features.tsv", "classes.tsv", "images.png")
SECONDS = 60.0  # between two sendings of a file to a bucket
FULL = 1 << 20  # bytes of it after which another one is begun
PACKAGES = ("clu", "tensorboard", "tensorflow")  # without which there is nothing for TensorBoard


def remarks() -> list[str]:
    """Say in a line that TensorBoard gets nothing, where packages for it are missing."""
    lacking = packages.missing(PACKAGES)
    if not lacking:
        return []
    words = f"{'package' if len(lacking) == 1 else 'packages'} {', '.join(lacking)}"
    return [
        f"nothing is written for TensorBoard, for want of the {words}"
        f" ({packages.how_to_have(lacking)}); metrics.jsonl has all numbers"
    ]


def writer(folder: str) -> Any:
    """Open a writer of TensorBoard's files in a `folder` of this machine: a `SummaryWriter`."""
    # It is TensorFlow that writes, and would take GPUs from JAX.
    packages.load_tensorflow("TensorBoard")
    from clu import metric_writers

    return metric_writers.SummaryWriter(folder)


class Outbox:
    """TensorBoard's file of a run in a bucket: it is written here, and sent whole now and then.

    In a bucket nothing can be appended to. A file is sent again as long as it is small, so that
    neither requests nor bytes grow with the run.

    Attributes:
        folder: of this machine, in which the file is written.
    """

    def __init__(self, workdir: epath.Path, clock: Callable[[], float] = time.monotonic):
        """Send to `workdir`."""
        self._temporary = tempfile.TemporaryDirectory(prefix="tensorboard_")
        self.folder, self._to = self._temporary.name, workdir / FOLDER
        self._clock, self._sent = clock, clock()

    @property
    def due(self) -> bool:
        """Whether it is time to send."""
        return self._clock() - self._sent >= SECONDS

    def send(self) -> bool:
        """Send what is in the folder, and return whether the file there has become too large."""
        files.send(self.folder, self._to)
        self._sent = self._clock()
        return files.size_of(self.folder) >= FULL

    def close(self) -> None:
        """Send what is in the folder, and remove it."""
        files.send(self.folder, self._to)
        self._temporary.cleanup()


def write_scalars(into: Any, step: int, numbers: Mapping[str, float]) -> None:
    """Write `numbers` at `step` by one operation of the writer `into`.

    The writer's own way takes an operation for each number: together some milliseconds of Python,
    in which training cannot go on. What is in the file is the same.
    """
    tf = packages.load_tensorflow("TensorBoard")
    from tensorboard.plugins.scalar import metadata

    kind = metadata.create_summary_metadata(display_name="", description="").SerializeToString()
    record = tf.compat.v1.Summary()
    with np.errstate(over="ignore"):  # beyond float32, which is what TensorBoard has
        values = np.asarray([*numbers.values()], np.float64).astype(np.float32).tolist()
    for name, value in zip(numbers, values, strict=True):
        entry = record.value.add(tag=name)
        entry.metadata.ParseFromString(kind)
        entry.tensor.dtype = tf.float32.as_datatype_enum
        entry.tensor.tensor_shape.SetInParent()
        entry.tensor.float_val.append(value)
    with into._summary_writer.as_default():
        tf.summary.experimental.write_raw_pb(record.SerializeToString(), step=step)


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config` as hyper-parameters: numbers, text and truth values."""
    plain = (bool, int, float)
    words = {k: v if isinstance(v, (*plain, str)) else str(tuple(v)) for k, v in config.items()}
    return {k: v if isinstance(v, plain) else printable(v) for k, v in words.items()}


def picture(path: epath.Path) -> np.ndarray:
    """Read the PNG at `path` as uint8 `[H, W, 3]`."""
    return np.asarray(Image.open(io.BytesIO(files.read(path))).convert("RGB"))


def project(
    workdir: epath.Path, features: np.ndarray, images: np.ndarray, labels: Sequence[Any] | None
) -> None:
    """Write an embedding for the projector in TensorBoard's folder of `workdir`.

    Args:
        workdir: of the run.
        features: float `[N, D]`.
        images: uint8 `[N, S, S, C]`, shown in the places of their features.
        labels: N of them, words on one line or numbers; None where there are none.
    """
    from tensorboard.plugins import projector

    folder = workdir / FOLDER
    tensors, metadata, sprite = (folder / name for name in FILES)
    rows = ("\t".join(f"{x:.5g}" for x in row) + "\n" for row in features)
    files.write(tensors, "".join(rows).encode())
    columns = int(np.ceil(np.sqrt(len(images))))  # the projector wants a square
    whole = Image.new("RGB", (columns * SIDE, columns * SIDE))
    for number, image in enumerate(images):
        picture = Image.fromarray(shown(image)).convert("RGB").resize((SIDE, SIDE))
        whole.paste(picture, (number % columns * SIDE, number // columns * SIDE))
    drawn = io.BytesIO()
    whole.save(drawn, "PNG")
    files.write(sprite, drawn.getvalue())
    config = projector.ProjectorConfig()
    embedding = config.embeddings.add(tensor_name="features", tensor_path=tensors.name)
    embedding.sprite.image_path = sprite.name
    embedding.sprite.single_image_dim.extend([SIDE, SIDE])
    if labels is not None:
        files.write(metadata, "".join(f"{label}\n" for label in labels).encode())
        embedding.metadata_path = metadata.name
    files.write(folder / "projector_config.pbtxt", str(config).encode())

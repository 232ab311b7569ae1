"""An encoder in a user's own code: `moco_jax.load(...)` reads one, a call encodes images.

Neither TensorFlow nor PyTorch is needed once the weights are read; images are resized by PIL.
"""

import functools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, UnidentifiedImageError

from moco_jax.base import files, storage
from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.data.sources import image_files, pixels, store
from moco_jax.data.views import centre, recipes
from moco_jax.inference import trained_encoder
from moco_jax.inference.features import make_features
from moco_jax.parallel import xla_flags

FEATURES = ("backbone", "output")
WANTED = "use uint8, or floating-point numbers from 0 to 1"


def images_in(folder: str | os.PathLike) -> list[str]:
    """Return the paths of all images in `folder`, at any depth, sorted.

    Raises:
        UserError: there is none.
    """
    root = os.fspath(folder)
    paths, _ = image_files.divide(root, store.walk(root))
    names = [os.path.join(folder, path) for path in paths]
    if not names:
        raise UserError(
            f"{folder} holds no image, at any depth; images end in {', '.join(pixels.EXTENSIONS)}"
        )
    return names


class FeatureEncoder:
    """A trained encoder that turns images into features: what `load` returns.

    Attributes:
        trained: encoder, weights and settings.
        recipe: for the evaluation view.
        about: a sentence on which encoder it is, what becomes of an image, and what comes out.
    """

    def __init__(
        self, trained: trained_encoder.TrainedEncoder, features: str, called: str, batch_size: int
    ):
        """Place an encoder on JAX's default device.

        Args:
            trained: what `trained_encoder.load` returns.
            features: one of `FEATURES`.
            called: name of the encoder and of its place, for `about`.
            batch_size: images that are encoded at once.
        """
        if features not in FEATURES:
            raise UserError(f"features={features!r} is unknown; use one of {', '.join(FEATURES)}")
        if features == "output" and not trained.has_head:
            raise UserError(
                f"features='output' needs a head, and {called} has none; features='backbone' works"
            )
        if type(batch_size) is not int or batch_size < 1:
            raise UserError(
                f"batch_size={batch_size!r} must be a whole number of at least 1; 64 is the default"
            )
        config = trained.config
        self.trained, self.recipe = trained, recipes.create(config.augment, config.image_size)
        self._batch_size, self._kind, self._called = batch_size, features, called
        self._variables = jax.device_put(trained.variables)
        self._encode = jax.jit(
            make_features(
                trained.encoder, features, tuple(config.mean), tuple(config.std), jnp.float32
            )
        )

    @functools.cached_property
    def dim(self) -> int:
        """D, the length of a feature vector."""
        config = self.trained.config
        shape = (1, config.image_size, config.image_size, config.channels)
        images = jax.ShapeDtypeStruct(shape, np.uint8)
        return jax.eval_shape(self._encode, self._variables, images).shape[-1]

    @property
    def about(self) -> str:
        """A sentence on which encoder this is, what becomes of an image, and what comes out."""
        config, side = self.trained.config, self.recipe.image_size

        def numbers(name: str) -> str:
            assumed = " (ImageNet's, as nothing says it)" if name in self.trained.assumed else ""
            return f"{name} ({', '.join(f'{x:g}' for x in config[name])}){assumed}"

        guess = " (as nothing says it)" if "image_size" in self.trained.assumed else ""
        where = "before" if self._kind == "backbone" else "after"
        return (
            f"{config.arch}, {self._called}: images of {config.channels} channel(s), shorter side"
            f" to {self.recipe.evaluation_resize} pixels, centre {side} x {side}{guess}, (x / 255 -"
            f" mean) / std with {numbers('mean')} and {numbers('std')}; "
            + "; ".join([f"{self.dim} features {where} the head", *self.trained.remarks])
        )

    def __repr__(self) -> str:
        """Show `about`, in brackets."""
        return f"<{self.about}>"

    def __call__(self, images: Any) -> np.ndarray:
        """Encode `images` to features float32 `[N, D]`, a NumPy array.

        Images are resized and cropped as evaluation does it.

        Args:
            images: `[N, H, W, C]`, one image `[H, W, C]` (N is 1), the path of an image or of a
                folder (the order is that of `images_in`), a PIL image, or a list of any of `[H,
                W, C]`, paths of images and PIL images, of any sizes. Arrays are NumPy's, JAX's
                or whatever becomes NumPy's: uint8, or floating point from 0 to 1, which is
                rounded to eight bits as every image is. C is that of the encoder, and stands
                last.

        Raises:
            UserError: other numbers (0 to 255 in floating point, signed or 16-bit integers,
                NaN), another number of channels, no image, or a file that is none.
        """
        one_by_one = self._one_by_one(images)
        if not len(one_by_one):
            raise UserError("there is no image to encode")
        blocks = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for views in self._batches(one_by_one, pool):
                # Batches that are not full grow to the next power of two: each size is a
                # program to compile.
                size = min(self._batch_size, 1 << (len(views) - 1).bit_length())
                padded = np.concatenate(
                    [views, np.zeros((size - len(views), *views.shape[1:]), np.uint8)]
                )
                features = self._encode(self._variables, padded)
                blocks.append(np.asarray(features, np.float32)[: len(views)])
        return np.concatenate(blocks)

    def _batches(self, images: Sequence[Any], pool: ThreadPoolExecutor) -> Iterator[np.ndarray]:
        """Yield the views, uint8 `[n, S, S, C]`, and make those of the next batch meanwhile."""
        starts = range(0, len(images), self._batch_size)

        def begin(start: int) -> list[Any]:
            some = images[start : start + self._batch_size]
            return [pool.submit(self._view, image) for image in some]

        under_way = begin(0)
        for start in starts:
            ahead = begin(start + self._batch_size)
            yield np.stack([future.result() for future in under_way])
            under_way = ahead

    def _one_by_one(self, images: Any) -> Any:
        if isinstance(images, str | os.PathLike):
            path = os.fspath(images)
            files.require_place(path)
            return images_in(path) if storage.is_folder(path) else [path]
        if isinstance(images, Image.Image):
            return [images]
        if isinstance(images, list | tuple):
            return images
        array = np.asarray(images)
        if array.ndim not in (3, 4):
            raise UserError(
                f"images of shape {array.shape} are neither [N, H, W, C] nor one image [H, W, C]"
            )
        return array if array.ndim == 4 else array[None]

    def _view(self, image: Any) -> np.ndarray:
        """Crop an array, path or PIL image as evaluation does: uint8 `[S, S, C]`."""
        recipe = self.recipe
        return centre.view(self._pixels(image), recipe.evaluation_resize, recipe.image_size)

    def _pixels(self, image: Any) -> np.ndarray:
        config = self.trained.config
        decoding = pixels.Decoding.of(config)
        if isinstance(image, str | os.PathLike):
            try:
                with files.open_to_read(os.fspath(image)) as file:
                    content = file.read()
                return pixels.pixels(content, decoding)
            except UserError:
                raise
            except Exception as error:  # whatever a damaged file leads to
                strange = isinstance(error, UnidentifiedImageError)
                why = getattr(error, "strerror", None) or error
                why = "it is none of a known kind, or is cut off" if strange else why
                message = f"{os.fspath(image)} cannot be read as an image: {why}"
                raise UserError(printable(message)) from error
        if isinstance(image, Image.Image):
            try:
                return pixels.of_picture(image, decoding)
            except pixels.Unfit as error:
                raise UserError(f"a PIL image of mode {image.mode}: {error}") from error
        return _to_eight_bits(np.asarray(image), config.channels)


def _to_eight_bits(image: np.ndarray, channels: int) -> np.ndarray:
    """Convert `[H, W, C]`, uint8 or floating point 0..1, to uint8.

    Raises:
        UserError: it is anything else.
    """
    if image.ndim != 3 or image.shape[-1] != channels or not image.size:
        hint = "; channels stand last" if image.ndim == 3 and image.shape[0] == channels else ""
        raise UserError(
            f"an image of shape {image.shape} is not [H, W, {channels}], as this encoder has"
            f" them{hint}"
        )
    if image.dtype == np.uint8:
        return image
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise UserError(f"an image of {image.dtype} numbers is refused; {WANTED}")
    image = image.astype(np.float32)
    if not (image.min() >= 0 and image.max() <= 1):  # NaN is neither
        raise UserError(
            f"an image with numbers from {image.min():g} to {image.max():g} is refused; {WANTED}"
        )
    return np.floor(image * 255 + 0.5).astype(np.uint8)


def load(
    place: str | os.PathLike,
    *,
    which: str = "query",
    features: str = "backbone",
    step: int | None = None,
    image_size: int = 0,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    stem: str = "",
    batch_size: int = 64,
) -> FeatureEncoder:
    """Load an encoder: `encoder = moco_jax.load("runs/mine"); features = encoder(images)`.

    Args:
        place: the workdir of a run, or a file or folder of weights, of whichever library
            docs/weights.md names.
        which: 'query', or 'key' for the momentum encoder.
        features: 'backbone' for pooled features, 'output' for those after the head.
        step: of which checkpoint of a run; None: the last sound one.
        image_size: side of the images in pixels; 0: as the run or the file says, or else 224.
        mean, std: per channel, of images scaled to 0..1; empty: as the run or the file says, or
            else ImageNet's.
        stem: of a ResNet in a file whose first kernel is 3x3; empty: as its names say, or else
            'cifar'.
        batch_size: images that are encoded at once.

    Raises:
        UserError: nothing readable there, no such encoder in it, or a bucket out of reach.
    """
    path = os.fsdecode(place)
    with xla_flags.while_jax_starts():
        jax.devices()
    trained = trained_encoder.load(
        path, which, step, image_size=image_size, mean=mean, std=std, stem=stem
    )
    of = f"step {trained.step} of {path}" if trained_encoder.is_run(path) else path
    return FeatureEncoder(trained, features, f"{which} encoder of {of}", batch_size)

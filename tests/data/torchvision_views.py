"""The second implementation of views, torchvision on PIL, and ours called alike on one image."""

import functools
from collections.abc import Callable

import torch  # before TensorFlow: the other way round a process of scripts crashes
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms
from torchvision.transforms import functional as F

# isort: split
import numpy as np
import tensorflow as tf

from moco_jax.data.views import augment, host_pixels, recipes, resize
from moco_jax.data.views.operations import Flip, Grayscale, VerticalFlip, jitter
from moco_jax.data.views.operations import Solarize as OurSolarize
from moco_jax.data.views.operations.blur import gaussian_on_host


def blur(image: Image.Image, sigma: float) -> Image.Image:
    """PIL's GaussianBlur."""
    return image.filter(ImageFilter.GaussianBlur(radius=sigma))


def turn(image: Image.Image, quarters: float) -> Image.Image:
    """PIL's turn by quarters, counter-clockwise."""
    ways = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
    return image.transpose(ways[int(quarters) - 1]) if quarters else image


# name: ours on packed pixels (blur: on planes), torchvision's, and values of the parameter
OPERATIONS: dict[str, tuple] = {
    "brightness": (jitter.brightness_on_host, F.adjust_brightness, (0.6, 0.97, 1.0, 1.4)),
    "contrast": (jitter.contrast_on_host, F.adjust_contrast, (0.6, 0.97, 1.0, 1.4)),
    "saturation": (jitter.saturation_on_host, F.adjust_saturation, (0.6, 0.97, 1.0, 1.4)),
    "hue": (jitter.hue_on_host, F.adjust_hue, (-0.4, -0.1, -0.003, 0.0, 0.05, 0.4)),
    "blur": (gaussian_on_host, blur, (0.1, 0.5, 1.0, 1.4, 1.45, 2.0)),
    "grayscale": (
        lambda x, _: Grayscale().on_host(x, None),
        lambda x, _: F.rgb_to_grayscale(x, 3),
        (0,),
    ),
    "solarize": (
        lambda x, _: OurSolarize().on_host(x, None),
        lambda x, _: F.solarize(x, 128),
        (0,),
    ),
    "flip": (lambda x, _: Flip().on_host(x, None), lambda x, _: F.hflip(x), (0,)),
    "vertical flip": (lambda x, _: VerticalFlip().on_host(x, None), lambda x, _: F.vflip(x), (0,)),
}


def cropped(image: np.ndarray, box: tuple, size: int) -> np.ndarray:
    """`box` of an image `[H, W, 3]`, resized to a square."""
    lengths = tf.constant([size, size])
    padded = resize.pad(tf.constant(image))
    planes = resize.resize(padded, tf.constant(box), lengths, tf.constant([0, 0]), size)
    return host_pixels.to_pixels(planes).numpy()


def on_planes(operation: Callable, image: np.ndarray, value: float) -> np.ndarray:
    """The result of an operation on an image `[H, W, 3]`, compiled as in a run."""
    planes, value = host_pixels.to_planes(tf.constant(image)), tf.constant(value, tf.float32)
    run = operation if operation is gaussian_on_host else _compiled(operation)
    return host_pixels.to_pixels(run(planes, value)).numpy()


@functools.cache
def _compiled(operation: Callable) -> Callable:
    """The operation on planes, compiled once for each shape of them."""

    def run(planes, value):
        return host_pixels.unpack(operation(host_pixels.pack(planes), value))

    return tf.function(run, jit_compile=True, autograph=False)


def with_torchvision(image: np.ndarray, view: recipes.View, recipe: recipes.Recipe) -> np.ndarray:
    """The chain that torchvision's transforms would run, given the parameters of `view`."""
    image = Image.fromarray(image)
    jitter = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for stage in recipe.stages:
        if stage == "crop":
            image = F.resized_crop(image, *view.box.numpy().tolist(), [recipe.image_size] * 2)
        elif stage == "color" and view.color:
            for number in view.order.numpy():
                image = jitter[number](image, float(view.factors[number]))
        elif stage == "grayscale" and view.grayscale:
            image = F.rgb_to_grayscale(image, 3)
        elif stage == "blur" and view.blur:
            image = blur(image, float(view.sigma))
        elif stage == "solarize" and view.solarize:
            image = F.solarize(image, 128)
        elif stage == "flip" and view.flip:
            image = F.hflip(image)
        elif stage == "vertical_flip" and view.vertical_flip:
            image = F.vflip(image)
        elif stage == "rotate" and view.rotate:
            image = turn(image, int(view.quarters))
    return np.asarray(image)


def draw(recipe: recipes.Recipe, shape: tuple, seed: int, number: int = 0) -> recipes.View:
    """The parameters of one view, the query view (0) or the key view (1)."""
    return _drawing(recipe, number)(*map(tf.constant, (shape[0], shape[1], seed)))


@functools.cache
def _drawing(recipe: recipes.Recipe, number: int) -> Callable:
    """The graph of `draw`: ninety operations, too slow to be called one by one for each view."""

    def run(height, width, seed):
        uniforms = tf.random.stateless_uniform([recipes.UNIFORMS], [seed, 1], alg="philox")
        return augment.draw_view(uniforms, height, width, recipe, number)

    return tf.function(run, autograph=False)


class Blur:
    """The authors' GaussianBlur (moco/loader.py)."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """PIL's blur of a sigma between 0.1 and 2."""
        return blur(image, float(torch.empty(1).uniform_(0.1, 2.0)))


class Solarize:
    """BYOL's solarize, as in MoCo v3 (moco/loader.py)."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """PIL's, values from 128 on inverted."""
        return ImageOps.solarize(image)


def authors_transform(name: str, size: int, number: int = 0) -> transforms.Compose:
    """The augmentation of main_moco.py, which draws for itself, to a uint8 tensor.

    `number` is 0 for the first view and 1 for the second: those of v3 differ.
    """
    crop = transforms.RandomResizedCrop(size, scale=(0.08 if name == "v3" else 0.2, 1.0))
    grey, flip = transforms.RandomGrayscale(0.2), transforms.RandomHorizontalFlip()
    if name == "v1":
        jitter = transforms.ColorJitter(0.4, 0.4, 0.4, 0.4)
        steps = [crop, grey, jitter, flip]
    elif name == "v3":
        jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8)
        steps = [crop, jitter, grey, transforms.RandomApply([Blur()], (1.0, 0.1)[number])]
        steps += [transforms.RandomApply([Solarize()], 0.2), flip] if number else [flip]
    else:
        jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8)
        steps = [crop, jitter, grey, transforms.RandomApply([Blur()], 0.5), flip]
    return transforms.Compose([*steps, transforms.PILToTensor()])


def statistics(view: np.ndarray) -> list[float]:
    """The nine STATISTICS of one view uint8 `[H, W, 3]`.

    They are mean and deviation of each channel, colourfulness, and sharpness along both axes.
    """
    x = view.astype(np.float32)
    colour = np.abs(x - x.mean(-1, keepdims=True)).mean()
    sharpness = [np.abs(np.diff(x, axis=axis)).mean() for axis in (0, 1)]
    return [*x.mean((0, 1)), *x.std((0, 1)), colour, *sharpness]


STATISTICS = (
    "red",
    "green",
    "blue",
    "red spread",
    "green spread",
    "blue spread",
    "colour",
    "rows",
    "columns",
)

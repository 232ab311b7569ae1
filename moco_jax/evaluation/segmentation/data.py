"""Images with a class for each pixel, in a folder laid out as PASCAL VOC or Cityscapes.

Every label is read before training begins. A label that is missing, of another size than its
image, or of a class that does not exist is refused by name.
"""

import dataclasses
import io
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.data.sources import pil_decode, store
from moco_jax.data.sources.lists import text_lines
from moco_jax.data.sources.pixels import Decoding, pixels

IGNORED = 255  # in a label, of pixels that do not count

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
# The classes of Cityscapes that count, in the order of their train ids, and the id that each has in
# `labelIds`.
CITYSCAPES_IDS = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17,
    "traffic light": 19, "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23,
    "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32,
    "bicycle": 33,
}  # fmt: skip
_LARGEST_ID = 33
_VOC_IMAGES, _VOC_LABELS = "JPEGImages", ("SegmentationClass", "SegmentationClassAug")
_VOC_LISTS = os.path.join("ImageSets", "Segmentation")
_CITY_IMAGES, _CITY_LABELS = "leftImg8bit", "gtFine"
_CITY_KINDS = ("labelTrainIds", "labelIds")


@dataclasses.dataclass(frozen=True)
class Pair:
    """The files of one image and its label.

    Attributes:
        image, label: their files.
        renumber: whether the label has the ids of Cityscapes' `labelIds`.
    """

    image: str
    label: str
    renumber: bool = False


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Images with labels.

    Attributes:
        pairs: their files.
        sizes: int64 `[N, 2]`, height and width of each.
        classes: names, in the order of their numbers.
        decoding: how images become pixels.
        about: their name, for a person.
    """

    pairs: list[Pair]
    sizes: np.ndarray
    classes: tuple[str, ...]
    decoding: Decoding
    about: str

    @property
    def facts(self) -> tuple[Any, ...]:
        """What tells these images from others, as `digests.of_tree` takes it."""
        return self.pairs, self.sizes, self.classes, self.decoding

    def image(self, index: int) -> np.ndarray:
        """Read an image, uint8 `[H, W, C]`; raises UserError where it cannot be decoded."""
        return _image(self.pairs[index].image, self.decoding)

    def label(self, index: int) -> np.ndarray:
        """Read a label, uint8 `[H, W]`: the class of each pixel, or `IGNORED`."""
        return read_label(self.pairs[index], len(self.classes))


def is_cityscapes(folder: str) -> bool:
    """Return whether `folder` is laid out as Cityscapes is, and not as VOC.

    Raises:
        UserError: it is laid out as neither.
    """
    if store.is_folder(os.path.join(folder, _CITY_IMAGES)):
        return True
    if store.is_folder(os.path.join(folder, _VOC_LISTS)):
        return False
    raise UserError(
        f"--data_dir={folder} has neither {_VOC_LISTS} (as PASCAL VOC has) nor {_CITY_IMAGES} (as"
        " Cityscapes)"
    )


def class_names(folder: str) -> tuple[str, ...]:
    """Return the classes of the images in `folder`.

    They are Cityscapes' 19, the lines of its `classes.txt`, or VOC's 21.
    """
    if is_cityscapes(folder):
        return tuple(CITYSCAPES_IDS)
    path = os.path.join(folder, "classes.txt")
    if not store.is_file(path):
        return VOC_CLASSES
    names = tuple(printable(line.strip()) for line in _lines(path) if line.strip())
    if not 2 <= len(names) <= IGNORED:
        raise UserError(f"{path} has {len(names)} names, one a line; 2 to {IGNORED} work")
    return names


def _lines(path: str) -> list[str]:
    try:
        return text_lines(store.read(path))
    except ValueError as error:
        raise UserError(f"{path} is no text file, with a name on each line") from error


def train_split(folder: str) -> str:
    """Return the paper's training split: VOC's augmented list where it exists, else `train`."""
    names = () if is_cityscapes(folder) else ("train_aug", "trainaug")
    lists = os.path.join(folder, _VOC_LISTS)
    return next((n for n in names if store.is_file(os.path.join(lists, f"{n}.txt"))), "train")


def open_scenes(
    folder: str, split: str, decoding: Decoding, report: Callable[[str], None]
) -> Scenes:
    """Open the images of `split` in `folder`, and read each label once.

    Args:
        folder: laid out as VOC (the folder with `ImageSets`) or as Cityscapes (with
            `leftImg8bit`).
        split: name of a list, or of a folder in `leftImg8bit`.
        decoding: how images become pixels; those rotated by Exif stay as stored, as their labels
            do.
        report: called with a line on how far it is.

    Raises:
        UserError: no such split, or an image without a label, or a label that does not fit its
            image or the classes.
    """
    decoding = dataclasses.replace(decoding, exif_rotation=False)
    classes = class_names(folder)
    pairs = _cityscapes(folder, split) if is_cityscapes(folder) else _voc(folder, split)
    looked: list[tuple[tuple[int, int], bool]] = []
    for start in range(0, len(pairs), 256):
        some = pairs[start : start + 256]
        looked += store.each(lambda pair: _look(pair, len(classes), decoding), some)
        report(f"labels of {split} looked at: {len(looked):,} of {len(pairs):,}")
    sizes, count = zip(*looked, strict=True)
    if not any(count):
        raise UserError(
            f"no label of {folder} ({split}) has a pixel that counts: all are {IGNORED}"
        )
    return Scenes(pairs, np.asarray(sizes), classes, decoding, f"{folder} ({split})")


def read_label(pair: Pair, classes: int) -> np.ndarray:
    """Read the label of `pair`, uint8 `[H, W]`.

    Raises:
        UserError: it is no picture of class numbers below `classes`, or 255.
    """
    from PIL import Image

    pil_decode.quiet()
    try:
        with Image.open(io.BytesIO(store.read(pair.label))) as file:
            numbers = np.asarray(file)
    except Exception as error:  # libraries raise all kinds on damaged files
        raise UserError(f"{pair.label} cannot be read: {error}") from error
    if numbers.ndim != 2:
        raise UserError(
            f"{pair.label} has colours; a label is a picture of one number a pixel (palette or"
            " gray)"
        )
    known = _LARGEST_ID + 1 if pair.renumber else classes
    wrong = (numbers >= known) & (numbers != IGNORED)
    if wrong.any() or numbers.dtype.kind not in "bu":
        largest = numbers[wrong].max() if wrong.any() else numbers.dtype
        raise UserError(
            f"{pair.label} has the value {largest}; classes are 0 to {known - 1}, and {IGNORED}"
            " does not count (classes.txt in the folder names other classes, one a line)"
        )
    numbers = numbers.astype(np.uint8)
    return _train_ids()[numbers] if pair.renumber else numbers


def _train_ids() -> np.ndarray:
    table = np.full(256, IGNORED, np.uint8)
    table[list(CITYSCAPES_IDS.values())] = np.arange(len(CITYSCAPES_IDS))
    return table


def _image(path: str, decoding: Decoding) -> np.ndarray:
    try:
        return pixels(store.read(path), decoding)
    except UserError:
        raise
    except Exception as error:  # libraries raise all kinds on damaged files
        raise UserError(f"{path} cannot be decoded: {error}") from error


def _size(path: str, decoding: Decoding) -> tuple[int, int]:
    """Return height and width, from the file's header where PIL knows its kind."""
    from PIL import Image, UnidentifiedImageError

    pil_decode.quiet()
    try:
        with store.open_binary(path) as opened, Image.open(opened) as file:
            return file.height, file.width
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError):
        height, width, _ = _image(path, decoding).shape
        return height, width


def _look(pair: Pair, classes: int, decoding: Decoding) -> tuple[tuple[int, int], bool]:
    """Return the size of `pair`, and whether any of its pixels counts."""
    size, label = _size(pair.image, decoding), read_label(pair, classes)
    if label.shape != size:
        raise UserError(
            f"{pair.label} is of {label.shape[1]} x {label.shape[0]} pixels, its image of {size[1]}"
            f" x {size[0]}"
        )
    return size, bool((label != IGNORED).any())


def _files(folder: str) -> dict[str, str]:
    """Return the path of each file in `folder`, by its name without ending.

    Empty where there is no such folder.
    """
    if not store.is_folder(folder):
        return {}
    return {os.path.splitext(n)[0]: os.path.join(folder, n) for n in store.listing(folder)}


def _voc(folder: str, split: str) -> list[Pair]:
    lists = os.path.join(folder, _VOC_LISTS)
    path = os.path.join(lists, f"{split}.txt")
    if not store.is_file(path):
        known = sorted(n.removesuffix(".txt") for n in store.listing(lists) if n.endswith(".txt"))
        raise UserError(f"{path} is missing; splits there are {', '.join(known) or 'none'}")
    lines = [line.split() for line in _lines(path)]
    # A line of some lists names image and label, with folders and endings.
    names = [os.path.splitext(os.path.basename(words[0]))[0] for words in lines if words]
    if not names:
        raise UserError(f"{path} names no image, one a line")
    images = _files(os.path.join(folder, _VOC_IMAGES))
    labels = [_files(os.path.join(folder, place)) for place in reversed(_VOC_LABELS)]
    label_of = labels[0] | labels[1]
    for name in names:
        if name not in images:
            raise UserError(
                f"{path} names {printable(name)}, which has no image in {folder}/{_VOC_IMAGES}"
            )
        if name not in label_of:
            raise UserError(f"{images[name]} has no label in {folder}/{' or '.join(_VOC_LABELS)}")
    return [Pair(images[name], label_of[name]) for name in names]


def _cityscapes(folder: str, split: str) -> list[Pair]:
    root = os.path.join(folder, _CITY_IMAGES)
    place = os.path.join(root, split)
    if not store.is_folder(place):
        known = ", ".join(n for n in store.listing(root) if store.is_folder(os.path.join(root, n)))
        raise UserError(f"{place} is missing; splits there are {known or 'none'}")
    end = f"_{_CITY_IMAGES}"
    pairs = []
    for city in store.listing(place):
        labels = _files(os.path.join(folder, _CITY_LABELS, split, city))
        for name, image in _files(os.path.join(place, city)).items():
            frame = name.removesuffix(end)
            wanted = [f"{frame}_{_CITY_LABELS}_{kind}" for kind in _CITY_KINDS]
            label = next((n for n in wanted if n in labels), None)
            if label is None:
                raise UserError(
                    f"{image} has no label {' or '.join(wanted)} in"
                    f" {folder}/{_CITY_LABELS}/{split}/{city}"
                )
            pairs.append(Pair(image, labels[label], renumber=label.endswith("_labelIds")))
    if not pairs:
        raise UserError(f"{place} has no images: folders of cities, with files *{end}.png")
    return pairs

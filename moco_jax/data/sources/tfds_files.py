"""What TFDS wrote beside the files of a prepared dataset, read without TFDS.

`dataset_info.json` says which files a split is in, `features.json` what an example holds. What
these do not say plainly is left to TFDS itself.
"""

import json
import os
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from moco_jax.base.errors import UserError
from moco_jax.data.sources import examples, store
from moco_jax.data.sources.tfrecord import Slice

INFO, FEATURES = "dataset_info.json", "features.json"
FORMATS = ("tfrecord", "array_record")
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_NAME = re.compile(r"(\w+)(?:/([\w.-]+))?(?::(\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_SPLIT = re.compile(r"([\w-]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


class Unread(Exception):
    """Raised where only TFDS can tell what is meant; the text says why."""


class Prepared(NamedTuple):
    """One split of a prepared dataset.

    Attributes:
        slices: the parts of files that hold it.
        features: which features of an example are image, class and name.
        classes: the names of the classes, empty without.
        format: one of `FORMATS`.
    """

    slices: list[Slice]
    features: examples.Features
    classes: list[str]
    format: str


def read(name: str, split: str, data_dir: str) -> Prepared:
    """Read what is said of `split` of the dataset `name` in `data_dir`; '' is TFDS's own folder.

    Raises:
        UserError: there is no such split, or it holds no example, or no image.
        Unread: TFDS must be asked.
    """
    folder = _folder(name, data_dir)
    info, said = _json(os.path.join(folder, INFO)), _json(os.path.join(folder, FEATURES))
    try:
        shards = {s["name"]: [int(n) for n in s["shardLengths"]] for s in info["splits"]}
        templates = {s["name"]: s.get("filepathTemplate") or TEMPLATE for s in info["splits"]}
        format_ = info.get("fileFormat") or FORMATS[0]
        kinds = said["featuresDict"]["features"]
        items = info.get("supervisedKeys", {}).get("tuple", {}).get("items", [])
        supervised = [item.get("featureKey") for item in items]
        if format_ not in FORMATS:
            raise Unread(f"its files are {format_}")
        called, lengths, begin, end = _part(name, split, shards)
        paths = [
            os.path.join(
                folder, _file(templates[called], info["name"], called, format_, n, len(lengths))
            )
            for n in range(len(lengths))
        ]
        features = _features(name, kinds, supervised)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unread(f"{INFO} or {FEATURES} is of another kind: {error!r}") from error
    slices = _slices(paths, lengths, begin, end)
    return Prepared(slices, features, _classes(folder, kinds, features), format_)


def _folder(name: str, data_dir: str) -> str:
    """Return the folder of the one version that `name` means."""
    match = _NAME.fullmatch(name)
    if not match:
        raise Unread("its name is none of the form NAME, NAME/CONFIG or NAME:VERSION")
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    place = os.path.join(os.path.expanduser(root), match[1], match[2] or "")
    try:
        there = store.listing(place)
    except OSError as error:
        raise Unread(f"there is no folder {place}") from error
    there = [version for version in there if _VERSION.fullmatch(version)]
    versions = [match[3]] if match[3] in there else there if not match[3] else []
    if len(versions) != 1:
        raise Unread(f"{place} holds {len(versions) or 'no'} versions that are meant")
    return os.path.join(place, versions[0])


def no_such_split(name: str, split: str, known: Iterable[str]) -> UserError:
    """Return the error that the dataset `name` has no `split` among those `known`."""
    return UserError(f"split={split!r} of tfds:{name} is unknown; there are {', '.join(known)}")


def no_example(name: str, split: str) -> UserError:
    """Return the error that the part `split` of the dataset `name` is empty."""
    return UserError(
        f"split={split!r} of tfds:{name} holds no example; as 'train[:1000]' one begins before it"
        " ends"
    )


def no_image(name: str, features: Iterable[str]) -> UserError:
    """Return the error that none of the `features` of the dataset `name` is an image."""
    return UserError(
        f"dataset='tfds:{name}' has no image feature; its features are {', '.join(features)}"
    )


def _json(path: str) -> Any:
    try:
        return json.loads(store.read(path))
    except (OSError, ValueError) as error:
        raise Unread(f"{path} cannot be read") from error


def _part(name: str, split: str, shards: dict[str, list[int]]) -> tuple[str, list[int], int, int]:
    """Return the split that `split` is a part of, its shards' lengths, and the part's bounds.

    Parts are as TFDS has them, 'train[100:]' or 'train[:10%]', percents rounded as there.
    """
    match = _SPLIT.fullmatch(split)
    # TFDS wants a bound, and takes both for percents where one is.
    mixed = "%" in split and re.search(r"\d[:\]]", split)
    if not match or match[1] == "all" or split.endswith("[:]") or mixed:
        raise Unread(f"split={split!r} is no name, nor NAME[A:B]")
    if match[1] not in shards:
        raise no_such_split(name, split, shards)
    lengths = shards[match[1]]
    total = sum(lengths)

    def place(text: str | None, default: int) -> int:
        if not text:
            return default
        percent = text.endswith("%")
        number = round(int(text[:-1]) * total / 100.0) if percent else int(text)
        if abs(number) > total:
            raise UserError(
                f"split={split!r} of tfds:{name} is unknown: {match[1]} has {total} examples;"
                f" there are {', '.join(shards)}"
            )
        return number + total if number < 0 else number

    begin, end = place(match[2], 0), place(match[3], total)
    if begin >= end:
        raise no_example(name, split)
    return match[1], lengths, begin, end


def _file(template: str, dataset: str, split: str, format_: str, number: int, of: int) -> str:
    """Return the name of shard `number` by TFDS's `template`."""
    return template.format(
        DATASET=dataset,
        SPLIT=split,
        FILEFORMAT=format_,
        SHARD_INDEX=f"{number:05d}",
        NUM_SHARDS=f"{of:05d}",
        SHARD_X_OF_Y=f"{number:05d}-of-{of:05d}",
    )


def _slices(paths: list[str], lengths: list[int], begin: int, end: int) -> list[Slice]:
    """Return the parts of the files that hold the examples `begin` to `end` of a split."""
    slices, first = [], 0
    for path, length in zip(paths, lengths, strict=True):
        skip, stop = max(begin - first, 0), min(end - first, length)
        if skip < stop:
            slices.append(Slice(path, skip, stop - skip))
        first += length
    return slices


def _features(name: str, kinds: dict[str, Any], supervised: list[Any]) -> examples.Features:
    """Choose the features that are image, class and name, as `tfds.py` does.

    Raises:
        UserError: none is an image.
        Unread: several could be meant, and their order in TFDS decides.
    """
    pictures = [key for key, kind in kinds.items() if "image" in kind]
    if not pictures:
        raise no_image(name, kinds)
    classes = [key for key, kind in kinds.items() if "classLabel" in kind]
    chosen = [key for key in supervised if key in classes] or classes
    if len(pictures) > 1 or len(chosen) > 1:
        raise Unread(f"it has several images or classes: {', '.join([*pictures, *chosen])}")
    names = [key for key in examples.NAME_KEYS if "text" in kinds.get(key, {})]
    return examples.Features(pictures[0], next(iter(chosen), None), next(iter(names), None))


def _classes(folder: str, kinds: dict[str, Any], features: examples.Features) -> list[str]:
    """Return the names of the classes: those of a file beside the shards, else their numbers."""
    if features.label is None:
        return []
    path = os.path.join(folder, f"{features.label}.labels.txt")
    if store.is_file(path):
        lines = store.read(path).decode("utf-8").split("\n")
        return [line.strip() for line in lines if line.strip()]
    count = kinds[features.label]["classLabel"].get("numClasses", 0)
    return [str(number) for number in range(int(count))]

"""Images that are files of their own: all below a folder, or those that a text file lists."""

import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from moco_jax.data.sources import labels, split_names, store
from moco_jax.data.sources.names import Names
from moco_jax.data.sources.pixels import EXTENSIONS, RGB, Decoding
from moco_jax.errors import UserError

_LOOKED = f"images end in {', '.join(EXTENSIONS)}"


def numbered(classes: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The different `classes`, sorted, and each one's number int32 `[n]`: of '' it is `MISSING`."""
    names = sorted(set(classes) - {""})
    numbers = {name: number for number, name in enumerate(names)} | {"": labels.MISSING}
    return names, np.fromiter((numbers[c] for c in classes), np.int32, len(classes))


def find_images(root: str) -> list[str]:
    """Paths, relative to the folder `root`, of all images at any depth, sorted; UserError if there are none."""
    files = sorted(path for path in store.walk(root) if path.lower().endswith(EXTENSIONS))
    if not files:
        raise UserError(f"data_dir={root} holds no image, at any depth; {_LOOKED}")
    return files


def read_list(path: str) -> tuple[list[str], list[str]]:
    """The image paths that the text file `path` lists, and their classes (none, or one for each).

    UTF-8, a path a line, relative to the file's folder or absolute, and if a tab follows, a class; empty lines
    count for nothing. UserError where it is no such file.
    """
    wanted = (
        "a list is UTF-8 text with one image path a line, and a class after a tab if there is one"
    )
    try:
        lines = store.read(path).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"data_dir={path} is no text file; {wanted}") from error
    files: list[str] = []
    classes: list[str] = []
    for number, line in enumerate(lines, 1):
        file, tab, name = line.rstrip("\r").partition("\t")
        if not file and not tab:
            continue
        if "\0" in file or (bool(tab) != bool(classes) and files):
            reason = "is no path" if "\0" in file else "differs in having a class"
            raise UserError(
                f"data_dir={path}: line {number} {reason}; {wanted}, on all lines or none"
            )
        files.append(file)
        if tab:
            classes.append(name)
    if not files:
        raise UserError(f"data_dir={path} lists no image; {wanted}")
    return files, classes


class FolderSource:
    """Image files below a folder, or in a list; a million take some 50 MB of memory.

    Attributes:
        root: what the names of files are relative to.
        files: their names.
        classes: names of the classes, in the order of their numbers: the folders right below the folder if every
            image lies in one, and they are no parts of a set as train and val are, or what the list
            says; empty without.
        remarks: what is to be said of the classes, a line each.
    """

    record_spec = tf.TensorSpec([], tf.string)

    def __init__(self, path: str, decoding: Decoding = RGB):
        """Take in the images below the folder, or in the text file, `path`.

        Raises:
            UserError: there is no image.
        """
        self.decoding, self.remarks = decoding, list[str]()
        if not path:
            raise UserError(
                "data_dir='' names no folder; point it at your images: --config.data_dir=FOLDER"
            )
        if store.is_folder(path):
            self.root, files = path, find_images(path)
            classes = self._class_folders(path, files)
        elif store.is_file(path):
            self.root, (files, classes) = os.path.dirname(path), read_list(path)
        else:
            raise UserError(
                f"data_dir={path} is no folder, nor a text file of paths; give one ({_LOOKED})"
            )
        self.files = Names(files)
        self.classes, numbers = numbered(classes)
        self._labels = numbers if self.classes else None

    def _class_folders(self, path: str, files: Sequence[str]) -> list[str]:
        """The folder right below `path` of each of `files` if these are classes, else none."""
        tops = [file.split("/", 1)[0] for file in files if "/" in file]
        if len(tops) < len(files):
            return []
        are_classes, said = split_names.judge(path, sorted(set(tops)), len(files))
        self.remarks += [said] if said else []
        return tops if are_classes else []

    def __len__(self) -> int:
        """The number of files."""
        return len(self.files)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The files' content, object `[n]` of bytes; empty where a file cannot be read."""
        return store.read_many(lambda index: store.read(self.name(index)), indices)

    def encoded(self, record: tf.Tensor) -> tf.Tensor:
        """The file's content, as it is."""
        return record

    def labels(self, indices: np.ndarray) -> np.ndarray | None:
        """int32 `[n]`, -1 for an image of a list that gives it no class."""
        return None if self._labels is None else self._labels[indices]

    def name(self, index: int) -> str:
        """The file's path."""
        file = self.files[index]
        return file if store.is_remote(file) else os.path.join(self.root, file)

    def names(self, indices: np.ndarray) -> list[str]:
        """Paths, relative to `root`, or as a list has them."""
        return [self.files[index] for index in indices.tolist()]


class FilesSource(FolderSource):
    """Image files that are named one by one; a file that is missing counts as damaged."""

    def __init__(self, files: Sequence[str], decoding: Decoding = RGB):
        """Take `files`, paths, in their order."""
        self.decoding, self.root, self.files = decoding, "", Names(files)
        self.classes, self.remarks, self._labels = [], [], None

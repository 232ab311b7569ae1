"""Images that are files of their own: below a folder, or listed in a text file."""

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.data.sources import image_files, labels, names, split_names, store
from moco_jax.data.sources.lists import read_list
from moco_jax.data.sources.names import Names
from moco_jax.data.sources.pixels import EXTENSIONS, RGB, Decoding
from moco_jax.data.sources.records import ENCODED

_LOOKED = f"images end in {', '.join(EXTENSIONS)}"


def numbered(classes: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Sort the different `classes` and number them: names, and int32 `[n]`, `MISSING` for ''."""
    different = sorted(set(classes) - {""})
    numbers = {name: number for number, name in enumerate(different)} | {"": labels.MISSING}
    return different, np.fromiter((numbers[c] for c in classes), np.int32, len(classes))


def find_images(root: str) -> tuple[list[str], str]:
    """Find all images below the folder `root`, at any depth.

    Returns:
        Paths, relative to `root` and sorted, and a line on what else is there and left out (''
        for nothing).

    Raises:
        UserError: there are none.
    """
    left_out: Counter[str] = Counter()
    endings: Counter[str] = Counter()
    files, others = image_files.divide(root, store.walk(root, left_out))
    endings.update(os.path.splitext(path)[1].lower() or "no ending" for path in others)
    remark = names.remark(f"data_dir={root}", left_out, endings)
    if not files:
        also = f" ({remark})" if remark else ""
        raise UserError(f"data_dir={printable(root)} holds no image, at any depth; {_LOOKED}{also}")
    return files, remark


class FolderSource:
    """Image files below a folder, or in a list; a million take some 50 MB of memory.

    Attributes:
        root: what the names of files are relative to.
        files: their names.
        classes: names of the classes, in the order of their numbers; empty without classes. They
            are the folders right below the folder if every image lies in one, unless these are
            parts of a set as train and val are; or what the list says.
        remarks: what is left out, and what else is to be said of classes or a list, a line each.
        first_dicom: the first file that may be DICOM by its name; None where there is none.
    """

    record_spec = ENCODED

    def __init__(self, path: str, decoding: Decoding = RGB):
        """Find the images below the folder `path`, or in the text file `path`.

        Raises:
            UserError: there is no image.
        """
        self.decoding, self.remarks = decoding, list[str]()
        if not path:
            raise UserError(
                "data_dir='' names no folder; point it at your images: --config.data_dir=FOLDER"
            )
        if store.is_folder(path):
            self.root, (files, remark) = path, find_images(path)
            self.remarks += [remark] if remark else []
            classes = self._class_folders(path, files)
        elif store.is_file(path):
            self.root, (files, classes, said_of_list) = os.path.dirname(path), read_list(path)
            self.remarks += said_of_list
        else:
            why = "" if store.exists(path) else ": there is no such file or folder"
            raise UserError(
                f"data_dir={printable(path)} is no folder, nor a text file of paths{why}; give one"
                f" ({_LOOKED})"
            )
        self.files, self.first_dicom = Names(files), image_files.first_dicom(files)
        self.classes, numbers = numbered(classes)
        self._labels = numbers if self.classes else None

    def _class_folders(self, path: str, files: Sequence[str]) -> list[str]:
        """Return for each file its top-level folder if these are classes, else an empty list."""
        tops = [file.split("/", 1)[0] for file in files if "/" in file]
        if len(tops) < len(files):
            return []
        are_classes, remark = split_names.judge(path, sorted(set(tops)), len(files))
        self.remarks += [remark] if remark else []
        return tops if are_classes else []

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.files)

    def identity(self) -> list[Any]:
        """Return the names of all files, relative to `root` or as a list has them."""
        return [self.files.block, self.files.ends]

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Read the files' content, object `[n]` of bytes; empty where a file cannot be read."""
        return store.read_files([self.path(index) for index in indices.tolist()])

    def encoded(self, record: bytes) -> bytes:
        """Return the file's content, as it is."""
        return record

    def labels(self, indices: np.ndarray) -> np.ndarray | None:
        """Return labels int32 `[n]`, -1 for an image of a list that gives it no class."""
        return None if self._labels is None else self._labels[indices]

    def path(self, index: int) -> str:
        """Return the file's path, with every byte."""
        file = self.files[index]
        return file if store.is_remote(file) else os.path.join(self.root, file)

    def name(self, index: int) -> str:
        """Return the file's path, in one line."""
        return printable(self.path(index))

    def trouble(self, index: int) -> str:
        """Say in a few words why the file cannot be opened; '' where it can."""
        try:
            store.open_binary(self.path(index)).close()
        except OSError as error:
            return (error.strerror or str(error)).lower()
        return ""

    def names(self, indices: np.ndarray) -> list[str]:
        """Return paths, relative to `root` or as a list has them, with every byte."""
        return [self.files[index] for index in indices.tolist()]


class FilesSource(FolderSource):
    """Image files that are named one by one; a missing file counts as damaged."""

    def __init__(self, files: Sequence[str], decoding: Decoding = RGB):
        """Take `files`, paths, in their order."""
        self.decoding, self.root, self.files = decoding, "", Names(files)
        self.classes, self.remarks, self._labels = [], [], None
        self.first_dicom = None

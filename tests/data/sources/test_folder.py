"""Folders are searched through links at any depth, lists read as written; bad files do no harm."""

import os

import numpy as np
import pytest

from moco_jax.base.errors import UserError
from moco_jax.data.sources import open_source, store
from moco_jax.data.sources.folder import FolderSource
from moco_jax.data.sources.names import Names
from tests.data.pictures import decoded, encoded, write


def names(source):
    return [source.files[i] for i in range(len(source))]


def test_images_at_any_depth_of_any_ending_are_found_in_order(tmp_path):
    kinds = ["jpg", "JPEG", "jfif", "png", "bmp", "gif", "webp", "TIF", "tiff"]
    files = {f"deep/er/{n}.{kind}": b"" for n, kind in enumerate(kinds)}
    others = {".hidden.jpg": b"", ".cache/x.jpg": b"", "notes.txt": b"", "a.jpg.part": b""}
    source = FolderSource(write(tmp_path, files | others | {"top.jpg": encoded()}))
    assert names(source) == [*files, "top.jpg"]
    assert source.labels(np.arange(len(source))) is None
    assert [sound for _, sound in decoded(source)] == [False] * len(kinds) + [True]


def test_class_folders_are_labels(tmp_path):
    files = dict.fromkeys(("cat/1.png", "cat/deep/2.png", "dog/3.png"), b"")
    source = FolderSource(write(tmp_path, files))
    np.testing.assert_array_equal(source.labels(np.arange(3)), [0, 0, 1])
    assert source.classes == ["cat", "dog"]


def test_links_are_followed_once_and_loops_end(tmp_path):
    write(tmp_path / "elsewhere", {"x/1.jpg": encoded(), "2.jpg": b""})
    root = tmp_path / "root"
    write(root, {"real/3.jpg": b""})
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(tmp_path / "elsewhere" / "x")
    (root / "real" / "loop").symlink_to(root)
    (root / "file.jpg").symlink_to(tmp_path / "elsewhere" / "x" / "1.jpg")
    (root / "nothing.jpg").symlink_to(tmp_path / "gone.jpg")
    (root / "itself.jpg").symlink_to(root / "itself.jpg")
    source = FolderSource(str(root))
    expected = [
        "again/1.jpg",
        "file.jpg",
        "itself.jpg",
        "linked/2.jpg",
        "nothing.jpg",
        "real/3.jpg",
    ]
    assert names(source) == expected
    sound = [name for name, (_, ok) in zip(names(source), decoded(source), strict=True) if ok]
    assert sound == ["again/1.jpg", "file.jpg"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch, caplog):
    write(tmp_path, {"a/1.jpg": b"", "b/2.jpg": b""})
    scandir = os.scandir

    def refuse(path):
        if str(path).rstrip("/").endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(store.os, "scandir", refuse)
    source = FolderSource(str(tmp_path))
    assert names(source) == ["b/2.jpg"]
    assert f"cannot be listed: {tmp_path}/a (Permission denied)" in caplog.text
    assert source.remarks[0] == (
        f"data_dir={tmp_path}: 1 folders that cannot be listed are left out"
    )
    with pytest.raises(UserError, match=r"data_dir=.*/a cannot be read .*Permission denied"):
        open_source("folder", "", f"{tmp_path}/a")


def test_a_list_is_relative_to_its_folder_and_may_give_classes(tmp_path):
    write(tmp_path, {"images/a b.jpg": encoded(), "images/c.png": encoded("PNG")})
    elsewhere = tmp_path / "images" / "c.png"
    plain, classed = tmp_path / "list.txt", tmp_path / "classed.tsv"
    plain.write_text(f"images/a b.jpg\r\n\r\nmissing.jpg\n{elsewhere}\n", newline="")
    classed.write_text("\ufeffimages/a b.jpg\tzebra\nimages/c.png\tant\nimages/a b.jpg\tzebra")
    source = FolderSource(str(plain))
    assert names(source) == ["images/a b.jpg", "missing.jpg", str(elsewhere)]
    assert [sound for _, sound in decoded(source)] == [True, False, True]
    assert source.name(1) == str(tmp_path / "missing.jpg")
    assert source.labels(np.arange(3)) is None
    source = FolderSource(str(classed))
    np.testing.assert_array_equal(source.labels(np.arange(3)), [1, 0, 1])
    assert source.classes == ["ant", "zebra"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lists no image"),
        (b"a.jpg\tcat\nb.jpg\n", "line 2 differs in having a class"),
        (b"a.jpg\nb.jpg\tcat\n", "line 2 differs in having a class"),
        (b"a\0.jpg", "line 1 is no path"),
        (encoded(), "is no text file"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, content, message):
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(UserError, match=message):
        FolderSource(str(tmp_path / "list"))


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"holds no image.*\.jpg"):
        FolderSource(str(tmp_path))


def test_names_are_kept_in_their_length_and_eight_bytes():
    paths = [f"n{i % 7:04d}/ImageNet_{i:08d}.JPEG" for i in range(10_000)] + ["å", "b\udcff", ""]
    kept = Names(paths)
    assert [kept[i] for i in range(len(kept))] == paths
    assert kept.nbytes <= sum(len(p) + 8 for p in paths) + 16

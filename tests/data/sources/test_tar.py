"""Tar shards give each example's image and class in order; a damaged one is named."""

import io
import tarfile

import numpy as np
import pytest

from moco_jax.base.errors import UserError
from moco_jax.data.sources import shards
from moco_jax.data.sources.tar import TarSource
from tests.data.pictures import decoded, encoded, opened

LONG = "a/" + "long_name_" * 30


def tar(path, members, **options):
    with tarfile.open(path, options.pop("mode", "w"), **options) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


def members(number, label=None):
    images = [encoded(quality=70 + n, pixels=opened(encoded())) for n in range(3)]
    listed = [(f"{number:03d}{n}.jpg", image) for n, image in enumerate(images)]
    if label is None:
        return listed
    classes = [(f"{number:03d}{n}.cls", b"%d" % (label + n)) for n in range(len(images))]
    return [member for pair in zip(listed, classes, strict=True) for member in pair]


def test_shards_of_a_folder_and_of_patterns(tmp_path):
    for number in (8, 9, 10):
        tar(tmp_path / f"train-{number:03d}.tar", members(number))
    (tmp_path / "train-008.tar.gz").write_bytes(b"")
    index = tmp_path / "index"
    for pattern, of in (
        ("", (8, 9, 10)),
        ("/train-{008..009}.tar", (8, 9)),
        ("/train-{010,008}.tar", (10, 8)),
        ("/*-0?0.tar", (10,)),
    ):
        expected = [member for number in of for member in members(number)]
        for _ in range(2):  # the second time through the kept index
            source = TarSource(f"{tmp_path}{pattern}", str(index))
            assert source.read(np.arange(len(source))).tolist() == [c for _, c in expected]
            assert source.labels(np.arange(3)) is None
    assert len(list(index.iterdir())) == 4
    assert source.names(np.asarray([2, 1]))[1].endswith("/0101.jpg")
    assert source.name(1) == f"0101.jpg in train-010.tar at byte {source.records.places.offset[1]}"
    for (image, sound), (_, content) in zip(decoded(source), members(10), strict=True):
        assert sound
        np.testing.assert_array_equal(image, opened(content))
    assert source.read(np.asarray([2, 0])).tolist() == [members(10)[2][1], members(10)[0][1]]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_an_example_has_its_image_and_class_among_other_members(tmp_path, format):
    image, mask = encoded(), encoded("PNG")
    listed = [
        ("./._0.jpg", b"resource fork"),
        ("a/0.cls", b"7\n"),
        ("a/0.json", b"{}"),
        ("a/0.mask.png", mask),
        ("a/0.JPG", image),
        ("b/x.jpg", mask),
        ("b/x.cls", b"3"),
        ("b/X.jpg", image),
        ("b/X.cls", b"4"),
        ("c.txt", b"no image"),
        (f"{LONG}é.png", image),
        (f"{LONG}é.cls", b"0"),
    ]
    source = TarSource(tar(tmp_path / "x.tar", listed, format=format))
    assert source.read(np.arange(4)).tolist() == [image, mask, image, image]
    np.testing.assert_array_equal(source.labels(np.asarray([3, 0, 1, 2])), [0, 7, 3, 4])
    assert "1 examples without an image are left out" in source.remarks[0]


def test_examples_without_a_class_have_a_missing_label_beside_those_with_one(tmp_path):
    source = TarSource(tar(tmp_path / "x.tar", members(0, label=5) + members(1)))
    assert source.labels(np.arange(6)).tolist() == [5, 6, 7, -1, -1, -1]


def test_a_changed_shard_is_indexed_again(tmp_path):
    path = tar(tmp_path / "x.tar", members(0, label=0))
    assert len(TarSource(path, str(tmp_path / "index"))) == 3
    tar(path, members(0, label=0) + members(1, label=40))
    source = TarSource(path, str(tmp_path / "index"))
    np.testing.assert_array_equal(source.labels(np.arange(6)), [0, 1, 2, 40, 41, 42])


def test_damaged_and_wrong_shards_are_named(tmp_path):
    path = tmp_path / "x.tar"
    whole = (tar(path, members(0)), path.read_bytes())[1]
    second = whole.index(b"0001.jpg")
    wrong = [
        (whole[: second + 1000], r"x\.tar is cut off"),
        (whole[: second + 100], r"x\.tar is damaged at byte"),
        (whole[:second] + b"\1" * 512 + whole[second + 512 :], r"x\.tar is damaged at byte"),
        (b"", r"x\.tar is cut off, or no plain tar"),
        (encoded(), r"x\.tar is cut off, or no plain tar"),
    ]
    for content, message in wrong:
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            TarSource(str(path))
    tar(path, members(0), mode="w:gz")
    with pytest.raises(UserError, match="unpack a compressed one"):
        TarSource(str(path))
    tar(path, [("0.jpg", encoded()), ("0.cls", b"cat")])
    with pytest.raises(UserError, match=r"x\.tar: 0\.cls holds b'cat'"):
        TarSource(str(path))
    tar(path, [("0.txt", b"")])
    with pytest.raises(UserError, match=r"hold no image; images end in \.jpg"):
        TarSource(str(path))
    path.unlink()
    with pytest.raises(UserError, match="holds no tar file; give a folder"):
        TarSource(str(tmp_path))


def test_an_image_that_is_lost_while_running_is_flagged(tmp_path):
    source = TarSource(tar(tmp_path / "x.tar", members(0)))
    with open(tmp_path / "x.tar", "r+b") as file:
        file.truncate(int(source.records.places.offset[2]) + 100)
    assert [sound for _, sound in decoded(source)] == [True, True, False]


def test_braces_are_written_out_as_a_shell_does():
    assert shards.braces("x{08..10}.tar") == ["x08.tar", "x09.tar", "x10.tar"]
    assert shards.braces("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]
    assert shards.braces("plain") == ["plain"]
